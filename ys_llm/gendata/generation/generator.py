"""Making what an order lacks: tries run beside each other, decisions come one by one in its order.

So the same answers make the same corpus whichever came first, and wherever it was interrupted.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from ys_llm.errors import UserError
from ys_llm.gendata.generation.attempts import Attempt, Bench, attempt, bench
from ys_llm.gendata.generation.duplicates import Duplicates
from ys_llm.gendata.generation.journal import Entry, ItemJournal, Provenance, Rejection
from ys_llm.gendata.generation.progress_bar import ProgressBar
from ys_llm.gendata.recipes import items
from ys_llm.gendata.recipes.items import Item
from ys_llm.gendata.recipes.recipe import Kind

if TYPE_CHECKING:
    from ys_llm.gendata.backends.ollama import Answer, Request

_POLL_SECONDS = 0.05  # between two looks at `should_stop`
_AHEAD = 4  # items for each worker that are asked for before the first of them is decided


class BackEnd(Protocol):
    """Who is asked; see `ollama.Ollama`."""

    def ask(self, request: "Request", should_stop: Callable[[], bool]) -> "Answer":
        """One whole answer, or an exception."""


@dataclass(frozen=True)
class Order:
    """What is wanted: so many items of each kind (None: as its file says), from this seed.

    With a `command`, which is what was typed, the corpus gets a README that names it.
    """

    kinds: tuple[Kind, ...]
    seed: int = 0
    count: int | None = None
    command: str = ""

    def items(self) -> Iterator[tuple[Kind, Item]]:
        """The plan: every item, kind by kind."""
        for kind in self.kinds:
            for item in items.plan(kind, seed=self.seed, count=self.count):
                yield kind, item


class StoppedEarlyError(Exception):
    """`should_stop` said so, or the back end failed, which is then the `failure`."""

    def __init__(self, failure: UserError | None = None) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(frozen=True)
class _Task:
    """An item whose first tries are under way."""

    bench: Bench
    item: Item
    tries: "Future[list[Attempt]]"


class Making:
    """The making of one order: `plan` is all of it, `todo` what the journal does not know.

    The journal keeps what a model has said; what programs make is made anew each time, and is the
    same each time.
    """

    def __init__(self, order: Order, journal: ItemJournal, should_stop: Callable[[], bool]) -> None:
        self.order, self._journal = order, journal
        self._held = dict(journal.entries)
        self.plan = list(order.items())
        self.todo = [pair for pair in self.plan if pair[1].key not in self._held]
        self._asked_to_stop, self._over = should_stop, threading.Event()
        self._duplicates = Duplicates()

    def entries(self) -> Iterator[Entry]:
        """What has been decided of the plan, in its order."""
        held = self._held
        return (held[item.key] for _, item in self.plan if item.key in held)

    def is_decided(self, pair: tuple[Kind, Item]) -> bool:
        """Whether an item of the plan has become a record or been dropped."""
        return pair[1].key in self._held

    def make(
        self,
        connect: Callable[[], BackEnd],
        *,
        workers: int,
        beside: Iterable[Mapping[str, Any]],
        show: ProgressBar,
    ) -> None:
        """Decide all that is not decided; `beside`, lines of a manifest, is no part of it.

        Raises StoppedEarlyError, with all requests closed.
        """
        self._remember(beside)
        benches = self._benches(connect)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="gen-data")
        try:
            ahead: deque[_Task] = deque()
            for kind, item in self.todo:
                on = benches[kind.name]
                ahead.append(_Task(on, item, pool.submit(_tries, on, item, 0)))
                if len(ahead) > _AHEAD * workers:
                    show.show(self._decide(ahead.popleft(), pool))
            while ahead:
                show.show(self._decide(ahead.popleft(), pool))
        finally:
            self._over.set()
            pool.shutdown(cancel_futures=True)

    def _remember(self, beside: Iterable[Mapping[str, Any]]) -> None:
        known: list[Entry] = []
        for line in beside:
            if line["key"] in self._held:
                known.append(self._held[line["key"]])
            else:
                self._duplicates.know(line["document"])
        for entry in [*known, *self.entries()]:
            if entry.record is not None and entry.status == "accepted":
                self._duplicates.add(entry.record, near=bool(entry.provenance.model))

    def _benches(self, connect: Callable[[], BackEnd]) -> dict[str, Bench]:
        kinds = {kind.name: kind for kind, _ in self.todo}
        asking = [kind for kind in kinds.values() if kind.spec.backend != "program"]
        back_end = connect() if asking else None

        def ask(request: "Request") -> "Answer":
            assert back_end is not None, "a program asks nobody"
            return back_end.ask(request, self._should_stop)

        return {name: bench(kind, ask) for name, kind in kinds.items()}

    def _should_stop(self) -> bool:
        return self._over.is_set() or self._asked_to_stop()

    def _decide(self, task: _Task, pool: ThreadPoolExecutor) -> Entry:
        """Accept or drop an item: of its tries the first counts that is no duplicate."""
        tries: list[Attempt] = []
        rejections: list[Rejection] = []
        future = task.tries
        while True:
            new = self._result(future)
            tries += new
            rejections += [one.rejection for one in new if one.rejection]
            record = tries[-1].record
            duplicate = record and self._duplicates.add(record, near=_is_near(task.bench.kind))
            if duplicate:
                rejections.append(duplicate)
            if not duplicate or len(tries) >= task.bench.kind.spec.max_tries:
                break
            future = pool.submit(_tries, task.bench, task.item, len(tries))
        entry = self._entry(task, tries, rejections)
        if task.bench.kind.spec.backend != "program":
            self._journal.append(entry)
        self._held[entry.key] = entry
        return entry

    def _result(self, future: "Future[list[Attempt]]") -> list[Attempt]:
        while not self._asked_to_stop():
            wait([future], timeout=_POLL_SECONDS)
            if future.done():
                try:
                    return future.result()
                except UserError as failure:
                    raise StoppedEarlyError(failure) from failure
                except Exception:
                    if not self._asked_to_stop():
                        raise
        raise StoppedEarlyError

    def _entry(self, task: _Task, tries: list[Attempt], rejections: list[Rejection]) -> Entry:
        kind, last = task.bench.kind, tries[-1]
        accepted = len(rejections) < len(tries)
        provenance = Provenance(
            kind.digest,
            self.order.seed,
            datetime.now(UTC).isoformat(timespec="seconds"),
            round(sum(one.seconds for one in tries), 3),
            model=kind.spec.model if kind.spec.backend != "program" else "",
            model_digest=last.model_digest,
            asked=last.asked,
            mended=last.mended,
            verified=tuple(kind.spec.verifiers) if accepted else (),
        )
        return Entry(
            task.item.key,
            kind.name,
            task.item.index,
            "accepted" if accepted else "dropped",
            last.record,
            len(tries),
            provenance,
            reason="" if accepted else f"{rejections[-1].name}: {rejections[-1].reason}",
            rejections=tuple(rejections),
        )


def _is_near(kind: Kind) -> bool:
    return kind.spec.backend != "program"


def _tries(on: Bench, item: Item, first: int) -> list[Attempt]:
    """Tries from number `first` on: up to one that makes a record, or to the last allowed."""
    made: list[Attempt] = []
    for number in range(first, on.kind.spec.max_tries):
        made.append(attempt(on, item, number))
        if made[-1].record is not None:
            break
    return made


def rejections_by_name(entries: Iterable[Entry]) -> Counter[str]:
    """How often tries were rejected, by the name of the reason."""
    return Counter(rejection.name for entry in entries for rejection in entry.rejections)
