"""The order in which the topics of a recipe are combined: evenly spread, decided by a seed.

Nothing is listed or shuffled, so item i of a billion costs as much as item 0.
"""

import hashlib
from collections.abc import Sequence
from math import prod

_ROUNDS = 4  # of a Feistel network; four suffice for an order without a visible pattern


def hash64(text: str) -> int:
    """A 64-bit hash, the same on every platform."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def permuted(index: int, size: int, key: str) -> int:
    """The image of `index` under a permutation of `range(size)` that `key` chooses.

    A Feistel network permutes the next power of four; walking its cycle until it falls below `size`
    permutes `range(size)` (Black and Rogaway, 2002).
    """
    assert 0 <= index < size, (index, size)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (hash64(f"{key}:{turn}:{right}") & mask)
        index = left << half_bits | right
        if index < size:
            return index


def combination(index: int, sizes: Sequence[int], key: str) -> list[int]:
    """Combination `index` of lists of these sizes: which value to take from each list.

    No combination repeats before all have appeared; no value of the longest list repeats before all
    of that list have appeared, and within each of its values the same holds for the next longest.
    """
    turn, index = divmod(index, prod(sizes))
    chosen = [0] * len(sizes)
    path = f"{key}:{turn}"
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        index, position = divmod(index, sizes[place])
        chosen[place] = permuted(position, sizes[place], f"{path}:{index}")
        path = f"{path}:{place}={chosen[place]}"
    return chosen
