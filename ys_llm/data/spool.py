"""Documents whose text is in a temporary file: a corpus may be larger than memory."""

import tempfile
import weakref
from pathlib import Path

from ys_llm.data.records import Document, utf8_length
from ys_llm.system.files import make_folder, readable_os_errors


class Spool:
    """A temporary file for texts. It has no name, so nothing remains of it, even after a kill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with readable_os_errors(folder):
            make_folder(folder)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the documents need it)
        weakref.finalize(self, self._file.close)
        self._size = 0

    def add(self, document: Document) -> Document:
        """Return the same document with its text in the file."""
        prompt = None if document.prompt is None else self._append(document.prompt)
        return SpooledDocument(self, document, prompt=prompt, text=self._append(document.text))

    def read(self, span: tuple[int, int]) -> str:
        """Return the text at (offset, length), in bytes."""
        self._file.seek(span[0])
        return self._file.read(span[1]).decode()

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
        document: Document,
        *,
        prompt: tuple[int, int] | None,
        text: tuple[int, int],
    ) -> None:
        # Not by attribute: a Document is frozen, and its text is a property here.
        self.__dict__.update(
            source=document.source,
            id=document.id,
            content_hash=document.content_hash,
            n_bytes=document.n_bytes,
            _spool=spool,
            _prompt_span=prompt,
            _text_span=text,
        )

    @property
    def text(self) -> str:
        """The text, from the file."""
        return self._spool.read(self._text_span)

    def part(self, begin: int, end: int) -> Document:
        """Return the characters from `begin` to `end`, which are in the same file."""
        part = super().part(begin, end)
        offset = self._text_span[0] + utf8_length(self.text[:begin])
        return SpooledDocument(self._spool, part, prompt=None, text=(offset, part.n_bytes))

    @property
    def prompt(self) -> str | None:
        """The prompt, from the file."""
        return None if self._prompt_span is None else self._spool.read(self._prompt_span)
