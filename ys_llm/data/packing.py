"""Documents packed into rows of one length, from their lengths alone.

The packing of a text is the same in every epoch, so that the place of any row is found without the
rows before it; which document of a length lies where is drawn anew (`document_rows.py`).

A unit is one row, or several that are read one after the other. It begins with the longest document
that is left; the longest that fits into the rest of the row follows, until nothing fits. A document
that does not fit then fills the row: it goes on in the unit's next row, or is cropped.
Units of the same lengths are one pattern, so there are about as many patterns as lengths.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ys_llm.data.shards import Int64Array

# A document is not divided for a gap of up to this part of a row; the gap stays empty.
_SMALL_GAP = 1 / 16
# Cropped in one pattern is at most this part of the documents of a length that are left: in another
# epoch the other part is, so that the ends of all of them are read.
_CROPPED = 1 / 4

_Slot = tuple[int, int]  # length of a document, and how much of it is read


@dataclass(frozen=True)
class Packing:
    """Patterns of units, numbered by p, and their slots, each for one document, numbered by s.

    Documents are counted in the order of their lengths. Repetition i of a pattern has document
    slot_document[s] + i in slot s, at slot_position[s] of the unit.
    """

    row_length: int
    pattern_repeats: Int64Array
    pattern_rows: Int64Array  # of one unit
    first_unit: Int64Array  # of each pattern, and the number of all units
    first_row: Int64Array  # of each pattern, and the number of all rows
    first_slot: Int64Array  # of each pattern, and the number of all slots
    slot_document: Int64Array
    slot_position: Int64Array
    slot_taken: Int64Array  # tokens of the document that are read

    @property
    def n_rows(self) -> int:
        """Return the rows of one epoch."""
        return int(self.first_row[-1])

    @property
    def n_units(self) -> int:
        """Return the units of one epoch."""
        return int(self.first_unit[-1])


def pack(lengths: Int64Array, row_length: int, *, crop: bool) -> Packing:
    """Return the packing of documents of these lengths, each at least 1."""
    values, counts = np.unique(lengths, return_counts=True)
    pool = _Pool(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    next_document = dict(zip(values.tolist(), (np.cumsum(counts) - counts).tolist(), strict=True))
    repeats, rows, sizes = list[int](), list[int](), list[int]()
    documents, positions, taken = list[int](), list[int](), list[int]()
    while pool:
        unit = list(_unit(pool, row_length, crop=crop, number=len(sizes)))
        repeats.append(1 + pool.take_again(unit))
        sizes.append(len(unit))
        end = 0
        for length, n_taken in unit:
            documents.append(next_document[length])
            positions.append(end)
            taken.append(n_taken)
            next_document[length] += repeats[-1]
            end += n_taken
        rows.append(-(-end // row_length))
    n_repeats, n_rows = _array(repeats), _array(rows)
    return Packing(
        row_length,
        n_repeats,
        n_rows,
        _firsts(n_repeats),
        _firsts(n_repeats * n_rows),
        _firsts(_array(sizes)),
        _array(documents),
        _array(positions),
        _array(taken),
    )


def _unit(pool: _Pool, row_length: int, *, crop: bool, number: int) -> Iterator[_Slot]:
    """Take the documents of one unit out of the pool."""
    end, gap, length = 0, row_length, pool.longest()
    while length is not None:
        pool.take(length)
        taken = min(length, gap) if crop else length
        yield length, taken
        end += taken
        gap = -end % row_length
        length = pool.longest(gap)
        if length is None and gap > _SMALL_GAP * row_length:
            length = pool.any(number) if crop else pool.longest()


class _Pool:
    """How many documents of each length are left."""

    def __init__(self, counts: dict[int, int]) -> None:
        self._counts = counts
        self._lengths = sorted(counts)

    def __bool__(self) -> bool:
        return bool(self._lengths)

    def longest(self, limit: int | None = None) -> int | None:
        """Return the greatest length of at most `limit` that is left."""
        found = len(self._lengths) if limit is None else bisect_right(self._lengths, limit)
        return self._lengths[found - 1] if found else None

    def any(self, number: int) -> int | None:
        """Return one of the lengths that are left: for successive numbers, all over the range."""
        golden = (number * 0.6180339887498949) % 1  # its multiples lie evenly (Weyl)
        return self._lengths[int(golden * len(self._lengths))] if self._lengths else None

    def take(self, length: int, n: int = 1) -> None:
        """Remove n documents of this length."""
        self._counts[length] -= n
        if not self._counts[length]:
            del self._lengths[bisect_right(self._lengths, length) - 1]

    def take_again(self, unit: list[_Slot]) -> int:
        """Take the documents of as many more units like this one as there are; return how many."""
        uses = Counter(length for length, _ in unit)
        more = min(self._counts[length] // n for length, n in uses.items())
        for length, taken in unit:
            if taken < length:
                more = min(more, int(_CROPPED * self._counts[length]))
        for length, n in uses.items() if more else ():
            self.take(length, more * n)
        return more


def _array(values: list[int]) -> Int64Array:
    return np.array(values, dtype=np.int64)


def _firsts(sizes: Int64Array) -> Int64Array:
    return np.concatenate([[0], np.cumsum(sizes)])
