"""Generates the missing items of a plan: tries run concurrently, decisions follow plan order.

So the same answers yield the same corpus, whichever came first and wherever it was interrupted.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ys_llm.config.strict_reader import raise_problems
from ys_llm.errors import EXIT_BACKEND_DOWN, UserError, command_line
from ys_llm.gendata.backends.chat import BackEnd, ChatAnswer, ChatRequest, too_long
from ys_llm.gendata.generation.attempts import Attempt, attempt
from ys_llm.gendata.generation.concurrency import Concurrency
from ys_llm.gendata.generation.duplicates import Duplicates
from ys_llm.gendata.generation.journal import ItemJournal, JournalEntry, Origin, Rejection
from ys_llm.gendata.generation.progress_bar import ProgressBar
from ys_llm.gendata.recipes import items
from ys_llm.gendata.recipes.items import PlannedItem
from ys_llm.gendata.recipes.recipe import Recipe

MAX_DROPS = 20  # in a row; then the server or the recipe is broken
_FEW_DROPS = 5  # in a row at the end of a run, if they are most of it
_POLL_SECONDS = 0.05  # between two checks of `should_stop`
_AHEAD = 4  # items per worker in flight before the first of them is decided

_Pending = tuple[Recipe, PlannedItem, "Future[list[Attempt]]"]


@dataclass(frozen=True)
class Plan:
    """What to generate: `count` items of each kind (None: as its file says), from this seed.

    With a `command`, the one that was typed, the corpus gets a README that names it. With
    `retry_dropped`, items that were dropped get further tries.
    """

    recipes: tuple[Recipe, ...]
    seed: int = 0
    count: int | None = None
    command: str = ""
    retry_dropped: bool = False

    def items(self) -> Iterator[tuple[Recipe, PlannedItem]]:
        """Every item, kind by kind."""
        for recipe in self.recipes:
            for item in items.plan_items(recipe, seed=self.seed, count=self.count):
                yield recipe, item


class StoppedEarlyError(Exception):
    """Generation ended before the plan did: on request, or because of `failure`."""

    def __init__(self, failure: UserError | None = None) -> None:
        super().__init__(failure)
        self.failure = failure


class UselessAnswersError(UserError):
    """The model answers, but no answer is usable."""

    def __init__(self, drops: int, reason: str) -> None:
        super().__init__(
            f"the last {drops} items were all dropped, the last one because of {reason}",
            f"See what the model answers: `{command_line('gen-data', check=True)}`. Then give the "
            "same command with --retry-dropped.",
            exit_code=EXIT_BACKEND_DOWN,
        )


class Generator:
    """Generates the items of one plan: `planned` is all of it, `todo` what the journal lacks.

    The journal keeps the model's answers. Programs generate their records again each time, with the
    same result.
    """

    def __init__(self, plan: Plan, journal: ItemJournal, should_stop: Callable[[], bool]) -> None:
        self.plan, self._journal = plan, journal
        self.planned = list(plan.items())
        self._entries = dict(journal.entries)
        self._earlier: dict[str, JournalEntry] = {}  # dropped before, by key; tried again
        if plan.retry_dropped:
            keys = {item.key for _, item in self.planned}
            self._earlier = {
                key: self._entries.pop(key)
                for key, entry in journal.entries.items()
                if entry.status == "dropped" and key in keys
            }
        self.todo = [pair for pair in self.planned if pair[1].key not in self._entries]
        self.new_entries: list[JournalEntry] = []  # decided by this generator
        self._stop_requested, self._over = should_stop, threading.Event()
        self._duplicates = Duplicates()
        self._back_end: BackEnd | None = None
        self._concurrency = Concurrency(1)
        self._drops = 0  # in a row, of items whose text comes from a model

    def entries(self) -> Iterator[JournalEntry]:
        """All decided items of the plan, in its order."""
        decided = self._entries
        return (decided[item.key] for _, item in self.planned if item.key in decided)

    def unfinished(self) -> set[str]:
        """The kinds with undecided items."""
        return {recipe.name for recipe, item in self.todo if item.key not in self._entries}

    def run(
        self,
        connect: Callable[[], BackEnd],
        *,
        workers: int,
        other_kinds: Iterable[Mapping[str, Any]],
        progress: ProgressBar,
    ) -> None:
        """Decide all undecided items.

        `other_kinds` are the manifest's records of kinds outside the plan, which are not repeated.
        `connect` is called if a model is needed. Raises StoppedEarlyError, with all requests
        closed, and UserError for prompts that are too long.
        """
        raise_problems(long_prompts(self.todo))
        self._add_known(other_kinds)
        if any(recipe.uses_model for recipe, _ in self.todo):
            self._back_end = connect()
        self._concurrency = Concurrency(workers)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="gen-data")
        try:
            pending: deque[_Pending] = deque()
            for recipe, item in self.todo:
                future = pool.submit(self._attempts, recipe, item, self._tries_before(item))
                pending.append((recipe, item, future))
                if len(pending) > _AHEAD * workers:
                    self._show(self._decide(pending.popleft(), pool), progress)
            while pending:
                self._show(self._decide(pending.popleft(), pool), progress)
        finally:
            self._over.set()
            pool.shutdown(cancel_futures=True)
        self._check_end()

    def _show(self, entry: JournalEntry, progress: ProgressBar) -> None:
        progress.at_once = self._concurrency.limit
        progress.update(entry)

    def _add_known(self, other_kinds: Iterable[Mapping[str, Any]]) -> None:
        """Add existing records to the duplicates, so that none is repeated."""
        known: list[JournalEntry] = []
        for line in other_kinds:
            if line["key"] in self._entries:
                known.append(self._entries[line["key"]])
            else:
                self._duplicates.add_id(line["document"])
        for entry in [*known, *self.entries()]:
            if entry.record is not None and entry.status == "accepted":
                self._duplicates.add(entry.record, near=bool(entry.provenance.model))

    def _tries_before(self, item: PlannedItem) -> int:
        return self._earlier[item.key].tries if item.key in self._earlier else 0

    def _attempts(self, recipe: Recipe, item: PlannedItem, first: int) -> list[Attempt]:
        """Tries from number `first` on, up to one that yields a record or to the last allowed."""
        made: list[Attempt] = []
        for number in range(first, self._tries_before(item) + recipe.spec.max_tries):
            made.append(attempt(recipe, item, number, self._ask))
            if made[-1].record is not None:
                break
        return made

    def _ask(self, key: str, request: ChatRequest) -> ChatAnswer:
        """Ask the model, unless the journal has its answer; a new answer is journalled at once."""
        answer = self._journal.answer_to(key, request)
        if answer is None:
            assert self._back_end is not None, "programs do not ask"
            with self._concurrency.slot(self._should_stop):
                answer = self._back_end.ask(request, self._should_stop)
            self._concurrency.note(answer)
            self._journal.add_answer(key, request, answer)
        return answer

    def _should_stop(self) -> bool:
        return self._over.is_set() or self._stop_requested()

    def _decide(self, pending: _Pending, pool: ThreadPoolExecutor) -> JournalEntry:
        """Accept or drop an item: its first try that is not a duplicate counts."""
        recipe, item, future = pending
        first, tries = self._tries_before(item), list[Attempt]()
        rejections = list(self._earlier[item.key].rejections) if first else []
        while True:
            new = self._result(future)
            tries += new
            rejections += [one.rejection for one in new if one.rejection]
            record = tries[-1].record
            duplicate = record and self._duplicates.add(record, near=recipe.uses_model)
            if duplicate:
                rejections.append(duplicate)
            if not duplicate or len(tries) >= recipe.spec.max_tries:
                break
            future = pool.submit(self._attempts, recipe, item, first + len(tries))
        return self._keep(recipe, self._entry(recipe, item, tries, rejections))

    def _result(self, future: "Future[list[Attempt]]") -> list[Attempt]:
        while not self._stop_requested():
            wait([future], timeout=_POLL_SECONDS)
            if future.done():
                try:
                    return future.result()
                except UserError as failure:
                    raise StoppedEarlyError(failure) from failure
                except Exception:
                    if not self._stop_requested():
                        raise
        raise StoppedEarlyError

    def _entry(
        self,
        recipe: Recipe,
        item: PlannedItem,
        tries: list[Attempt],
        rejections: list[Rejection],
    ) -> JournalEntry:
        last, n_tries = tries[-1], self._tries_before(item) + len(tries)
        accepted = len(rejections) < n_tries
        provenance = Origin(
            recipe.digest,
            self.plan.seed,
            datetime.now(UTC).isoformat(timespec="seconds"),
            round(sum(one.seconds for one in tries), 3),
            model=recipe.spec.model if recipe.uses_model else "",
            model_digest=last.model_digest,
            server=last.server,
            requests=tuple(last.requests),
            fixed=last.fixed,
            verified=tuple(recipe.spec.verifiers) if accepted else (),
        )
        return JournalEntry(
            item.key,
            recipe.name,
            item.index,
            "accepted" if accepted else "dropped",
            last.record,
            n_tries,
            provenance,
            reason="" if accepted else f"{rejections[-1].name}: {rejections[-1].reason}",
            rejections=tuple(rejections),
        )

    def _keep(self, recipe: Recipe, entry: JournalEntry) -> JournalEntry:
        """Record a decision. Raises StoppedEarlyError after too many drops in a row."""
        self._entries[entry.key] = entry
        self.new_entries.append(entry)
        if recipe.uses_model:
            self._journal.append(entry)
            self._drops = 0 if entry.status == "accepted" else self._drops + 1
            if self._drops >= MAX_DROPS:
                raise StoppedEarlyError(UselessAnswersError(self._drops, entry.reason))
        return entry

    def _check_end(self) -> None:
        """Raise StoppedEarlyError if a model was asked and most of the run, to its end, is drops.

        A run shorter than MAX_DROPS would otherwise hide a model that repeats itself.
        """
        made = [entry for entry in self.new_entries if entry.provenance.model]
        none = not any(e.status == "accepted" for e in self.entries() if e.provenance.model)
        if self._drops and (none or (self._drops >= _FEW_DROPS and 2 * self._drops > len(made))):
            raise StoppedEarlyError(UselessAnswersError(self._drops, made[-1].reason))


def long_prompts(planned: Iterable[tuple[Recipe, PlannedItem]]) -> list[str]:
    """The first prompt of each kind that is too long even before answers are filled in."""
    problems: dict[str, str] = {}
    for recipe, item in planned:
        if recipe.name in problems or not recipe.uses_model:
            continue
        unknown = {step.name: "" for step in recipe.spec.ask}
        for step in recipe.spec.ask:
            prompt, system = items.prompt_of(step, item, unknown)
            options = items.options_of(recipe, step, item, attempt=0)
            if reason := too_long(prompt, system, options):
                problems[recipe.name] = (
                    f"{recipe.name}, item {item.index}, step {step.name}: {reason}. "
                    "Raise sampling.num_ctx in the kind file, or shorten the prompt."
                )
                break
    return list(problems.values())


def rejections_by_name(entries: Iterable[JournalEntry]) -> Counter[str]:
    """How many tries were rejected, by the name of the reason."""
    return Counter(rejection.name for entry in entries for rejection in entry.rejections)
