"""Near duplicates: texts whose sets of word shingles are nearly equal.

Two texts are near duplicates if |A & B| / |A | B| (Jaccard) of their sets of 5-word shingles
reaches a threshold. MinHash (Broder, 1997) finds candidates: under a random order of all shingles,
two sets share their minimum with a probability equal to their Jaccard similarity. The 126 minima of
a text are divided into bands; texts that agree in all of a band are candidates, and their sets
are compared exactly. Nothing is random at run time: the result is the same on every machine.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 5
HASHES = 126  # many divisors, so bands of every useful height fit
RECALL = 0.99  # at the threshold itself, by the formula of `band_rows`

# Keeps ASCII letters and digits, and all other Unicode. A table, not a regular expression: this is
# most of the work.
_ONLY_WORDS = bytes(byte if byte > 127 or chr(byte).isalnum() else 32 for byte in range(256))
_AT_ONCE = 4096  # shingles; 126 rows of them are 2 MB
_ESTIMATE_MARGIN = 0.2  # one sigma of the estimate from 126 minima is at most 0.045
_MIX = np.uint64(0x9E3779B97F4A7C15)
_HIGH = np.uint64(32)

Shingles = NDArray[np.uint64]
Signature = NDArray[np.uint32]


class _Seeds(NamedTuple):
    factors: NDArray[np.uint32]
    terms: NDArray[np.uint32]


def _make_seeds() -> _Seeds:
    # SHAKE, not numpy's generator: its streams may change between versions.
    draws = hashlib.shake_128(b"ys near duplicates").digest(8 * HASHES)
    numbers = np.frombuffer(draws, dtype="<u4").astype(np.uint32)
    return _Seeds(numbers[:HASHES, None] | np.uint32(1), numbers[HASHES:, None])


_SEEDS = _make_seeds()


def band_rows(threshold: float) -> int:
    """The highest band that still finds pairs at threshold t: 1-(1-t^rows)^bands >= RECALL."""
    fitting = [
        rows
        for rows in range(1, HASHES + 1)
        if 1 - (1 - threshold**rows) ** (HASHES // rows) >= RECALL
    ]
    return max(fitting, default=1)


@lru_cache(maxsize=1 << 17)
def _word_hash(word: bytes) -> int:
    """64 bits, the same on every machine, unlike Python's own hashes."""
    if len(word) > 8:
        word = hashlib.blake2b(word, digest_size=8).digest()
    return int.from_bytes(word, "little")


def shingles_of(text: str) -> Shingles:
    """The sorted set of the text's 5-word shingles, as hashes; a short text is one shingle."""
    words = text.lower().encode("utf-8", "replace").translate(_ONLY_WORDS).split()
    values = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    count = max(1, len(values) - SHINGLE_WORDS + 1)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(min(SHINGLE_WORDS, len(values))):
        mixed = (mixed ^ values[offset : offset + count]) * _MIX
        mixed ^= mixed >> _HIGH
    mixed.sort()
    return mixed[np.concatenate(([True], mixed[1:] != mixed[:-1]))]


def signature_of(shingles: Shingles) -> Signature:
    """The 126 minima of a set, each under its own order."""
    minima = np.full(HASHES, 0xFFFFFFFF, dtype=np.uint32)
    short = (shingles >> _HIGH).astype(np.uint32)
    for begin in range(0, len(short), _AT_ONCE):
        part = _SEEDS.factors * short[begin : begin + _AT_ONCE] + _SEEDS.terms
        np.minimum(minima, part.min(axis=1), out=minima)
    return minima


def jaccard(one: Shingles, other: Shingles) -> float:
    """|A & B| / |A | B| of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


@dataclass(frozen=True)
class Match:
    """An earlier text, by its number, and the similarity to it."""

    number: int
    jaccard: float


class NearDuplicates:
    """An index of texts that finds the nearest earlier text.

    Greedy: a text with a match is not added, so no two texts of the index are near duplicates.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = band_rows(threshold)
        self._bands = HASHES // self._rows
        self._buckets: dict[int, list[int]] = {}
        self._signatures = np.empty((1024, HASHES), dtype=np.uint32)
        self._shingles: list[Shingles] = []
        self._numbers: list[int] = []

    def add(self, number: int, shingles: Shingles, signature: Signature) -> Match | None:
        """The nearest text at or above the threshold; if there is none, add this text."""
        keys = self._keys(signature)
        match = self._nearest(keys, shingles, signature)
        if match is None:
            self._keep(number, keys, shingles, signature)
        return match

    def _keys(self, signature: Signature) -> list[int]:
        rows = signature[: self._bands * self._rows].reshape(self._bands, self._rows)
        mixed = np.arange(1, self._bands + 1, dtype=np.uint64) * _MIX
        for column in rows.astype(np.uint64).T:
            mixed = (mixed ^ column) * _MIX
            mixed ^= mixed >> _HIGH
        keys: list[int] = mixed.tolist()
        return keys

    def _nearest(self, keys: list[int], shingles: Shingles, signature: Signature) -> Match | None:
        places = {place for key in keys for place in self._buckets.get(key, ())}
        if not places:
            return None
        candidates = np.array(sorted(places))
        estimates = (self._signatures[candidates] == signature).mean(axis=1)
        best: Match | None = None
        for place in candidates[estimates >= self.threshold - _ESTIMATE_MARGIN]:
            nearness = jaccard(self._shingles[place], shingles)
            if nearness >= self.threshold and (best is None or nearness > best.jaccard):
                best = Match(self._numbers[place], nearness)
        return best

    def _keep(self, number: int, keys: list[int], shingles: Shingles, signature: Signature) -> None:
        place = len(self._numbers)
        if place == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[place] = signature
        self._shingles.append(shingles)
        self._numbers.append(number)
        for key in keys:
            self._buckets.setdefault(key, []).append(place)


def find_pairs(texts: list[str], threshold: float) -> list[tuple[int, int, float]]:
    """Every pair (i < j) of texts at or over the threshold that banding finds, with its Jaccard."""
    rows = band_rows(threshold)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    sets = [shingles_of(text) for text in texts]
    for number, shingles in enumerate(sets):
        signature = signature_of(shingles)
        for band in range(HASHES // rows):
            key = (band, signature[band * rows : (band + 1) * rows].tobytes())
            buckets.setdefault(key, []).append(number)
    candidates = {
        (one, other)
        for members in buckets.values()
        for place, one in enumerate(members)
        for other in members[place + 1 :]
    }
    nearness = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in candidates}
    return sorted((*pair, value) for pair, value in nearness.items() if value >= threshold)
