"""Associative recall and copying over ids that mean nothing, to train small models on.

    recall              k1 v1 k2 v2 ... | k2 v2 k1 v1 ...         each v after | is to be predicted
    copying             a b c ... | a b c ...                     everything after |
    selective_copying   . . a . b . . c ... | a b c ...           with blanks between the tokens

`recall` is the multi-query associative recall of Arora et al. 2023 (Zoology): keys and values are
drawn anew for each example, and the keys come again in another order. An example is a function of
the seed and its number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.data.shards import Int64Array

N_SYMBOLS = 64  # keys; as many values, which are also what is copied
SEPARATOR, BLANK = 2 * N_SYMBOLS, 2 * N_SYMBOLS + 1
VOCAB_SIZE = 2 * N_SYMBOLS + 2
CHANCE = 1 / N_SYMBOLS  # of an answer that is guessed
_COPIED = 8  # tokens of selective copying

_Make = Callable[[np.random.Generator, int], tuple[Int64Array, int]]


@dataclass(frozen=True)
class Task:
    """`size` counts what `unit` says. `make` gives an example and where its answers begin."""

    name: str
    unit: str
    sizes: tuple[int, ...]
    every: int  # one token of so many after the separator is an answer, the last of them
    make: _Make


@dataclass(frozen=True)
class Examples:
    """Inputs and targets, B x T; a target that is no answer is IGNORE_INDEX."""

    inputs_BT: Tensor
    targets_BT: Tensor


def examples(task: Task, size: int, *, seed: int, first: int, number: int) -> Examples:
    """Examples `first` to `first + number` of this seed."""
    rows, targets = [], []
    for index in range(first, first + number):
        ids, begin = task.make(np.random.default_rng([seed, index, size]), size)
        wanted = ids.copy()
        wanted[: begin + task.every - 1] = IGNORE_INDEX
        if task.every > 1:
            wanted[begin :: task.every] = IGNORE_INDEX
        rows.append(ids[:-1])
        targets.append(wanted[1:])
    return Examples(torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(targets)))


def _recall(draw: np.random.Generator, n_pairs: int) -> tuple[Int64Array, int]:
    keys = draw.permutation(N_SYMBOLS)[:n_pairs]
    values = N_SYMBOLS + draw.integers(N_SYMBOLS, size=n_pairs)
    order = draw.permutation(n_pairs)
    pairs = np.stack([keys, values], 1)
    return np.concatenate([pairs.ravel(), [SEPARATOR], pairs[order].ravel()]), 2 * n_pairs + 1


def _copying(draw: np.random.Generator, n_tokens: int) -> tuple[Int64Array, int]:
    tokens = N_SYMBOLS + draw.integers(N_SYMBOLS, size=n_tokens)
    return np.concatenate([tokens, [SEPARATOR], tokens]), n_tokens + 1


def _selective(draw: np.random.Generator, distance: int) -> tuple[Int64Array, int]:
    tokens = N_SYMBOLS + draw.integers(N_SYMBOLS, size=_COPIED)
    spread = np.full(distance, BLANK)
    spread[np.sort(draw.permutation(distance)[:_COPIED])] = tokens
    return np.concatenate([spread, [SEPARATOR], tokens]), distance + 1


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("recall", "pairs", (2, 4, 8, 16, 32), 2, _recall),
        Task("copying", "tokens", (4, 8, 16, 32, 64), 1, _copying),
        Task("selective_copying", "distance", (8, 16, 32, 64, 128), 1, _selective),
    )
}
