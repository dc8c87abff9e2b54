"""Documents as rows of a file, in the order of their hashes: a corpus may have any number of them.

A row says of a document what is known without its text. Rows lie in chunks; one chunk is in memory
at a time. What a program asks of documents in bulk (hashes, sizes, whether there are prompts), it
asks by the functions at the end, which take a table or a list.
"""

from __future__ import annotations

import hashlib
import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import IO, Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from ys_llm.data.records import Document

Rows = npt.NDArray[Any]

ROW = np.dtype(
    [
        ("hash_high", "<u8"),
        ("hash_low", "<u8"),
        ("id_high", "<u8"),
        ("id_low", "<u8"),
        ("n_bytes", "<i8"),
        ("n_chars", "<i8"),
        ("offset", "<i8"),  # of the prompt, or of the text where there is no prompt
        ("prompt_bytes", "<i8"),  # -1: no prompt
        ("source", "<i4"),
        ("apart", "<i4"),  # 1: `offset` counts from the beginning of the file, not of the chunk
        ("line", "<i8"),  # 0: none
    ]
)
_PACK = struct.Struct("<4Q4q2iq").pack
_ROWS_AT_ONCE = 1 << 14  # a chunk may have millions, as Python numbers of 0.7 kB each
_HASHES_AT_ONCE = 1 << 16
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


class Row(NamedTuple):
    """What ROW describes, as Python numbers."""

    hash_high: int
    hash_low: int
    id_high: int
    id_low: int
    n_bytes: int
    n_chars: int
    offset: int
    prompt_bytes: int
    source: int
    apart: int
    line: int

    def pack(self) -> bytes:
        """Return the row as it is in a file."""
        return _PACK(*self)

    def facts(self) -> dict[str, Any]:
        """Return what a document computes once and keeps, by name."""
        return {
            "content_hash": f"{self.hash_high:016x}{self.hash_low:016x}",
            "id": f"{self.id_high:016x}{self.id_low:016x}",
            "n_bytes": self.n_bytes,
            "n_chars": self.n_chars,
        }

    def where(self, sources: Sequence[str]) -> str:
        """Return `file:line`, or the file of a plain document."""
        name = sources[self.source]
        return f"{name}:{self.line}" if self.line else name


class TableTexts(Protocol):
    """Where a table finds what its rows do not say."""

    @property
    def sources(self) -> Sequence[str]:
        """Return the files that documents came from, by their numbers in the rows."""
        ...

    def document(self, place: int, chunk: int, row: Row) -> Document:
        """Return the document of a row; `place` counts the rows of the table."""
        ...

    def documents(self, first: int, chunk: int, rows: Rows) -> Iterator[Document]:
        """Return the documents of all rows of a chunk, in order; `first` is the place of one."""
        ...


class RowFile:
    """Rows in an open file, chunk after chunk; each chunk is (offset in bytes, number of rows)."""

    def __init__(self, file: IO[bytes], chunks: Sequence[tuple[int, int]]) -> None:
        self._file = file  # kept open by whoever reads from it
        self._chunks = chunks
        self.ends = list(accumulate(count for _, count in chunks))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def n_chunks(self) -> int:
        """Return the number of chunks."""
        return len(self._chunks)

    def read(self, chunk: int) -> Rows:
        """Return the rows of a chunk."""
        offset, count = self._chunks[chunk]
        data = read_exactly(self._file.fileno(), offset, count * ROW.itemsize)
        return np.frombuffer(data, ROW)

    def row(self, index: int) -> tuple[int, Row]:
        """Return the chunk of a row, and the row."""
        chunk = bisect_right(self.ends, index)
        offset, count = self._chunks[chunk]
        place = offset + (index - self.ends[chunk] + count) * ROW.itemsize
        data = read_exactly(self._file.fileno(), place, ROW.itemsize)
        return chunk, Row._make(np.frombuffer(data, ROW)[0].tolist())


class DocumentTable(Sequence[Document]):
    """A sequence of documents that are made when they are asked for.

    Going through all of them reads their texts in long pieces, and each document has its text; one
    that is asked for by its place, or in a slice, reads it from the file.
    """

    def __init__(self, rows: RowFile, texts: TableTexts) -> None:
        self._rows = rows
        self._texts = texts

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._texts.document(place, *self._rows.row(place))

    def __iter__(self) -> Iterator[Document]:
        for chunk, first in enumerate([0, *self._rows.ends[:-1]][: self._rows.n_chunks]):
            yield from self._texts.documents(first, chunk, self._rows.read(chunk))

    @property
    def sources(self) -> Sequence[str]:
        """Return the files that documents came from, by their numbers in the rows."""
        return self._texts.sources

    def chunks(self) -> Iterator[Rows]:
        """Yield the rows of each chunk, in order."""
        return map(self._rows.read, range(self._rows.n_chunks))


def rows_of(rows: Rows) -> Iterator[Row]:
    """Yield rows as Python numbers, some thousand in memory at a time."""
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        yield from map(Row._make, rows[first : first + _ROWS_AT_ONCE].tolist())


def row_of(document: Document, *, source: int, line: int, span: tuple[int, int, int]) -> Row:
    """Return the row of a document whose text is at span = (offset, prompt_bytes, apart)."""
    key, identity = int(document.content_hash, 16), int(document.id, 16)
    low = (1 << 64) - 1
    halves = (key >> 64, key & low, identity >> 64, identity & low)
    offset, prompt_bytes, apart = span
    sizes = (document.n_bytes, document.n_chars)
    return Row(*halves, *sizes, offset, prompt_bytes, source, apart, line)


def sorted_rows(rows: Rows, sources: Sequence[str]) -> Rows:
    """Sort rows by content and, of one content, by source, as text is sorted."""
    ordered = rows[np.lexsort((rows["hash_low"], rows["hash_high"]))]
    same = ordered["hash_high"][1:] == ordered["hash_high"][:-1]
    same &= ordered["hash_low"][1:] == ordered["hash_low"][:-1]
    borders = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for first, last in borders.reshape(-1, 2).tolist():  # runs of copies
        run = ordered[first : last + 1]
        names = [Row._make(row).where(sources) for row in run.tolist()]
        ordered[first : last + 1] = run[sorted(range(len(run)), key=names.__getitem__)]
    return ordered


def read_exactly(descriptor: int, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file; one call reads 2 GiB at most."""
    parts = []
    while size:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise OSError(None, "the temporary file is shorter than what was written")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def in_hash_order(documents: Sequence[Document]) -> Sequence[Document]:
    """Return the documents sorted by content, as a table has them already."""
    if isinstance(documents, DocumentTable):
        return documents
    return sorted(documents, key=lambda document: document.content_hash)


def sorted_hashes(
    documents: Sequence[Document], *, before: bytes = b"", after: bytes = b""
) -> Iterator[bytes]:
    """Yield the hashes of all documents, sorted, in hexadecimal, between `before` and `after`."""
    if isinstance(documents, DocumentTable):
        for rows in documents.chunks():
            for first in range(0, len(rows), _HASHES_AT_ONCE):
                yield _hexadecimal(rows[first : first + _HASHES_AT_ONCE], before, after)
    else:
        for key in sorted(document.content_hash for document in documents):
            yield before + key.encode() + after


def _hexadecimal(rows: Rows, before: bytes, after: bytes) -> bytes:
    keys = np.stack([rows["hash_high"], rows["hash_low"]], axis=1).astype(">u8")
    halves = keys.view(np.uint8).reshape(len(rows), 16)
    text = np.empty((len(rows), 32), np.uint8)
    text[:, 0::2], text[:, 1::2] = _HEX[halves >> 4], _HEX[halves & 15]
    around = [
        np.broadcast_to(np.frombuffer(part, np.uint8), (len(rows), len(part)))
        for part in (before, after)
    ]
    return np.concatenate([around[0], text, around[1]], axis=1).tobytes()


def sizes_of(documents: Sequence[Document]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the bytes of each document, in order, some thousand documents at a time."""
    if isinstance(documents, DocumentTable):
        yield from (rows["n_bytes"].astype(np.int64) for rows in documents.chunks())
    else:
        yield np.array([document.n_bytes for document in documents], dtype=np.int64)


def total_bytes(documents: Sequence[Document]) -> int:
    """Return the bytes of all documents."""
    return sum(int(sizes.sum()) for sizes in sizes_of(documents))


def first_prompt(documents: Sequence[Document]) -> str | None:
    """Return the prompt of the first document that has one."""
    if isinstance(documents, DocumentTable):
        before = 0
        for rows in documents.chunks():
            found = np.flatnonzero(rows["prompt_bytes"] >= 0)
            if len(found):
                return documents[before + int(found[0])].prompt
            before += len(rows)
        return None
    return next((document.prompt for document in documents if document.has_prompt), None)


def content_digest(documents: Sequence[Document], head: Iterable[bytes] = ()) -> hashlib.blake2b:
    """Return a hash of 16 bytes of `head` and the documents' hashes, a line each."""
    digest = hashlib.blake2b(digest_size=16)
    for part in head:
        digest.update(part + b"\n")
    for part in sorted_hashes(documents, after=b"\n"):
        digest.update(part)
    return digest


def has_prompts(documents: Sequence[Document]) -> bool:
    """Return whether any document has a prompt."""
    if isinstance(documents, DocumentTable):
        return any(bool((rows["prompt_bytes"] >= 0).any()) for rows in documents.chunks())
    return any(document.has_prompt for document in documents)


def count_copies(sides: Sequence[DocumentTable]) -> tuple[int, int]:
    """Return (copies, leaked) of two sides: by id, a part of all ids at a time.

    copies: documents that equal another one; leaked: documents of the second side that are also in
    the first.
    """
    total = sum(map(len, sides))
    n_parts = 1 << (total // _IDS_AT_ONCE).bit_length()
    counts = [_count_copies(sides, part, n_parts) for part in range(n_parts)]
    return sum(copies for copies, _ in counts), sum(leaked for _, leaked in counts)


_IDS_AT_ONCE = 1 << 21  # 16 bytes each, and several times as much while they are sorted


def _count_copies(sides: Sequence[DocumentTable], part: int, n_parts: int) -> tuple[int, int]:
    """Return (copies, leaked) among the documents whose ids belong to a part."""
    found = [(np.zeros((0, 2), np.uint64), 0)]
    for side, table in enumerate(sides):
        for rows in table.chunks():
            ids = np.stack([rows["id_high"], rows["id_low"]], axis=1)
            found.append((ids[ids[:, 1] % np.uint64(n_parts) == part], side))
    ids = np.concatenate([own for own, _ in found])
    sides_of = np.concatenate([np.full(len(own), side, np.int8) for own, side in found])
    order = np.lexsort((sides_of, ids[:, 1], ids[:, 0]))
    ids, sides_of = ids[order], sides_of[order]
    is_new = np.ones(len(ids), dtype=bool)
    is_new[1:] = (ids[1:] != ids[:-1]).any(axis=1)
    side_of_first = sides_of[is_new][np.cumsum(is_new) - 1]
    return int((~is_new).sum()), int((sides_of > side_of_first).sum())
