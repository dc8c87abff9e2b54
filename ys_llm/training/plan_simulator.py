"""Simulates what a plan's closed forms average over: failures one by one, the slowest device."""

import math
import random
from statistics import fmean

from ys_llm.training.plan_formulas import Failures


def simulate_wall_seconds(
    failures: Failures, work: float, draw: random.Random, *, interval: float | None = None
) -> float:
    """Seconds of one run: stretches of work, each saved at its end; a failure repeats the stretch.

    Times between failures are exponential. A failure while restarting restarts again.
    """
    tau = failures.interval if interval is None else interval
    clock, left, restarting = 0.0, work, 0.0
    while True:
        life = draw.expovariate(1 / failures.mtbf)
        needed = restarting + left + math.ceil(left / tau) * failures.checkpoint
        if life >= needed:
            return clock + needed
        saved = max(0, math.floor((life - restarting) / (tau + failures.checkpoint)))
        clock, left, restarting = clock + life, left - saved * tau, failures.restart


def simulate_slowest(
    devices: int, jitter: float, draw: random.Random, *, steps: int, together: int = 1
) -> float:
    """Mean time of a step where all wait for the slowest every `together` steps; 1 without jitter.

    A device's step takes 1 + jitter times a standard normal number.
    """
    rounds = (
        max(sum(draw.gauss(1, jitter) for _ in range(together)) for _ in range(devices))
        for _ in range(steps // together)
    )
    return fmean(rounds) / together
