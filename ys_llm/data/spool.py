"""Documents whose text is in a temporary file: a corpus may be larger than memory."""

import codecs
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ys_llm.data.records import Document, utf8_length
from ys_llm.system.files import make_subfolder, readable_os_errors

_BLOCK_BYTES = 1 << 16


class Spool:
    """A temporary file for texts. It has no name, so nothing remains of it, even after a kill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with readable_os_errors(folder):
            make_subfolder(folder)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the documents need it)
        weakref.finalize(self, self._file.close)
        self._size = 0

    def add(self, document: Document) -> Document:
        """Return the same document with its text in the file."""
        prompt = None if document.prompt is None else self._append(document.prompt)
        text = self._append(document.text)
        known = {
            "id": document.id,
            "content_hash": document.content_hash,
            "n_bytes": document.n_bytes,
            "n_chars": document.n_chars,
        }
        return SpooledDocument(self, document.source, prompt=prompt, text=text, known=known)

    def add_text(self, blocks: Iterable[str], *, source: str) -> Document | None:
        """Return a plain document of a text that comes in blocks; None if it is all white space."""
        span, n_chars, is_blank = (self._size, 0), 0, True
        for block in blocks:
            _, n_bytes = self._append(block)
            span = (span[0], span[1] + n_bytes)
            n_chars += len(block)
            is_blank = is_blank and (not block or block.isspace())
        if is_blank:
            return None
        return SpooledDocument(self, source, prompt=None, text=span, known={"n_chars": n_chars})

    def read(self, span: tuple[int, int]) -> str:
        """Return the text at (offset, length), in bytes."""
        return "".join(self.blocks(span))

    def blocks(self, span: tuple[int, int]) -> Iterator[str]:
        """Yield the text at (offset, length), in bytes, in parts."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        begin, end = span[0], span[0] + span[1]
        for offset in range(begin, end, _BLOCK_BYTES):
            self._file.seek(offset)  # anything may be read in between
            yield decoder.decode(self._file.read(min(_BLOCK_BYTES, end - offset)))

    def _append(self, text: str) -> tuple[int, int]:
        data = text.encode()
        span = (self._size, len(data))
        with readable_os_errors(self._folder):
            self._file.seek(self._size)
            self._file.write(data)
        self._size += len(data)
        return span


class SpooledDocument(Document):
    """A document whose prompt and text are in a file; hash and length are kept in memory."""

    _spool: Spool
    _prompt_span: tuple[int, int] | None
    _text_span: tuple[int, int]

    def __init__(
        self,
        spool: Spool,
        source: str,
        *,
        prompt: tuple[int, int] | None,
        text: tuple[int, int],
        known: dict[str, Any],
    ) -> None:
        # Not by attribute: a Document is frozen, and its text is a property here.
        self.__dict__.update(
            known, source=source, _spool=spool, _prompt_span=prompt, _text_span=text
        )

    @property
    def text(self) -> str:
        """The text, from the file."""
        return self._spool.read(self._text_span)

    @property
    def prompt(self) -> str | None:
        """The prompt, from the file."""
        return None if self._prompt_span is None else self._spool.read(self._prompt_span)

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
        return self._text_span[1] + (self._prompt_span[1] if self._prompt_span else 0)

    def blocks(self) -> Iterator[str]:
        """Yield the text in parts, from the file."""
        return self._spool.blocks(self._text_span)

    def part(self, begin: int, end: int) -> Document:
        """Return the characters from `begin` to `end`, which are in the same file."""
        first, last = self._offset(begin), self._offset(end)
        span = (self._text_span[0] + first, last - first)
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
