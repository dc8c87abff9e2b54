"""The order in which the topics of a recipe are combined: evenly spread, decided by a seed.

Nothing is listed or shuffled, so item i of a billion costs as much as item 0.
"""

import hashlib
from collections.abc import Callable, Sequence
from math import prod

from ys_llm.data.permutation import permute


def hash64(text: str) -> int:
    """A 64-bit hash, the same on every platform."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


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
        chosen[place] = permute(position, sizes[place], _round_function(f"{path}:{index}"))
        path = f"{path}:{place}={chosen[place]}"
    return chosen


def _round_function(key: str) -> Callable[[int, int], int]:
    return lambda number, half: hash64(f"{key}:{number}:{half}")
