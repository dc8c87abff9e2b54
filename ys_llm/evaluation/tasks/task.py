"""What a small task is: examples over ids that mean nothing, to train or to evaluate models on.

An example is a function of the seed, of its number, and of whether it is held out. A hash of its
text decides which ones are, so that no text is both trained and evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.data.shards import Int64Array

_HELD_OUT = 8  # one text of so many is evaluated, the others are trained

Make = Callable[[np.random.Generator, int], tuple[Int64Array, Int64Array]]


@dataclass(frozen=True)
class Task:
    """`size` counts what `unit` says. `make` gives the inputs and the targets of one example.

    The `longer` sizes are evaluated and not trained. `chance` is the share of right guesses. Each
    answer of an example counts, or with `whole` only an example whose answers are all right.
    """

    name: str
    unit: str
    vocab_size: int
    chance: float
    make: Make
    sizes: tuple[int, ...]
    longer: tuple[int, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Examples:
    """Inputs and targets, B x T; a target that is no answer is IGNORE_INDEX."""

    inputs_BT: Tensor
    targets_BT: Tensor


def examples(
    task: Task, size: int, *, seed: int, first: int, number: int, held_out: bool = False
) -> Examples:
    """Examples `first` to `first + number` of this seed, of those to train on or of the others."""
    made = [
        _example(task, size, np.random.default_rng([seed, index, size, held_out]), held_out)
        for index in range(first, first + number)
    ]
    inputs, targets = (torch.from_numpy(np.stack(rows)) for rows in zip(*made, strict=True))
    return Examples(inputs, targets)


def _example(
    task: Task, size: int, draw: np.random.Generator, held_out: bool
) -> tuple[Int64Array, Int64Array]:
    while True:
        inputs, targets = task.make(draw, size)
        if is_held_out(inputs) == held_out:
            return inputs, targets


def is_held_out(inputs: Int64Array) -> bool:
    """Whether a text is one of those that are never trained."""
    return blake2b(inputs.astype("<i8").tobytes(), digest_size=1).digest()[0] % _HELD_OUT == 0


def answers_from(ids: Int64Array, begin: int, every: int = 1) -> tuple[Int64Array, Int64Array]:
    """Inputs and targets that predict the ids from `begin` on, of each `every` the last."""
    targets = np.full_like(ids, IGNORE_INDEX)
    targets[begin + every - 1 :: every] = ids[begin + every - 1 :: every]
    return ids[:-1], targets[1:]
