"""A scheduler whose events are collected, for tests in its process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ys_llm.inference.generation import Drawn, Event, Failed, Finished, Generation
from ys_llm.inference.scheduler import Scheduler
from ys_llm.runs.model_files import LoadedRun

HANG_SECONDS = 60.0


@dataclass
class Collected:
    """What was delivered, in order; waiting for it fails after a minute."""

    events: list[tuple[Generation, Event]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    n_deliveries: int = 0

    def deliver(self, events: Sequence[tuple[Generation, Event]]) -> None:
        with self.changed:
            self.events += events
            self.n_deliveries += 1
            self.changed.notify_all()

    def until(self, is_true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(is_true, HANG_SECONDS), "nothing more happens"

    def of(self, generation: Generation) -> list[Event]:
        return [event for one, event in self.events if one is generation]

    def ids(self, generation: Generation) -> list[int]:
        return [event.token.id for event in self.of(generation) if isinstance(event, Drawn)]

    def text(self, generation: Generation) -> str:
        events = self.of(generation)
        return "".join(event.text for event in events if isinstance(event, Drawn | Finished))

    def is_over(self, generation: Generation) -> bool:
        return any(isinstance(event, Finished | Failed) for event in self.of(generation))

    def finished(self, generation: Generation) -> Finished:
        self.until(lambda: self.is_over(generation))
        last = self.of(generation)[-1]
        assert isinstance(last, Finished), last
        return last


@contextmanager
def scheduled(
    loaded: LoadedRun, *, cache_bytes: int = 1 << 24, max_rows: int = 64, max_waiting: int = 512
) -> Iterator[tuple[Scheduler, Collected]]:
    collected = Collected()
    scheduler = Scheduler(
        loaded,
        collected.deliver,
        cache_bytes=cache_bytes,
        max_rows=max_rows,
        max_waiting=max_waiting,
    )
    try:
        yield scheduler, collected
    finally:
        scheduler.close()
