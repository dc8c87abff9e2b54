"""One budget for every run of a comparison: tokens, seconds or FLOPs of training.

The steps are derived from it before training, and the learning rate's schedule and warm-up from the
steps: nothing that happens meanwhile changes them. What a step takes is timed by `step_times.py`.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ys_llm.config.schema import Config
from ys_llm.errors import EXIT_USAGE, UsageError, UserError
from ys_llm.model.costs import flops_per_token
from ys_llm.model.language_model import Model
from ys_llm.training.budget import seconds_of, tokens_of, with_steps

UNITS = ("tokens", "seconds", "flops")
REPLACED = ("train.max_steps", "train.minutes")  # settings that a budget takes the place of
TRAINING_FLOPS = 3  # times the FLOPs of a forward pass: backward costs two


@dataclass(frozen=True)
class Budget:
    """What each run may use; seconds are counted by those of a step, one number for each stage."""

    unit: Literal["tokens", "seconds", "flops"]
    amount: float
    step_seconds: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """As it is typed."""
        return f"{self.unit}={self.amount:g}"

    @property
    def suffix(self) -> str:
        """The part of a run's name."""
        return f"-{self.unit}{self.amount:g}".replace("+", "")


def parse_budget(text: str) -> Budget:
    """`tokens=2e6`, `seconds=600` or `flops=1e15`; UsageError for anything else."""
    unit, _, number = text.partition("=")
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if unit in UNITS and 0 < amount < math.inf:
        return Budget(unit, amount)  # type: ignore[arg-type]
    expected = "tokens=2e6, seconds=600 or flops=1e15"
    raise UsageError(f"--budget must be like {expected}, found {text!r}")


def with_budget(config: Config, budget: Budget) -> Config:
    """The configuration with as many steps as the budget has room for.

    Stages keep their proportions. Raises UserError where the budget ends before the first step.
    """
    total = config.train.total_steps
    whole = _cost(config, budget)
    steps = int(total * budget.amount / whole)
    least = len(config.train.plan)
    if steps < least:
        raise UserError(
            f"the budget {budget.text} ends before {config.run} has done {least} "
            f"{'step' if least == 1 else 'steps'} of {whole / total:g} {budget.unit}",
            f"Type --budget {budget.unit}={100 * whole / total:.0g}, for example",
            exit_code=EXIT_USAGE,
        )
    fitted = with_steps(config, steps)
    return replace(fitted, train=replace(fitted.train, minutes=None))


def _cost(config: Config, budget: Budget) -> float:
    """The whole training, in the budget's unit."""
    if budget.unit == "tokens":
        return tokens_of(config.train)
    if budget.unit == "flops":
        return flops_of(config)
    return seconds_of(config.train, budget.step_seconds)


def flops_of(config: Config) -> float:
    """FLOPs of the whole training, 3 x forward, with the configured size of the vocabulary."""
    with torch.device("meta"):
        model = Model(config.model, vocab_size=config.tokenizer.vocab_size)
    return TRAINING_FLOPS * float(
        sum(
            stage.steps
            * (stage.batch_size * stage.seq_len)
            * flops_per_token(model, stage.seq_len, training=True)
            for stage in config.train.plan
        )
        * config.train.grad_accum_steps
    )
