"""Associative recall, copying and state tracking over ids that mean nothing, to train models on.

    recall              k1 v1 k2 v2 ... | k2 v2 k1 v1 ...         each v after | is to be predicted
    copying             a b c ... | a b c ...                     everything after |
    selective_copying   . . a . b . . c ... | a b c ...           with blanks between the tokens
    parity, s3, s5      x1 x2 x3 ...                              after each x_t, p_t = x_t p_(t-1)

`recall` is the multi-query associative recall of Arora et al. 2023 (Zoology): keys and values are
drawn anew for each example, and the keys come again in another order.

State tracking is that of Merrill et al. 2024 (The illusion of state in state-space models): a token
for each permutation of n objects, drawn evenly, and asked at every token the product so far, which
is a permutation again; the later one is applied after the earlier ones. n is 2 (`parity`: 1 swaps),
3 or 5. The longest texts are longer than all that were trained: these a model answers by the state
that it carries, and not by what it has learned for each length.

An example is a function of the seed, of its number, and of whether it is held out. A hash of its
text decides which ones are, so that no text is both trained and evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b
from itertools import accumulate, permutations
from math import factorial

import numpy as np
import torch
from torch import Tensor

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.data.shards import Int64Array

N_SYMBOLS = 64  # keys; as many values, which are also what is copied
SEPARATOR, BLANK = 2 * N_SYMBOLS, 2 * N_SYMBOLS + 1
_COPIED = 8  # tokens of selective copying
_HELD_OUT = 8  # one text of so many is evaluated, the others are trained

_Make = Callable[[np.random.Generator, int], tuple[Int64Array, Int64Array]]


@dataclass(frozen=True)
class Task:
    """`size` counts what `unit` says. `make` gives the inputs and the targets of one example.

    The `longer` sizes are evaluated and not trained. `chance` is the share of right guesses.
    """

    name: str
    unit: str
    vocab_size: int
    chance: float
    make: _Make
    sizes: tuple[int, ...]
    longer: tuple[int, ...] = ()


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


def _after(ids: Int64Array, begin: int, every: int = 1) -> tuple[Int64Array, Int64Array]:
    """Predict the ids from `begin` on, of each `every` the last."""
    targets = np.full_like(ids, IGNORE_INDEX)
    targets[begin + every - 1 :: every] = ids[begin + every - 1 :: every]
    return ids[:-1], targets[1:]


def _recall(draw: np.random.Generator, n_pairs: int) -> tuple[Int64Array, Int64Array]:
    keys = draw.permutation(N_SYMBOLS)[:n_pairs]
    values = N_SYMBOLS + draw.integers(N_SYMBOLS, size=n_pairs)
    order = draw.permutation(n_pairs)
    pairs = np.stack([keys, values], 1)
    ids = np.concatenate([pairs.ravel(), [SEPARATOR], pairs[order].ravel()])
    return _after(ids, 2 * n_pairs + 1, every=2)


def _copying(draw: np.random.Generator, n_tokens: int) -> tuple[Int64Array, Int64Array]:
    tokens = N_SYMBOLS + draw.integers(N_SYMBOLS, size=n_tokens)
    return _after(np.concatenate([tokens, [SEPARATOR], tokens]), n_tokens + 1)


def _selective(draw: np.random.Generator, distance: int) -> tuple[Int64Array, Int64Array]:
    tokens = N_SYMBOLS + draw.integers(N_SYMBOLS, size=_COPIED)
    spread = np.full(distance, BLANK)
    spread[np.sort(draw.permutation(distance)[:_COPIED])] = tokens
    return _after(np.concatenate([spread, [SEPARATOR], tokens]), distance + 1)


@cache
def products(n_objects: int) -> list[list[int]]:
    """Row a, column b: the number of the permutation that does b first and then a.

    Permutations are numbered in lexicographic order; 0 changes nothing.
    """
    every = list(permutations(range(n_objects)))
    numbers = {permutation: number for number, permutation in enumerate(every)}
    return [[numbers[tuple(a[i] for i in b)] for b in every] for a in every]


def _tracking(
    n_objects: int, draw: np.random.Generator, length: int
) -> tuple[Int64Array, Int64Array]:
    table = products(n_objects)
    inputs = draw.integers(len(table), size=length)
    return inputs, np.array(list(accumulate(inputs.tolist(), lambda so_far, x: table[x][so_far])))


_memory = partial(Task, vocab_size=2 * N_SYMBOLS + 2, chance=1 / N_SYMBOLS)


def _state(name: str, unit: str, n_objects: int) -> Task:
    size = factorial(n_objects)
    make = partial(_tracking, n_objects)
    return Task(name, unit, size, 1 / size, make, sizes=(16, 32), longer=(64, 128, 256))


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _memory("recall", "pairs", make=_recall, sizes=(2, 4, 8, 16, 32)),
        _memory("copying", "tokens", make=_copying, sizes=(4, 8, 16, 32, 64)),
        _memory("selective_copying", "distance", make=_selective, sizes=(8, 16, 32, 64, 128)),
        _state("parity", "bits", 2),
        _state("s3", "permutations", 3),
        _state("s5", "permutations", 5),
    )
}
