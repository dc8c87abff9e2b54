"""Times of several cases in interleaved rounds, so that other load affects all cases alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

SHORTEST_SECONDS = 0.02  # a case quicker than this is repeated within its turn
LONG_SECONDS = 2.0


@dataclass(frozen=True)
class Group:
    """Cases measured together: seconds of every round for each, and facts about one run."""

    name: str
    seconds: dict[str, list[float]]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much to measure; `quick` uses small shapes, to see that everything runs."""

    rounds: int
    quick: bool


def interleaved(
    cases: Mapping[str, Callable[[], object]], *, rounds: int, may_fail: Collection[str] = ()
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each case, round by round: a, b, c, a, b, c. Each is run before, once or twice.

    A case of `may_fail` that torch cannot run here is left out; second: its name and the reason.
    """
    repeats: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for name, run in cases.items():
        try:
            first = seconds_of(run)
        except RuntimeError as error:
            if name not in may_fail:
                raise
            left_out[name] = str(error).splitlines()[0]
            continue
        # A first run may compile, but not for seconds: a slow case needs no second.
        quick = first if first > LONG_SECONDS else seconds_of(run)
        repeats[name] = max(1, math.ceil(SHORTEST_SECONDS / max(quick, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in repeats}
    for _ in range(rounds):
        for name, times in repeats.items():
            seconds[name].append(seconds_of(cases[name], times=times))
    return seconds, left_out


def seconds_of(run: Callable[[], object], *, times: int = 1) -> float:
    """Seconds of one run, the mean of `times`."""
    begin = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - begin) / times
