"""Counters and times of the server, as Prometheus reads them."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from ys_llm.inference.generation import Drawn, Event, Finished, Generation, PromptRead

_RECENT = 2048  # times that the quantiles are of
_QUANTILES = (0.5, 0.99)


class Metrics:
    """What has happened since the server began; all of it in the event loop's thread."""

    def __init__(self) -> None:
        self.requests, self.tokens = Counter[tuple[str, int]](), Counter[str]()
        self.n_prefix_hits = self.n_prompts = 0
        self._first, self._between = _Times(), _Times()
        self._last: dict[Generation, float] = {}

    def count_request(self, path: str, status: int) -> None:
        """Count an exchange; 499 is a client that left before the answer."""
        self.requests[path, status] += 1

    def note(self, generation: Generation, event: Event) -> None:
        """Count what has happened to a generation."""
        now = time.perf_counter()
        if isinstance(event, PromptRead):
            self.n_prompts += 1
            self.n_prefix_hits += event.n_cached > 0
            self.tokens["cached"] += event.n_cached
            self.tokens["read"] += event.n_tokens - event.n_cached
        elif isinstance(event, Drawn):
            self.tokens["generated"] += 1
            before = self._last.get(generation)
            if before is None:
                self._first.add(now - generation.submitted_at)
            else:
                self._between.add(now - before)
            self._last[generation] = now
        elif isinstance(event, Finished):
            self.forget(generation)

    def forget(self, generation: Generation) -> None:
        """It is over."""
        self._last.pop(generation, None)

    def text(self, gauges: Callable[[], Sequence[tuple[str, str, str, float]]]) -> str:
        """All of it; `gauges` are (name, help, labels, value)."""
        return "\n".join([*self._counters(), *_gauges(gauges()), *self._summaries()]) + "\n"

    def _counters(self) -> Iterator[str]:
        yield from _head("ys_requests_total", "counter", "HTTP requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'ys_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("ys_tokens_total", "counter", "Tokens: read, taken from a state, drawn.")
        for kind, count in sorted(self.tokens.items()):
            yield f'ys_tokens_total{{kind="{kind}"}} {count}'
        yield from _head("ys_prompts_total", "counter", "Prompts that were read.")
        yield f"ys_prompts_total {self.n_prompts}"
        yield from _head("ys_prefix_hits_total", "counter", "Prompts that began as one before did.")
        yield f"ys_prefix_hits_total {self.n_prefix_hits}"

    def _summaries(self) -> Iterator[str]:
        name, explained = "ys_first_token_seconds", "From the request to its first token."
        yield from self._first.lines(name, explained)
        name, explained = "ys_between_tokens_seconds", "From one token of an answer to the next."
        yield from self._between.lines(name, explained)


class _Times:
    """Count and sum of all times, and the recent ones."""

    def __init__(self) -> None:
        self._recent, self._count, self._sum = deque[float](maxlen=_RECENT), 0, 0.0

    def add(self, seconds: float) -> None:
        """Note one."""
        self._recent.append(seconds)
        self._count += 1
        self._sum += seconds

    def lines(self, name: str, explained: str) -> Iterator[str]:
        """A summary."""
        yield from _head(name, "summary", explained)
        recent = sorted(self._recent)
        for quantile in _QUANTILES if recent else ():
            value = recent[min(len(recent) - 1, int(quantile * len(recent)))]
            yield f'{name}{{quantile="{quantile:g}"}} {value:.6f}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {self._count}"


def label(value: str) -> str:
    """The value of a label, quoted."""
    return json.dumps(value, ensure_ascii=False)


def _head(name: str, kind: str, explained: str) -> list[str]:
    return [f"# HELP {name} {explained}", f"# TYPE {name} {kind}"]


def _gauges(gauges: Sequence[tuple[str, str, str, float]]) -> Iterator[str]:
    known = set[str]()
    for name, explained, labels, value in gauges:
        if name not in known:
            yield from _head(name, "gauge", explained)
            known.add(name)
        yield f"{name}{{{labels}}} {value:g}"
