"""The split of `split.py` for a corpus of any number of documents: chunk by chunk, on rows alone.

Each side is a table in the order of the hashes, as the token shards are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ys_llm.data import split as rules
from ys_llm.data.document_table import ROW, DocumentTable, Rows, count_copies, sorted_rows
from ys_llm.data.records import Document
from ys_llm.data.split import (
    BY_CONTENT_HASH,
    BY_DOCUMENT_ID,
    Cut,
    Sides,
    Split,
    SplitRecord,
    checked,
    cut_document,
    leak_line,
)
from ys_llm.data.spool import Spool


@dataclass(frozen=True)
class _CutTexts:
    """The documents that are cut, by their places in the table, and the rows of their parts."""

    places: npt.NDArray[np.int64]
    cuts: Sequence[Cut]
    parts: tuple[Sequence[Rows], Sequence[Rows]]  # of each side, by bucket
    largest_uncut: int


def split_table(
    table: DocumentTable,
    spool: Spool,
    *,
    validation_fraction: float,
    record: SplitRecord | None = None,
) -> Split:
    """Split a table of `spool` as `split_documents` splits a list; raises UserError as it does."""
    record = record or SplitRecord()
    cut = _cut_texts(table, spool, validation_fraction, record)
    fraction = 0.0 if len(table) == 1 else validation_fraction
    training, validation = (
        spool.table(_side(table, spool, cut, held_out, (fraction, record.version)))
        for held_out in (False, True)
    )
    leaks = leak_line(*count_copies((training, validation)), len(training), len(validation))
    found = SplitRecord(record.version, tuple(dict.fromkeys(cut.cuts)))
    split = Split(training, validation, leaks, record=found)
    return checked(
        split, table, validation_fraction, before=record, largest_uncut=cut.largest_uncut
    )


def _cut_texts(
    table: DocumentTable, spool: Spool, validation_fraction: float, record: SplitRecord
) -> _CutTexts:
    single = len(table) == 1 and record.version == BY_DOCUMENT_ID
    sides: Sides = ([], [])
    places, cuts, largest, first = list[int](), list[Cut](), 0, 0
    for rows in table.chunks():
        whole = np.ones(len(rows), dtype=bool)
        for index in np.flatnonzero(_may_be_cut(rows, record.cuts, single=single)).tolist():
            cut = cut_document(
                table[first + index], sides, record.cuts, validation_fraction, single=single
            )
            if cut:
                cuts.append(cut)
                places.append(first + index)
                whole[index] = False
        largest = max(largest, int(rows["n_bytes"][whole].max(initial=0)))
        first += len(rows)
    parts = (_part_rows(sides[0], spool), _part_rows(sides[1], spool))
    return _CutTexts(np.array(places, dtype=np.int64), cuts, parts, largest)


def _may_be_cut(rows: Rows, stored: Sequence[Cut], *, single: bool) -> npt.NDArray[np.bool_]:
    """Return which documents have to be looked at; most are too short."""
    shortest = min([cut.begin for cut in stored], default=1 << 62)
    long = (rows["n_chars"] > rules.LONG_DOCUMENT_CHARS) | single
    long &= rows["n_bytes"] >= rules.SINGLE_DOCUMENT_BYTES
    found = (rows["n_bytes"] >= shortest) | long
    plain: npt.NDArray[np.bool_] = found & (rows["prompt_bytes"] < 0)
    return plain


def _part_rows(parts: Sequence[Document], spool: Spool) -> list[Rows]:
    buckets = [bytearray() for _ in range(spool.n_buckets)]
    for part in parts:
        bucket, row = spool.row(part)
        buckets[bucket] += row.pack()
    return [np.frombuffer(bucket, ROW) for bucket in buckets]


def _side(
    table: DocumentTable,
    spool: Spool,
    cut: _CutTexts,
    held_out: bool,
    rule: tuple[float, int],
) -> Iterator[Rows]:
    """Yield the rows of one side, bucket by bucket; `rule` is (fraction, version)."""
    fraction, version = rule
    field = "hash_high" if version == BY_CONTENT_HASH else "id_high"
    first = 0
    for bucket, rows in enumerate(table.chunks()):
        # The first 52 bits are exact in a float: `split._place`.
        chosen = ((rows[field] >> np.uint64(12)) / 16**13 < fraction) == held_out
        inside = (cut.places >= first) & (cut.places < first + len(rows))
        chosen[cut.places[inside] - first] = False
        whole = np.concatenate([rows[chosen], cut.parts[held_out][bucket]])
        yield sorted_rows(whole, spool.sources)
        first += len(rows)
