"""Curate a folder of records into another folder, with a report."""

import json
import multiprocessing
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ys_llm.data.containers import read_bytes
from ys_llm.data.items import Item, is_record_file, read_items
from ys_llm.data.records import Record
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.gendata.curation.near_duplicates import NearDuplicates
from ys_llm.gendata.curation.reading import corpus_files, kind_of
from ys_llm.gendata.curation.report import MADE_BY, CurationReport, descriptions, difference
from ys_llm.gendata.curation.rule import Curated, Rule, Verdict
from ys_llm.gendata.curation.rules import STANDARD
from ys_llm.gendata.curation.worker import (
    CheckedRecord,
    CurationJob,
    LengthLimits,
    RecordBatch,
    batches,
    work,
)
from ys_llm.gendata.curation.writing import line_of, packed
from ys_llm.system.files import Journal, make_folder, replace_folder, sha256_of, write_synced

NOTES = ".curation"  # training skips this name
IN_FLIGHT = 3  # batches per process, waiting or in work


def curate_folder(
    path: Path,
    out_dir: Path,
    *,
    rules: Sequence[Rule] = STANDARD,
    near: float = 0.8,
    limits: LengthLimits | None = None,
    processes: int = 1,
) -> CurationReport:
    """Write the good records of the corpus at `path` to `out_dir`, under the same file names.

    Rules are applied first. Then exact duplicates, near duplicates (Jaccard of 5-word shingles >=
    `near`; 0 disables this) and surplus responses to one prompt are removed; the first one stays.
    `out_dir/.curation` holds the report, a diff of every edit and every dropped record. The folder
    appears in one step, and does not depend on `processes`. Raises UserError for unreadable files,
    and if `out_dir` holds anything but an earlier result.
    """
    files = corpus_files(path)
    _check_out_dir(path, out_dir)
    final = out_dir.absolute()
    temporary = final.with_name(f".{final.name}.curating")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
    make_folder(temporary / NOTES)
    limits = limits or LengthLimits()
    settings = {"rules": [rule.name for rule in rules], "near": near, "limits": asdict(limits)}
    report = CurationReport(settings, descriptions(tuple(rules)))
    job = CurationJob(tuple(rules), limits, near)
    try:
        with closing(Deduplicator(temporary, job, report)) as kept:
            for number, done in _process(files, job, processes):
                kept.take(_name(files[number], path), files[number], done)
            kept.finish()
        write_synced(temporary / NOTES / "report.json", report.json())
        write_synced(temporary / NOTES / "report.md", report.markdown())
        replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return report


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file != root else file.name


def _check_out_dir(path: Path, out_dir: Path) -> None:
    source, target = path.resolve(), out_dir.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise UserError(
            f"one of {out_dir} and {path} contains the other",
            "Choose a separate folder with --out.",
            exit_code=EXIT_USAGE,
        )
    if not os.path.lexists(out_dir):
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file", "Choose a folder with --out.", exit_code=EXIT_USAGE)
    foreign = sorted(_foreign_files(out_dir))
    if foreign:
        raise UserError(
            f"{out_dir} holds files that curation did not write: {', '.join(foreign[:5])}",
            "Choose another folder with --out.",
            exit_code=EXIT_USAGE,
        )


def _foreign_files(folder: Path) -> set[str]:
    """Files that are in no earlier report, or that were changed since."""
    found = {
        file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()
    }
    own = {
        f"{NOTES}/{name}" for name in ("report.json", "report.md", "edits.jsonl", "dropped.jsonl")
    }
    try:
        report = json.loads((folder / NOTES / "report.json").read_text("utf-8"))
        known = dict(report["files"]) if report["made_by"] == MADE_BY else {}
    except (OSError, ValueError, KeyError, TypeError):
        known, own = {}, set()
    return {
        name
        for name, file in found.items()
        if name not in own and known.get(name) != sha256_of(file)
    }


def _process(
    files: list[Path], job: CurationJob, processes: int
) -> Iterator[tuple[int, list[CheckedRecord]]]:
    """Process the batches of all files in `processes`; yield the results in order."""
    every = (batch for number, file in enumerate(files) for batch in _batches(number, file))
    if processes == 1:
        yield from map(partial(work, job), every)
        return
    # spawn: a fork would copy locks that other threads of the caller hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting: deque[Future[tuple[int, list[CheckedRecord]]]] = deque()
        for batch in every:
            waiting.append(pool.submit(work, job, batch))
            if len(waiting) >= IN_FLIGHT * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(number: int, file: Path) -> Iterator[RecordBatch]:
    if is_record_file(file):
        return batches(number, read_items(file))
    return iter([RecordBatch(number, (_plain_item(file),))])


def _plain_item(file: Path) -> Item:
    """A plain text passes unchanged, if it is valid text."""
    try:
        text = b"".join(read_bytes(file)).decode("utf-8")
    except UnicodeDecodeError as error:
        return Item(1, None, f"byte {error.start} is not UTF-8")
    problem = "holds NUL" if "\0" in text else "" if text.strip() else "holds nothing"
    return Item(1, None, problem, text)


class Deduplicator:
    """Takes checked records in order, drops duplicates, writes file by file."""

    def __init__(self, folder: Path, job: CurationJob, report: CurationReport) -> None:
        self.report = report
        self._folder = folder
        self._limits = job.limits
        self._seen: dict[str, str] = {}
        self._near = NearDuplicates(job.near) if job.near else None
        self._places: list[str] = []
        self._prompts: Counter[bytes] = Counter()
        self._edits = Journal(folder / NOTES / "edits.jsonl")
        self._dropped = Journal(folder / NOTES / "dropped.jsonl")
        self._name = ""
        self._kept: list[str] = []

    def take(self, name: str, file: Path, done: list[CheckedRecord]) -> None:
        """Add the next records of a file; files must come one after the other."""
        if name != self._name:
            self._write()
            self._name = name
            self.report.bytes_read += file.stat().st_size
        for one in done:
            self._take(one, f"{name}:{one.item.number}")

    def _take(self, done: CheckedRecord, where: str) -> None:
        kind = self.report.kind(kind_of(self._name))
        kind.read += 1
        verdict, earlier = done.curated.verdict, ""
        if verdict is None:
            verdict, earlier = self._repeated(done, where)
        self._note_edits(done.curated, where, dropped=verdict is not None)
        if verdict is not None:
            kind.dropped += 1
            self._note_drop(done, verdict, where, earlier)
            return
        kind.kept += 1
        kind.edited += bool(done.curated.edits)
        self._kept.append(line_of(Path(self._name), done))

    def _repeated(self, done: CheckedRecord, where: str) -> tuple[Verdict | None, str]:
        """Whether an earlier record makes this one redundant, and which."""
        if earlier := self._seen.get(done.key):
            return Verdict("duplicate", f"identical to {earlier}"), earlier
        record = done.curated.record
        prompt = record.prompt.encode("utf-8", "surrogatepass") if record else b""
        if record and prompt and self._prompts[prompt] >= self._limits.per_prompt:
            reason = f"over {self._limits.per_prompt} responses to this prompt"
            return Verdict("per_prompt", reason), ""
        if self._near and done.shingles is not None and done.signature is not None:
            match = self._near.add(len(self._places), done.shingles, done.signature)
            if match:
                earlier = self._places[match.number]
                reason = f"similarity {match.jaccard:.2f} to {earlier}"
                return Verdict("near_duplicate", reason), earlier
            self._places.append(where)
        self._seen[done.key] = where
        self._prompts[prompt] += 1
        return None, ""

    def _note_edits(self, curated: Curated, where: str, *, dropped: bool) -> None:
        kind, counted = kind_of(self._name), set()
        for edit in curated.edits:
            diff = difference(edit)
            row = {"where": where, "rule": edit.rule, "diff": diff, "then_dropped": dropped}
            self._edits.write(json.dumps(row, ensure_ascii=False))
            if edit.rule not in counted and not dropped:
                self.report.count(edit.rule, kind, {"where": where, "diff": diff})
            counted.add(edit.rule)

    def _note_drop(self, done: CheckedRecord, verdict: Verdict, where: str, earlier: str) -> None:
        text = done.item.record or Record("", done.item.text)
        row = {"where": where, "rule": verdict.rule, "reason": verdict.reason, "earlier": earlier}
        row |= {"prompt": text.prompt, "response": text.response}
        self._dropped.write(json.dumps(row))  # ASCII: dropped records may hold invalid characters
        example = {"where": where, "reason": verdict.reason}
        self.report.count(verdict.rule, kind_of(self._name), example)

    def _write(self) -> None:
        if not self._kept:
            return
        path = self._folder / self._name
        make_folder(path.parent)
        data = packed(path, self._kept)
        write_synced(path, data)
        self.report.files[self._name] = sha256_of(path)
        self.report.bytes_kept += len(data)
        self._kept = []

    def finish(self) -> None:
        """Write the last file and sync the journals."""
        self._write()
        self._edits.sync()
        self._dropped.sync()

    def close(self) -> None:
        """Close the journals."""
        self._edits.close()
        self._dropped.close()
