"""What a folder of training text holds, for a page: samples by kind, lengths, rules, refusals.

Of a folder that curation or generation has written, its own notes say what was changed and refused.
On any other, the rules are tried on a sample of its records.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ys_llm.data.items import Item, is_record_file, read_items
from ys_llm.data.records import Record, content_hash, utf8_length
from ys_llm.data.text_files import read_blocks
from ys_llm.gendata.curation.curate import NOTES
from ys_llm.gendata.curation.near_duplicates import NearDuplicates
from ys_llm.gendata.curation.reading import corpus_files, kind_of
from ys_llm.gendata.curation.report import difference
from ys_llm.gendata.curation.rule import Rule, Verdict
from ys_llm.gendata.curation.worker import CurationJob, LengthLimits, RecordBatch, work
from ys_llm.gendata.generation.journal import JournalEntry, read_journal

SAMPLES = 3  # of each kind
CHECKED = 2_000  # records that the rules are tried on
EXAMPLES = 5  # of each rule, and of each reason
_NEAR = 0.8  # as `curate` has it
_TEXT_CHARS = 2_000  # of a plain text that is shown
Found = tuple[str, Item]  # FILE:NUMBER, and the record


@dataclass
class Kind:
    """The records of one kind; `lengths` are those of the responses, in characters."""

    lengths: list[int] = field(default_factory=list)
    bytes: int = 0
    duplicates: int = 0
    samples: list[tuple[str, Record]] = field(default_factory=list)


@dataclass
class Finding:
    """What one rule or reason did: how often, and some of its records with diff or reason."""

    records: int = 0
    description: str = ""
    examples: list[Mapping[str, str]] = field(default_factory=list)


@dataclass
class Preview:
    """Everything the page shows.

    `origin` says where `rules` come from; `refusals` are those of generation, by name.
    """

    path: Path
    kinds: dict[str, Kind] = field(default_factory=dict)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    rules: dict[str, Finding] = field(default_factory=dict)
    refusals: dict[str, Finding] = field(default_factory=dict)
    origin: str = ""
    items_accepted: int = 0
    items_dropped: int = 0


def preview(path: Path, *, rules: Sequence[Rule]) -> Preview:
    """Read a corpus once. Raises UserError where there is no text, or the journal is damaged."""
    shown, reader = Preview(path), _Reader()
    for where, item in _records(path):
        reader.take(shown, where, item)
    for name, kind in shown.kinds.items():
        kind.samples = [(where, _record(item)) for where, item in reader.samples[name].kept()]
    folder = path if path.is_dir() else path.parent
    if not _from_curation(shown, folder):
        _try_rules(shown, reader.checked.kept(), rules)
    _from_journal(shown, list(read_journal(folder).values()))
    return shown


def _records(path: Path) -> Iterator[Found]:
    """Every record with its place; a plain file is one."""
    for file in corpus_files(path):
        name = file.relative_to(path).as_posix() if file != path else file.name
        if is_record_file(file):
            yield from ((f"{name}:{item.number}", item) for item in read_items(file))
        else:
            text = "".join(read_blocks(file, errors="replace"))
            yield f"{name}:1", Item(1, None, "", text)


def _record(item: Item) -> Record:
    return item.record or Record("", item.text[:_TEXT_CHARS])


class _Lowest:
    """The records with the lowest hashes: a sample that depends on nothing but their content."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, Found]] = []  # (-hash, -number, record)

    def offer(self, key: str, number: int, found: Found) -> None:
        """Keep the record if it is among the lowest."""
        entry = (-int(key, 16), -number, found)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def kept(self) -> list[Found]:
        """What was kept, in the order of the corpus."""
        return [found for _, _, found in sorted(self._heap, key=lambda entry: -entry[1])]


class _Reader:
    """Counts records by kind, finds identical ones, and keeps samples."""

    def __init__(self) -> None:
        self.samples: dict[str, _Lowest] = {}
        self.checked = _Lowest(CHECKED)
        self._seen: dict[str, str] = {}
        self._number = 0

    def take(self, shown: Preview, where: str, item: Item) -> None:
        """Count one record."""
        if item.problem:
            shown.unreadable.append((where, item.problem))
            return
        record = item.record or Record("", item.text)
        name = kind_of(where.rpartition(":")[0])
        kind = shown.kinds.setdefault(name, Kind())
        kind.lengths.append(len(record.response))
        kind.bytes += utf8_length(record.prompt) + utf8_length(record.response)
        key = content_hash(record.response, record.prompt if item.record else None)
        earlier = self._seen.setdefault(key, where)
        if earlier != where:
            kind.duplicates += 1
            shown.duplicates.append((where, earlier))
            return
        self._number += 1
        sample = self.samples.setdefault(name, _Lowest(SAMPLES))
        sample.offer(key, self._number, (where, item))
        if item.record:
            self.checked.offer(key, self._number, (where, item))


def _try_rules(shown: Preview, records: Sequence[Found], rules: Sequence[Rule]) -> None:
    """Apply the rules to these records, as `curate` would; nothing is written."""
    job = CurationJob(tuple(rules), LengthLimits(), _NEAR)
    shown.rules = {rule.name: Finding(0, rule.description) for rule in rules}
    _, done = work(job, RecordBatch(0, tuple(item for _, item in records)))
    near, places = NearDuplicates(_NEAR), list[str]()
    for (where, _), one in zip(records, done, strict=True):
        for edit in one.curated.edits:
            _note(shown.rules, edit.rule, {"where": where, "diff": difference(edit)})
        verdict = one.curated.verdict
        if verdict is None and one.shingles is not None and one.signature is not None:
            match = near.add(len(places), one.shingles, one.signature)
            if match:
                reason = f"similarity {match.jaccard:.2f} to {places[match.number]}"
                verdict = Verdict("near_duplicate", reason)
            else:
                places.append(where)
        if verdict:
            _note(shown.rules, verdict.rule, {"where": where, "reason": verdict.reason})
    shown.origin = f"The rules were tried on {len(records):,} records; nothing was changed."


def _note(findings: dict[str, Finding], name: str, example: Mapping[str, str]) -> None:
    finding = findings.setdefault(name, Finding())
    finding.records += 1
    if len(finding.examples) < EXAMPLES:
        finding.examples.append(example)


def _from_curation(shown: Preview, folder: Path) -> bool:
    """Take what curation has noted beside a folder that it wrote; False where it has not."""
    report = _json_object(folder / NOTES / "report.json")
    rules, totals = report.get("rules"), report.get("totals")
    if not isinstance(rules, dict) or not isinstance(totals, dict):
        return False
    texts = _dropped_texts(folder / NOTES / "dropped.jsonl")
    for name, found in rules.items():
        examples: list[Mapping[str, str]] = [
            {**one, "text": texts.get(one.get("where", ""), "")}
            for one in found.get("examples", [])[:EXAMPLES]
        ]
        shown.rules[name] = Finding(found.get("records", 0), found.get("description", ""), examples)
    shown.origin = (
        f"Curation read {totals.get('read', 0):,} records, kept {totals.get('kept', 0):,}, of "
        f"which it fixed {totals.get('edited', 0):,}, and dropped {totals.get('dropped', 0):,}."
    )
    return True


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _dropped_texts(path: Path) -> dict[str, str]:
    """The beginning of each dropped record by its place."""
    texts: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                texts[row["where"]] = f"{row['prompt']}\n{row['response']}".strip()[:_TEXT_CHARS]
    except (OSError, ValueError, KeyError, TypeError):
        return texts
    return texts


def _from_journal(shown: Preview, entries: Sequence[JournalEntry]) -> None:
    """Take what generation has noted: each answer that was refused, by reason."""
    counts = Counter(entry.status for entry in entries)
    shown.items_accepted, shown.items_dropped = counts["accepted"], counts["dropped"]
    for entry in entries:
        for rejection in entry.rejections:
            where = f"{entry.kind} {entry.index}"
            example = {"where": where, "reason": rejection.reason}
            _note(shown.refusals, rejection.name, example)
