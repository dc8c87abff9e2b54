"""From an order to a folder of records: what is decided already is kept, the rest is made."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ys_llm.data.manifest import Manifest, read_manifest
from ys_llm.errors import UserError
from ys_llm.gendata.corpus.files import check_files, write_files
from ys_llm.gendata.corpus.readme import readme
from ys_llm.gendata.generation.generator import (
    BackEnd,
    Making,
    Order,
    StoppedEarlyError,
    rejections_by_name,
)
from ys_llm.gendata.generation.journal import Entry, ItemJournal, owned
from ys_llm.gendata.generation.progress_bar import ProgressBar, counted
from ys_llm.gendata.recipes.recipe import Kind


@dataclass(frozen=True)
class Outcome:
    """What has become of an order, in this run and all before it; `str()` says it in a few lines.

    Every try has made an accepted record or is among the `rejections`, which are counted by name.
    """

    folder: Path
    planned: int
    accepted: int
    dropped: int
    tries: int
    rejections: Mapping[str, int]
    decided_now: int
    asked_now: int  # of them, those that a model was asked for
    written: tuple[str, ...]
    removed: tuple[str, ...]
    stopped: bool = False
    failure: UserError | None = None

    @property
    def missing(self) -> int:
        """How many items are not decided."""
        return self.planned - self.accepted - self.dropped

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        records = f"{self.folder}: {self.accepted:,} records of {self.planned:,} items"
        if not (self.missing or self.asked_now or self.written or self.removed):
            yield f"{records}, complete already. Nothing to do."
        else:
            removed = f", {len(self.removed)} old ones removed" if self.removed else ""
            files = f"{len(self.written)} files written{removed}"
            yield f"{records}, {self.decided_now:,} decided now; {files}."
        if self.missing:
            yield f"{self.missing:,} items are still to be made."
        if self.rejections:
            yield f"{self.dropped:,} items dropped; tries rejected: {counted(self.rejections)}."


def run(
    order: Order,
    folder: Path,
    *,
    connect: Callable[[], BackEnd],
    workers: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    force: bool = False,
) -> Outcome:
    """Make what is missing of an order and write the files; `connect` is called only if needed.

    A failure of the back end and a stop end it early: the Outcome tells, and what was decided is
    kept. Raises UserError for a damaged journal or manifest, a folder that another process fills,
    and, unless `force`, for files in the way that are not as they were made.
    """
    with owned(folder):
        names = [kind.name for kind in order.kinds]
        check_files(folder, names, readme=bool(order.command), force=force)
        journal = ItemJournal(folder)
        try:
            making = Making(order, journal, should_stop)
            early = _make(making, read_manifest(folder), connect, workers)
        finally:
            journal.close()
        accepted = _accepted(making, early is not None)
        about = readme(order, accepted) if order.command and not early else ""
        written, removed = write_files(folder, accepted, readme=about, force=force)
    entries = list(making.entries())
    good = sum(entry.status == "accepted" for entry in entries)
    return Outcome(
        folder,
        planned=len(making.plan),
        accepted=good,
        dropped=len(entries) - good,
        tries=sum(entry.tries for entry in entries),
        rejections=rejections_by_name(entries),
        decided_now=len(entries) + len(making.todo) - len(making.plan),
        asked_now=sum(making.is_decided(pair) for pair in making.todo if _asks(pair[0])),
        written=written,
        removed=removed,
        stopped=early is not None and early.failure is None,
        failure=early.failure if early else None,
    )


def _make(
    making: Making, manifest: Manifest, connect: Callable[[], BackEnd], workers: int
) -> StoppedEarlyError | None:
    """Decide what is to be decided, and show it; what ended it early, if anything did."""
    names = {kind.name for kind in making.order.kinds}
    lines = [line for file in manifest.values() for line in file.records]
    beside = [line for line in lines if line["kind"] not in names]
    total, left = len(making.plan), len(making.todo)
    if not left and not any(_news(making, manifest)):
        return None
    show = ProgressBar(total=total, done=total - left)
    try:
        for line in _news(making, manifest):
            show.say(line)
        making.make(connect, workers=workers, beside=beside, show=show)
    except StoppedEarlyError as early:
        return early
    finally:
        show.close()
    return None


def _news(making: Making, manifest: Manifest) -> Iterator[str]:
    """What leaves the files because the plan is another one than that of the files, by kind."""
    planned = {item.key for _, item in making.plan}
    for kind in making.order.kinds:
        files = (file for file in manifest.values() if file.kind == kind.name)
        old = [line for file in files for line in file.records if line["key"] not in planned]
        if not old:
            continue
        changed = any(line["digest"] != kind.digest for line in old)
        why = "the kind's file or model has changed" if changed else "the seed or count is another"
        anew = sum(item.kind == kind.name for _, item in making.todo)
        kept = ", the journal keeps them" if _asks(kind) else ""
        yield (
            f"{kind.name}: {why}: {anew:,} items are made anew; {len(old):,} records "
            f"leave the files{kept}"
        )


def _asks(kind: Kind) -> bool:
    return kind.spec.backend != "program"


def _accepted(making: Making, early: bool) -> dict[str, list[Entry]]:
    """The records by kind. After an early end what a model said is better than nothing.

    Of a program's half-made kind the old files are better: they are made in seconds, all or none.
    """
    accepted: dict[str, list[Entry]] = {kind.name: [] for kind in making.order.kinds}
    for entry in making.entries():
        if entry.status == "accepted":
            accepted[entry.kind].append(entry)
    if not early:
        return accepted
    half = {pair[0].name for pair in making.todo if not making.is_decided(pair)}
    half &= {kind.name for kind in making.order.kinds if not _asks(kind)}
    return {name: made for name, made in accepted.items() if made and name not in half}
