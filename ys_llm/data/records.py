"""What a document is: plain text or a prompt with its response, its file format, and its identity.

A record file holds `PROMPT<start>RESPONSE<end>`, any number of times. The tokenizer's control
tokens are named after the two marks; inside a text they are characters like any others.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ys_llm.data.pieces import chunks_of

START, END = "<start>", "<end>"

_BLANKS = " \t\r\n"
_BLOCK_CHARS = 1 << 16


@dataclass(frozen=True)
class Record:
    """A prompt and the response to it, as the generator writes and curation reads them."""

    prompt: str
    response: str

    def text(self) -> str:
        """Return the record as a file has it, followed by a blank line."""
        for part in (self.prompt, self.response):
            assert START not in part and END not in part, part
        return f"{self.prompt}{START}{self.response}{END}\n\n"


@dataclass(frozen=True)
class Document:
    """One text to train on; with a prompt, `text` is the response to it."""

    text: str
    prompt: str | None = None
    source: str = ""

    @property
    def has_prompt(self) -> bool:
        """Return whether there is a prompt, which may have to be read from a file."""
        return self.prompt is not None

    @cached_property
    def id(self) -> str:
        """Return `document_id`: the same for texts that differ in line ends alone."""
        if self._is_canonical:
            return self.content_hash
        prompt = None if self.prompt is None else _blocks(self.prompt)
        return _id_of(self.blocks(), prompt)

    @cached_property
    def content_hash(self) -> str:
        """Return the hash of prompt and text to the character; token caches depend on it."""
        return _digest(self.blocks(), None if self.prompt is None else _blocks(self.prompt))

    @cached_property
    def n_chars(self) -> int:
        """Return the length of the text."""
        return len(self.text)

    @cached_property
    def n_bytes(self) -> int:
        """Return the length of prompt and text as UTF-8."""
        return utf8_length(self.prompt or "") + utf8_length(self.text)

    def blocks(self) -> Iterator[str]:
        """Yield the text in parts, in order: a document may be larger than memory."""
        return _blocks(self.text)

    def part(self, begin: int, end: int) -> "Document":
        """Return the characters from `begin` to `end` as a plain document of their own."""
        return Document(self.text[begin:end], source=self.source)

    @property
    def _is_canonical(self) -> bool:
        return _is_canonical(self.prompt or "") and _is_canonical(self.text)


@dataclass(frozen=True)
class Texts:
    """The prompts and texts of documents, read again in each iteration.

    Long ones come in chunks that have the same pieces. Of more text than `most_chars`, if it is
    given, about as much of the first documents.
    """

    documents: Sequence[Document]
    most_chars: int | None = None

    def __iter__(self) -> Iterator[str]:
        left = math.inf if self.most_chars is None else self.most_chars
        for text in self._all():
            yield text
            left -= len(text)
            if left <= 0:
                return

    def _all(self) -> Iterator[str]:
        for document in self.documents:
            if document.prompt:
                yield document.prompt
            yield from chunks_of(document.blocks())


def document_id(text: str, prompt: str | None = None) -> str:
    """Identify a document by what a reader sees: 128 bits in hexadecimal.

    Line ends (CRLF, CR, LF), blanks before them, and blanks and line ends at the end of the text do
    not count: a conversion of line ends leaves every document what it was. `prompt` is None for
    plain text.
    """
    return _id_of(_blocks(text), None if prompt is None else _blocks(prompt))


def content_hash(text: str, prompt: str | None = None) -> str:
    """Hash prompt and text exactly: 128 bits in hexadecimal."""
    return _digest(_blocks(text), None if prompt is None else _blocks(prompt))


def utf8_length(text: str) -> int:
    """Return the length of a text as UTF-8."""
    return len(text) if text.isascii() else sum(len(block.encode()) for block in _blocks(text))


def _id_of(text: Iterable[str], prompt: Iterable[str] | None) -> str:
    return _digest(_canonical_blocks(text), None if prompt is None else _canonical_blocks(prompt))


def _digest(text: Iterable[str], prompt: Iterable[str] | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if prompt is not None:
        data = "".join(prompt).encode()
        digest.update(b"prompt %d " % len(data) + data)
    digest.update(b"text ")
    for block in text:
        digest.update(block.encode())
    return digest.hexdigest()


def _blocks(text: str) -> Iterator[str]:
    """Yield a text in parts, so that a novel is not copied whole."""
    return (text[start : start + _BLOCK_CHARS] for start in range(0, len(text), _BLOCK_CHARS))


def _canonical_blocks(text: Iterable[str]) -> Iterator[str]:
    """Yield a text with LF as line end, without trailing blanks or final line ends."""
    pending = ""  # blanks and line ends, which count only if something follows them
    for block in text:
        block = pending + block
        kept = block.rstrip(_BLANKS)
        pending = block[len(kept) :]
        if _is_canonical(kept):  # nearly always, and far cheaper to find out
            yield kept
            continue
        lines = kept.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        # The last line ends in no blank: what is after it is pending.
        yield "\n".join(line.rstrip(" \t") for line in lines)


def _is_canonical(text: str) -> bool:
    """Return whether `_canonical_blocks` would change nothing; far cheaper than calling it."""
    return not text.endswith(tuple(_BLANKS)) and not any(
        ending in text for ending in ("\r", " \n", "\t\n")
    )
