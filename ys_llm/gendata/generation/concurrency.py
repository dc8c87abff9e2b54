"""How many requests a server gets at once: more while that makes it faster, fewer when it fails."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ys_llm.gendata.backends.chat import ChatAnswer

_START = 2  # requests at once, or as many as are allowed
_GAIN = 1.05  # more tokens a second than before: one more
_LOSS = 0.8  # fewer: one less
_ANSWERS = 2  # per request at once, before the rate is judged
_POLL_SECONDS = 0.05


class Concurrency:
    """At most `limit` requests at once, from 1 to `most`; for several threads.

    An answer that took more than one try (a busy server, a stall) halves the limit.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self.most, self.limit = most, min(_START, most)
        self._now, self._free = now, threading.Condition()
        self._running, self._best = 0, 0.0
        self._begin_window()

    def _begin_window(self) -> None:
        self._since, self._answers, self._tokens = self._now(), 0, 0

    @contextmanager
    def slot(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Wait for a place, hold it; without one too once `should_stop` is true."""
        with self._free:
            while self._running >= self.limit and not should_stop():
                self._free.wait(_POLL_SECONDS)
            self._running += 1
        try:
            yield
        finally:
            with self._free:
                self._running -= 1
                self._free.notify_all()

    def note(self, answer: ChatAnswer) -> None:
        """Take an answer into account."""
        with self._free:
            if answer.tries > 1:
                self.limit, self._best = max(1, self.limit // 2), 0.0
                self._begin_window()
                return
            self._answers += 1
            self._tokens += answer.eval_count
            if self._answers >= _ANSWERS * self.limit:
                self._judge(self._tokens / max(self._now() - self._since, 1e-9))

    def _judge(self, rate: float) -> None:
        """Compare a rate, in tokens a second, with the best one so far."""
        if rate > _GAIN * self._best:
            self._best = rate
            self.limit = min(self.most, self.limit + 1)
        elif rate < _LOSS * self._best:
            self._best = rate
            self.limit = max(1, self.limit - 1)
        self._begin_window()
        self._free.notify_all()
