"""A keyed permutation of 0..n-1, computed index by index: nothing is listed or shuffled.

A Feistel network permutes the numbers of 2h bits, 4**h >= n: in each round (l, r) becomes
(r, l xor F(r)), where F is any function of h bits. A result of n or more goes through again (cycle
walking; Black and Rogaway, 2002), fewer than 4 times on average.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

ROUNDS = 4  # enough that the order shows no pattern

UInt64Array = npt.NDArray[np.uint64]


def permute(index: int, n: int, round_function: Callable[[int, int], int]) -> int:
    """Return where the permutation takes `index`; `round_function` gets the round and r."""
    half_bits = _half_bits(n)
    while (index := int(_feistel(index, half_bits, round_function))) >= n:
        pass
    return index


def permute_array(
    indices: UInt64Array, n: int, round_function: Callable[[int, UInt64Array], UInt64Array]
) -> UInt64Array:
    """Return where the permutation takes each of `indices`."""
    half_bits = _half_bits(n)
    values = indices.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, round_function)
        outside = values >= n
    return values


def permute_keyed(indices: UInt64Array, n: int, *, seed: int, epoch: int) -> UInt64Array:
    """Return where the permutation of 0..n-1 that belongs to (seed, epoch) takes each index."""
    keys = draw("permute", seed, epoch, n=ROUNDS)
    return permute_array(indices, n, lambda number, values: mix(values ^ keys[number]))


def mix(x: UInt64Array) -> UInt64Array:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every input bit reaches every output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(purpose: str, seed: int, epoch: int, *, n: int = 1) -> UInt64Array:
    """Return n numbers of 64 bits that depend on the arguments alone, on every machine."""
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=8 * n).digest()
    return np.frombuffer(digest, dtype="<u8")


def _half_bits(n: int) -> int:
    return max(1, -(-(n - 1).bit_length() // 2))


def _feistel(value: Any, half_bits: int, round_function: Callable[[int, Any], Any]) -> Any:
    """Apply all rounds to an int or to an array."""
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (round_function(number, right) & mask)
    return (left << half_bits) | right
