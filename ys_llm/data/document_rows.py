"""Rows that begin at documents: the packing of a shard, and what each batch reads of it.

Place b of the batch reads its share of the rows of an epoch, one after the other, and then its
share of the next: of R rows those from floor(b R / B) to floor((b + 1) R / B). Every epoch has
another order of units and another document of the right length in each slot; both depend on (seed,
epoch) alone.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ys_llm.config.schema import LongDocuments
from ys_llm.data.packing import Packing, pack
from ys_llm.data.permutation import draw, mix, permute_keyed
from ys_llm.data.shards import Int64Array, TokenShard

EMPTY = -1  # the position of a column that no document fills


@dataclass(frozen=True)
class RowShares:
    """What the rows of an epoch hold, as fractions.

    padding: columns without a document; unread: tokens that an epoch leaves out, never: that every
    epoch leaves out; apart: tokens that are read in another row than their document's first.
    """

    rows: int
    padding: float
    unread: float
    never: float
    apart: float


@dataclass(frozen=True, eq=False)
class DocumentRows:
    """The documents of a shard in rows; `lengths` are those that they are packed by."""

    data: TokenShard
    packing: Packing
    lengths: Int64Array
    long_documents: LongDocuments

    def positions(
        self, index: int, *, batch_size: int, seed: int
    ) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Return the tokens that batch `index` reads, by position, and which rows continue nothing.

        A row continues nothing where its place begins with its share of an epoch.
        """
        n_rows = self.packing.n_rows
        epochs_at_once = max(1, -(-batch_size // n_rows))  # so that every place has a row
        borders = np.arange(batch_size + 1) * epochs_at_once * n_rows // batch_size
        times, done = np.divmod(index, np.diff(borders))
        ahead, numbers = np.divmod(borders[:-1] + done, n_rows)
        epochs = times * epochs_at_once + ahead
        positions = np.full((batch_size, self.packing.row_length), EMPTY, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            documents = _document_order(self, seed, epoch)
            places = np.flatnonzero(epochs == epoch)
            rows = self._rows(numbers[places], seed, epoch)
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                found = self._row_positions(row, documents)
                positions[place, : len(found)] = found
        return positions, done == 0

    def shares(self) -> RowShares:
        """Return what the rows hold."""
        packing, total = self.packing, self.data.n_inputs
        slots = np.diff(packing.first_slot)
        times = np.repeat(packing.pattern_repeats, slots)
        read = int((times * packing.slot_taken).sum())
        first_row = packing.row_length - packing.slot_position % packing.row_length
        apart = int((times * np.maximum(0, packing.slot_taken - first_row)).sum())
        return RowShares(
            packing.n_rows,
            1 - read / (packing.n_rows * packing.row_length),
            1 - read / total,
            1 - self._read_at_most() / total,
            apart / read,
        )

    def _read_at_most(self) -> int:
        """Return how many tokens some epoch reads: a length's most generous slot, for each."""
        ordered = np.sort(self.lengths)
        _, ranks, counts = np.unique(ordered, return_inverse=True, return_counts=True)
        most = np.zeros(len(counts), dtype=np.int64)
        np.maximum.at(most, ranks[self.packing.slot_document], self.packing.slot_taken)
        return int((most * counts).sum())

    def _rows(self, numbers: Int64Array, seed: int, epoch: int) -> Int64Array:
        """Return the rows with these numbers in the order of the epoch."""
        packing = self.packing
        if self.long_documents != "carry":
            asked = numbers.astype(np.uint64)
            permuted = permute_keyed(asked, packing.n_rows, seed=seed, epoch=epoch)
            return permuted.astype(np.int64)
        units, first_numbers = _unit_order(self, seed, epoch)
        found = np.searchsorted(first_numbers, numbers, side="right") - 1
        unit, row_of_unit = units[found], numbers - first_numbers[found]
        pattern = np.searchsorted(packing.first_unit, unit, side="right") - 1
        repetition = unit - packing.first_unit[pattern]
        found_rows: Int64Array = (
            packing.first_row[pattern] + repetition * packing.pattern_rows[pattern] + row_of_unit
        )
        return found_rows

    def _row_positions(self, row: int, documents: Int64Array) -> Int64Array:
        """Return the positions of the tokens of a row, without what is empty at its end."""
        packing = self.packing
        pattern = int(np.searchsorted(packing.first_row, row, side="right")) - 1
        repetition, row_of_unit = divmod(
            row - int(packing.first_row[pattern]), int(packing.pattern_rows[pattern])
        )
        slots = slice(packing.first_slot[pattern], packing.first_slot[pattern + 1])
        position, taken = packing.slot_position[slots], packing.slot_taken[slots]
        begin = row_of_unit * packing.row_length
        inside = (position + taken > begin) & (position < begin + packing.row_length)
        firsts = np.maximum(position[inside], begin)
        sizes = np.minimum((position + taken)[inside], begin + packing.row_length) - firsts
        found = documents[packing.slot_document[slots][inside] + repetition]
        sources = self.data.document_offsets[found] + firsts - position[inside]
        return np.repeat(sources - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


@lru_cache(maxsize=8)
def document_rows(data: TokenShard, row_length: int, long_documents: LongDocuments) -> DocumentRows:
    """Return the rows of a shard; computed once for each length of a row."""
    lengths = np.diff(np.append(data.document_offsets, data.n_inputs))
    if long_documents == "crop":
        lengths = np.minimum(lengths, row_length)
    packing = pack(lengths, row_length, crop=long_documents == "crop")
    return DocumentRows(data, packing, lengths, long_documents)


@lru_cache(maxsize=4)  # places of one batch are in at most two epochs, but for a very small text
def _document_order(rows: DocumentRows, seed: int, epoch: int) -> Int64Array:
    """Return the documents by length, those of one length in the order of this epoch."""
    return np.lexsort((_keys("documents", len(rows.lengths), seed, epoch), rows.lengths))


@lru_cache(maxsize=4)
def _unit_order(rows: DocumentRows, seed: int, epoch: int) -> tuple[Int64Array, Int64Array]:
    """Return the units in the order of this epoch, and the number of the first row of each."""
    packing = rows.packing
    units = np.argsort(_keys("units", packing.n_units, seed, epoch))
    n_rows = np.repeat(packing.pattern_rows, packing.pattern_repeats)[units]
    return units, np.cumsum(n_rows) - n_rows


def _keys(purpose: str, n: int, seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """Return n different random numbers."""
    return mix(np.arange(n, dtype=np.uint64) ^ draw(purpose, seed, epoch)[0])
