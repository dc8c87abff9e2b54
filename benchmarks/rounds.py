"""Times of several cases in interleaved rounds, so that other load affects all cases alike.

Time is given in advance: it decides how many rounds there are, and what has to be left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

SHORTEST_SECONDS = 0.02  # a case quicker than this is repeated within its turn
LONG_SECONDS = 2.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 11


@dataclass(frozen=True)
class Group:
    """Cases measured together: seconds of every round for each, and facts about one run."""

    name: str
    seconds: dict[str, list[float]]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """Seconds for one group; `quick` uses small shapes, to see that everything runs."""

    seconds: float = math.inf
    quick: bool = False

    @property
    def most_rounds(self) -> int:
        """More rounds than these say nothing new."""
        return FEWEST_ROUNDS if self.quick else MOST_ROUNDS


@dataclass
class Budget:
    """Time until `deadline` (of `time.perf_counter`), divided among named parts by weight.

    What one part leaves, or takes too much, is divided among those after it.
    """

    deadline: float
    weights: dict[str, float]

    def share(self, name: str) -> float:
        """Seconds for the next part; each part is asked for once."""
        weight = self.weights.pop(name)
        left = max(0.0, self.deadline - time.perf_counter())
        return left * weight / (weight + sum(self.weights.values()))


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    effort: Effort,
    *,
    keep: Collection[str] = (),
    may_fail: Collection[str] = (),
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each case, round by round: a, b, c, a, b, c. Each is run before, once or twice.

    There are as many rounds as the time allows, and at least three: where those do not fit, the
    slowest cases are left out, except those of `keep`. So is a case of `may_fail` that torch cannot
    run here. Second: what was left out, and why.
    """
    deadline = time.perf_counter() + effort.seconds
    costs, left_out = _calibrated(cases, deadline, keep, may_fail)
    left_out |= _drop_slowest(costs, deadline - time.perf_counter(), keep)
    repeats = {name: math.ceil(SHORTEST_SECONDS / max(cost, 1e-9)) for name, cost in costs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in costs}
    begun = time.perf_counter()
    for n_done in range(effort.most_rounds):
        now = time.perf_counter()
        one_round = (now - begun) / max(1, n_done)
        if n_done >= FEWEST_ROUNDS and now + one_round > deadline:
            break
        for name, times in repeats.items():
            seconds[name].append(seconds_of(cases[name], times=times))
    return seconds, left_out


def _calibrated(
    cases: Mapping[str, Callable[[], object]],
    deadline: float,
    keep: Collection[str],
    may_fail: Collection[str],
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of one run of each case after a warm-up, and the cases that get none."""
    costs: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, run in cases.items():
        if name not in keep and time.perf_counter() > deadline:
            left_out[name] = "no time was left for it"
            continue
        try:
            first = seconds_of(run)
        except RuntimeError as error:
            if name not in may_fail:
                raise
            left_out[name] = str(error).splitlines()[0]
            continue
        # A first run may compile, but not for seconds: a slow case needs no second.
        costs[name] = first if first > LONG_SECONDS else seconds_of(run)
    return costs, left_out


def _drop_slowest(costs: dict[str, float], seconds: float, keep: Collection[str]) -> dict[str, str]:
    """Removes from `costs` until the fewest rounds of the rest fit; returns what and why."""
    left_out = {}
    for name in sorted(costs.keys() - set(keep), key=lambda name: -costs[name]):
        if FEWEST_ROUNDS * sum(max(cost, SHORTEST_SECONDS) for cost in costs.values()) <= seconds:
            break
        left_out[name] = f"no time for it: one run takes {costs.pop(name):.2g} s"
    return left_out


def seconds_of(run: Callable[[], object], *, times: int = 1) -> float:
    """Seconds of one run, the mean of `times`."""
    begin = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - begin) / times
