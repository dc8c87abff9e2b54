"""Documents whose text is in a temporary file, sorted by content: an external sort.

Texts come in any order. Each goes to a bucket by the first bits of its hash; what has come
for the buckets is appended to the file whenever it fills a buffer. In the order of the hashes,
bucket after bucket is read, sorted and given out, so that a bucket is all that memory holds, and
the disk is read in long pieces. A long text lies apart, and is read in blocks.
"""

import codecs
import re
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ys_llm.data.document_table import (
    ROW,
    DocumentTable,
    Row,
    RowFile,
    Rows,
    read_exactly,
    row_of,
    rows_of,
    sorted_rows,
)
from ys_llm.data.records import Document, utf8_length
from ys_llm.system.files import make_subfolder, readable_os_errors

_NUMBERED = re.compile(r"(.+):([1-9][0-9]{0,17})", re.ASCII | re.DOTALL)
_MOST_BUCKETS = 14  # bits: of a terabyte, 64 MB each
_BUCKET_BYTES = 1 << 24
_BLOCK_BYTES = 1 << 16
_APART_BYTES = 1 << 16  # a text of this size or more does not go through a bucket
_BUFFERED_BYTES = 1 << 25  # of all buckets together
_SPARSE = 8  # where less than one byte in so many is wanted, a bucket is not read whole


@dataclass
class _Stream:
    """What was appended to a bucket: pieces of the file, and a buffer that is not there yet."""

    buffer: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)  # of the pieces in the file
    ends: list[int] = field(default_factory=list)  # of the pieces in the stream

    @property
    def size(self) -> int:
        """Return the bytes that were appended."""
        return (self.ends[-1] if self.ends else 0) + len(self.buffer)

    def place(self, offset: int) -> int:
        """Return where in the file a byte of the stream is."""
        piece = bisect_right(self.ends, offset)
        return self.offsets[piece] + offset - (self.ends[piece - 1] if piece else 0)


class Spool:
    """A temporary file for documents. It has no name, so nothing remains of it after a kill."""

    def __init__(self, folder: Path, expected_bytes: int = 0) -> None:
        self._folder = folder
        with readable_os_errors(folder):
            make_subfolder(folder)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (the documents need it)
        weakref.finalize(self, self._file.close)
        self._size = self._buffered = 0
        self._bits = min(max(1, (expected_bytes // _BUCKET_BYTES).bit_length()), _MOST_BUCKETS)
        self.n_buckets = 1 << self._bits
        self._texts = [_Stream() for _ in range(self.n_buckets)]
        self._rows = [_Stream() for _ in range(self.n_buckets)]
        self._sources: dict[str, int] = {}
        self._dropped: set[int] = set()

    def add(self, document: Document) -> None:
        """Take up a document."""
        prompt = None if document.prompt is None else document.prompt.encode()
        data = (prompt or b"") + document.text.encode()
        prompt_bytes = -1 if prompt is None else len(prompt)
        if len(data) >= _APART_BYTES:
            self._add_row(document, (self._append(data), prompt_bytes, 1))
            return
        stream = self._texts[self._bucket(document)]
        span = (stream.size, prompt_bytes, 0)
        stream.buffer += data
        self._buffered += len(data)
        self._add_row(document, span)

    def add_text(self, blocks: Iterable[str], source: str) -> bool:
        """Take up a plain document that comes in blocks; False for one that is all white space.

        A text that fits into a bucket becomes a document like any other.
        """
        head, size, rest = [], 0, iter(blocks)
        for block in rest:
            head.append(block)
            size += len(block)
            if size >= _APART_BYTES:
                return self._add_long("".join(head), rest, source)
        text = "".join(head)
        if not text or text.isspace():
            return False
        self.add(Document(text, source=source))
        return True

    @property
    def sources(self) -> Sequence[str]:
        """Return the files that documents came from, by their numbers."""
        return list(self._sources)

    def drop(self, source: str) -> None:
        """Leave out what came from a file."""
        self._dropped.add(self._source(source))

    def documents(self) -> DocumentTable:
        """Return all documents, sorted by content and then by source."""
        return self.table(map(self._sorted, range(self.n_buckets)))

    def table(self, chunks: Iterable[Rows]) -> DocumentTable:
        """Return a table of rows of this spool, a chunk for each bucket."""
        places = []
        for rows in chunks:
            places.append((self._append(rows.tobytes()), len(rows)))
        self._flush()
        return DocumentTable(RowFile(self._file, places), _SpooledTexts(self, self.sources))

    def row(self, document: Document) -> tuple[int, Row]:
        """Return the bucket and the row of a plain document whose text is in this file."""
        assert isinstance(document, SpooledDocument) and not document.has_prompt
        name, line = _parted(document.source)
        span = (document.text_span[0], -1, 1)
        return self._bucket(document), row_of(
            document, source=self._source(name), line=line, span=span
        )

    def read(self, span: tuple[int, int]) -> bytes:
        """Return the bytes at (offset, length)."""
        return read_exactly(self._file.fileno(), *span)

    def blocks(self, span: tuple[int, int]) -> Iterator[str]:
        """Yield the text at (offset, length), in bytes, in parts."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        begin, end = span[0], span[0] + span[1]
        for offset in range(begin, end, _BLOCK_BYTES):
            yield decoder.decode(self.read((offset, min(_BLOCK_BYTES, end - offset))))

    def bucket_text(self, bucket: int) -> bytes:
        """Return all that went through a bucket."""
        return self._content(self._texts[bucket])

    def bucket_size(self, bucket: int) -> int:
        """Return the bytes of all that went through a bucket."""
        return self._texts[bucket].size

    def place(self, bucket: int, offset: int) -> int:
        """Return where in the file a text is that went through a bucket."""
        return self._texts[bucket].place(offset)

    def _add_long(self, head: str, rest: Iterator[str], source: str) -> bool:
        begin, n_chars, is_blank = self._size, 0, True
        for block in chain((head,), rest):
            self._append(block.encode())
            n_chars += len(block)
            is_blank = is_blank and (not block or block.isspace())
        if is_blank:
            return False
        span, known = (begin, self._size - begin), {"n_chars": n_chars}
        document = SpooledDocument(self, source, prompt=None, text=span, known=known)
        self._add_row(document, (begin, -1, 1))
        return True

    def _add_row(self, document: Document, span: tuple[int, int, int]) -> None:
        name, line = _parted(document.source)
        row = row_of(document, source=self._source(name), line=line, span=span)
        self._rows[row.hash_high >> (64 - self._bits)].buffer += row.pack()
        self._buffered += ROW.itemsize
        if self._buffered >= _BUFFERED_BYTES:
            self._flush()

    def _source(self, name: str) -> int:
        return self._sources.setdefault(name, len(self._sources))

    def _bucket(self, document: Document) -> int:
        return int(document.content_hash[:16], 16) >> (64 - self._bits)

    def _sorted(self, bucket: int) -> Rows:
        rows = np.frombuffer(self._content(self._rows[bucket]), ROW)
        if self._dropped:
            rows = rows[~np.isin(rows["source"], list(self._dropped))]
        return sorted_rows(rows, self.sources)

    def _content(self, stream: _Stream) -> bytes:
        borders = [0, *stream.ends]
        pieces = zip(stream.offsets, borders[1:], borders[:-1], strict=True)
        stored = [self.read((offset, end - begin)) for offset, end, begin in pieces]
        return b"".join([*stored, stream.buffer])

    def _flush(self) -> None:
        """Append the buffers of all buckets to the file."""
        for stream in (*self._texts, *self._rows):
            if stream.buffer:
                end = stream.size
                stream.offsets.append(self._append(stream.buffer))
                stream.ends.append(end)
                stream.buffer = bytearray()
        self._buffered = 0

    def _append(self, data: bytes | bytearray) -> int:
        """Append to the file; return where it begins."""
        begin, rest = self._size, memoryview(data)
        with readable_os_errors(self._folder):
            while rest:  # one call writes 2 GiB at most
                rest = rest[self._file.write(rest) :]
        self._size += len(data)
        return begin


@dataclass(frozen=True)
class _SpooledTexts:
    """The texts of a table's rows, each chunk of which belongs to one bucket."""

    spool: Spool
    sources: Sequence[str]

    def document(self, place: int, chunk: int, row: Row) -> Document:
        """Return the document of a row, its text in the file."""
        begin = row.offset if row.apart else self.spool.place(chunk, row.offset)
        prompt_bytes = max(0, row.prompt_bytes)
        return SpooledDocument(
            self.spool,
            row.where(self.sources),
            prompt=None if row.prompt_bytes < 0 else (begin, prompt_bytes),
            text=(begin + prompt_bytes, row.n_bytes - prompt_bytes),
            known=row.facts(),
        )

    def documents(self, first: int, chunk: int, rows: Rows) -> Iterator[Document]:
        """Return the documents of a chunk; short ones with their text, which is read at once."""
        wanted = int(rows["n_bytes"][rows["apart"] == 0].sum())
        content: bytes | None = None
        if wanted * _SPARSE > self.spool.bucket_size(chunk):
            content = self.spool.bucket_text(chunk)
        for place, row in enumerate(rows_of(rows), start=first):
            if row.apart or content is None:
                yield self.document(place, chunk, row)
                continue
            begin = row.offset + max(0, row.prompt_bytes)
            prompt = None if row.prompt_bytes < 0 else content[row.offset : begin].decode()
            text = content[begin : row.offset + row.n_bytes].decode()
            document = Document(text, prompt, row.where(self.sources))
            document.__dict__.update(row.facts())
            yield document


class InMemory:
    """Takes up the documents of a small corpus as a `Spool` does, and keeps them in a list."""

    def __init__(self) -> None:
        self._documents: list[Document] = []

    def add(self, document: Document) -> None:
        """Take up a document."""
        self._documents.append(document)

    def add_text(self, blocks: Iterable[str], source: str) -> bool:
        """Take up a plain document that comes in blocks; False for one that is all white space."""
        text = "".join(blocks)
        if not text or text.isspace():
            return False
        self.add(Document(text, source=source))
        return True

    def drop(self, source: str) -> None:
        """Leave out what came from a file."""
        self._documents = [d for d in self._documents if file_of(d.source) != source]

    def documents(self) -> list[Document]:
        """Return all documents, sorted by content and then by source."""
        return sorted(
            self._documents, key=lambda document: (document.content_hash, document.source)
        )


class SpooledDocument(Document):
    """A document whose prompt and text are in a file; hash and length are kept in memory."""

    text_span: tuple[int, int]
    _spool: Spool
    _prompt_span: tuple[int, int] | None

    def __init__(
        self,
        spool: Spool,
        source: str,
        *,
        prompt: tuple[int, int] | None,
        text: tuple[int, int],
        known: Mapping[str, Any],
    ) -> None:
        # Not by attribute: a Document is frozen, and its text is a property here.
        self.__dict__.update(
            known, source=source, _spool=spool, _prompt_span=prompt, text_span=text
        )

    @property
    def text(self) -> str:
        """The text, from the file."""
        return self._spool.read(self.text_span).decode()

    @property
    def prompt(self) -> str | None:
        """The prompt, from the file."""
        return None if self._prompt_span is None else self._spool.read(self._prompt_span).decode()

    @property
    def has_prompt(self) -> bool:
        """Return whether there is a prompt."""
        return self._prompt_span is not None

    @cached_property
    def n_chars(self) -> int:
        """Return the length of the text."""
        return sum(map(len, self.blocks()))

    @cached_property
    def n_bytes(self) -> int:
        """Return the length of prompt and text as UTF-8."""
        return self.text_span[1] + (self._prompt_span[1] if self._prompt_span else 0)

    def blocks(self) -> Iterator[str]:
        """Yield the text in parts, from the file."""
        return self._spool.blocks(self.text_span)

    def part(self, begin: int, end: int) -> Document:
        """Return the characters from `begin` to `end`, which are in the same file."""
        first, last = self._offset(begin), self._offset(end)
        span = (self.text_span[0] + first, last - first)
        known = {"n_chars": end - begin}
        return SpooledDocument(self._spool, self.source, prompt=None, text=span, known=known)

    def _offset(self, position: int) -> int:
        """Return the bytes before a character of the text."""
        offset = 0
        for block in self.blocks():
            if position <= len(block):
                return offset + utf8_length(block[:position])
            offset += utf8_length(block)
            position -= len(block)
        return offset

    @property
    def _is_canonical(self) -> bool:
        return False  # not worth reading the text for


def file_of(source: str) -> str:
    """Return the file of a source, which may name a line of it."""
    return _parted(source)[0]


def _parted(source: str) -> tuple[str, int]:
    """Return file and line of a source; 0 where there is no line."""
    found = _NUMBERED.fullmatch(source)
    return (found[1], int(found[2])) if found else (source, 0)
