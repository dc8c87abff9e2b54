"""From a plan to a folder of records: decided items are kept, the rest is generated."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ys_llm.data.manifest import Manifest, read_manifest
from ys_llm.errors import UserError
from ys_llm.gendata.backends.chat import BackEnd
from ys_llm.gendata.corpus.files import check_files, write_files
from ys_llm.gendata.corpus.readme import readme
from ys_llm.gendata.generation.generator import (
    Generator,
    Plan,
    StoppedEarlyError,
    rejections_by_name,
)
from ys_llm.gendata.generation.journal import ItemJournal, JournalEntry, corpus_lock
from ys_llm.gendata.generation.progress_bar import ProgressBar, format_counts


@dataclass(frozen=True)
class GenerateResult:
    """The state of a plan after this run and all earlier ones; `str()` is a summary.

    Every try yielded an accepted record or is among the `rejections`, counted by name.
    """

    folder: Path
    planned: int
    accepted: int
    dropped: int
    tries: int
    rejections: Mapping[str, int]
    decided_now: int
    from_model_now: int  # those of `decided_now` whose text comes from a model
    written: tuple[str, ...]
    removed: tuple[str, ...]
    stopped: bool = False
    failure: UserError | None = None

    @property
    def missing(self) -> int:
        """Number of undecided items."""
        return self.planned - self.accepted - self.dropped

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        records = f"{self.folder}: {self.accepted:,} records of {self.planned:,} items"
        if self.missing or self.from_model_now or self.written or self.removed:
            removed = f", {len(self.removed)} old ones removed" if self.removed else ""
            files = f"{len(self.written)} files written{removed}"
            yield f"{records}, {self.decided_now:,} decided now; {files}."
        elif self.dropped:
            yield f"{records}. Nothing to do."
        else:
            yield f"{records}, complete already. Nothing to do."
        if self.missing:
            yield f"{self.missing:,} items are still to be made."
        if self.rejections:
            counts = format_counts(self.rejections)
            yield f"{self.dropped:,} items dropped; rejected tries: {counts}."
        if self.dropped:
            yield "To try dropped items again, add --retry-dropped."


def generate(
    plan: Plan,
    folder: Path,
    *,
    connect: Callable[[], BackEnd],
    workers: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    force: bool = False,
) -> GenerateResult:
    """Generate what a plan lacks, write the files; `connect` is called only if a model is needed.

    A failure of the back end or a stop ends it early: the result says so, and decided items are
    kept. Raises UserError for a damaged journal or manifest, for a folder that another process
    fills, for prompts that are too long, and, unless `force`, for edited files in the way.
    """
    with corpus_lock(folder):
        names = [recipe.name for recipe in plan.recipes]
        check_files(folder, names, readme=bool(plan.command), force=force)
        journal = ItemJournal(folder)
        try:
            generator = Generator(plan, journal, should_stop)
            early = _run(generator, read_manifest(folder), connect, workers)
        finally:
            journal.close()
        accepted = _accepted(generator, early is not None)
        about = readme(plan, accepted) if plan.command and not early else ""
        written, removed = write_files(folder, accepted, readme=about, force=force)
    entries = list(generator.entries())
    n_accepted = sum(entry.status == "accepted" for entry in entries)
    return GenerateResult(
        folder,
        planned=len(generator.planned),
        accepted=n_accepted,
        dropped=len(entries) - n_accepted,
        tries=sum(entry.tries for entry in entries),
        rejections=rejections_by_name(entries),
        decided_now=len(generator.new_entries),
        from_model_now=sum(bool(entry.provenance.model) for entry in generator.new_entries),
        written=written,
        removed=removed,
        stopped=early is not None and early.failure is None,
        failure=early.failure if early else None,
    )


def _run(
    generator: Generator, manifest: Manifest, connect: Callable[[], BackEnd], workers: int
) -> StoppedEarlyError | None:
    """Decide the undecided items, with progress; return what ended it early, if anything."""
    names = {recipe.name for recipe in generator.plan.recipes}
    lines = [line for file in manifest.values() for line in file.records]
    other_kinds = [line for line in lines if line["kind"] not in names]
    total, left = len(generator.planned), len(generator.todo)
    changes = list(_changes(generator, manifest))
    if not left and not changes:
        return None
    progress = ProgressBar(total=total, done=total - left)
    try:
        for line in changes:
            progress.print(line)
        generator.run(connect, workers=workers, other_kinds=other_kinds, progress=progress)
    except StoppedEarlyError as early:
        return early
    finally:
        progress.close()
    return None


def _changes(generator: Generator, manifest: Manifest) -> Iterator[str]:
    """One line per kind whose records leave the files, because the plan is no longer theirs."""
    planned = {item.key for _, item in generator.planned}
    for recipe in generator.plan.recipes:
        files = (file for file in manifest.values() if file.kind == recipe.name)
        old = [line for file in files for line in file.records if line["key"] not in planned]
        if not old:
            continue
        changed = any(line["digest"] != recipe.digest for line in old)
        why = "its file or model has changed" if changed else "seed or count differ"
        n_new = sum(item.kind == recipe.name for _, item in generator.todo)
        kept = " (the journal keeps them)" if recipe.uses_model else ""
        yield (
            f"{recipe.name}: {why}: {n_new:,} items to make; {len(old):,} records leave the "
            f"files{kept}"
        )


def _accepted(generator: Generator, early: bool) -> dict[str, list[JournalEntry]]:
    """The records to write, by kind.

    After an early end, the records of a model so far are written. The files of a program's
    unfinished kind stay as they are: it takes seconds to make all of it.
    """
    accepted: dict[str, list[JournalEntry]] = {recipe.name: [] for recipe in generator.plan.recipes}
    for entry in generator.entries():
        if entry.status == "accepted":
            accepted[entry.kind].append(entry)
    if not early:
        return accepted
    programs = {recipe.name for recipe in generator.plan.recipes if not recipe.uses_model}
    half_made = generator.unfinished() & programs
    return {name: made for name, made in accepted.items() if made and name not in half_made}
