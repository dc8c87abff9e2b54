"""State tracking: after each token, the product of all permutations so far.

    parity, s3, s5      x1 x2 x3 ...                  after each x_t, p_t = x_t p_(t-1)

That of Merrill et al. 2024 (The illusion of state in state-space models): a token for each
permutation of n objects, drawn evenly, and asked at every token the product so far, which is a
permutation again; the later one is applied after the earlier ones. n is 2 (`parity`: 1 swaps), 3 or
5.

Protocol. Lengths: 16 and 32 are trained; 64, 128 and 256 are only evaluated: these a model answers
by the state that it carries, and not by what it has learned for each length. Seed: that of the
run's configuration. Score: the share of right states in the second half of each text, over 256
held-out examples of each length, with the standard error over examples. Chance: 1/2, 1/6, 1/120.
`ys compare --task` alone: no text teaches it, so that a model of text cannot be asked.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import accumulate, permutations
from math import factorial

import numpy as np

from ys_llm.data.shards import Int64Array
from ys_llm.evaluation.tasks.task import Task


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


def _task(name: str, unit: str, n_objects: int) -> Task:
    size = factorial(n_objects)
    make = partial(_tracking, n_objects)
    return Task(name, unit, size, 1 / size, make, sizes=(16, 32), longer=(64, 128, 256))


PARITY, S3, S5 = (
    _task("parity", "bits", 2),
    _task("s3", "permutations", 3),
    _task("s5", "permutations", 5),
)
