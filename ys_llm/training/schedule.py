"""The learning rate as a function of the step alone, so that resuming needs no scheduler state."""

import math
from collections.abc import Sequence

from ys_llm.config.schema import TrainConfig, in_steps
from ys_llm.training.resume import Rollback

_REPEATED_ROLLBACK = 4  # each rollback lowers the rate for this many times as long as the last one


def scheduled_rate(step: int, config: TrainConfig, *, total_steps: int) -> float:
    """The schedule's rate for optimizer step `step`, counted from 0, of `total_steps`.

    Warm-up: linear, reaching the peak at step `warmup_steps`. Then with p in [0, 1] the share of
    the steps after it that are done, and f the final rate as a share of the peak:
      linear                   f + (1 - f)(1 - p)
      cosine                   f + (1 - f)(1 + cos(pi p)) / 2
      constant_sqrt_cooldown   1 until the last `cooldown_fraction` of all steps, then with q its
                               share done  f + (1 - f)(1 - sqrt(q))           (Haegele et al. 2024)
    """
    peak, warmup = config.learning_rate, in_steps(config.warmup_steps, total_steps)
    warmup = min(warmup, total_steps - 1)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    final = config.final_learning_rate / peak
    p = (step - warmup) / max(1, total_steps - warmup)
    if config.schedule == "linear":
        share = 1 - p
    elif config.schedule == "cosine":
        share = (1 + math.cos(math.pi * p)) / 2
    else:
        cooldown = max(1, round(config.cooldown_fraction * total_steps))
        q = max(0.0, (step - (total_steps - cooldown)) / cooldown)
        share = 1 - math.sqrt(q)
    return peak * (final + (1 - final) * share)


def learning_rate(step: int, config: TrainConfig, rollbacks: Sequence[Rollback]) -> float:
    """The rate of optimizer step `step`: the schedule's, lowered for a while after each rollback.

    The first rollback lowers it until `rollback_steps` after the failed step, the next ones for 4
    and 16 times as long: one bad batch needs no lower rate for good, a rate that is too high does.
    """
    rate = scheduled_rate(step, config, total_steps=config.total_steps)
    for index, rollback in enumerate(rollbacks):
        length = config.rollback_steps * _REPEATED_ROLLBACK**index
        if rollback.back_to <= step < rollback.step + length:
            rate *= config.rollback_lr_factor
    return rate
