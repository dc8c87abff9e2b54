"""The split of a large corpus, kept between sessions: unchanged files are not read again.

`split.bin` in the cache folder says which documents there are and on which side each one is. It is
used only where the settings, the run's record of its cuts, the list of files, and of every file the
path, size, inode and both times are what they were; in any doubt the text is read. It holds no text
but one prompt of each side: where a text is asked for, the corpus is read.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import ys_llm
from ys_llm.config.schema import DataConfig
from ys_llm.data import readers
from ys_llm.data.readers import ADVICE, read_corpus
from ys_llm.data.records import Document
from ys_llm.data.split import Split, SplitRecord, split_documents
from ys_llm.data.text_files import find_files, passed_over_line
from ys_llm.errors import UserError
from ys_llm.system.files import make_subfolder, write_atomically

NAME = "split.bin"

_FORMAT_VERSION = 1
_DIGEST_BYTES = 16
_NUMBERED = re.compile(r"(.+):([1-9][0-9]*)", re.ASCII | re.DOTALL)  # a record: its file and line
# A file that was written less than this before it was read could be written again within the same
# tick of the file system's clock: 2 s on FAT, a second on network drives.
_SETTLED_NANOSECONDS = 3_000_000_000
_ROW = np.dtype(
    [
        ("id", "S32"),
        ("content_hash", "S32"),
        ("n_bytes", "<i8"),
        ("n_chars", "<i8"),
        ("source", "<i8"),
        ("line", "<i8"),
        ("has_prompt", "?"),
        ("held_out", "?"),
    ]
)


def load_split(
    config: DataConfig,
    *,
    record: SplitRecord | None = None,
    command: str = ADVICE,
    scratch: Path | None = None,
    cache_dir: Path | None = None,
) -> Split:
    """Read the corpus of a configuration and split it; see `read_corpus` and `split_documents`.

    With `cache_dir` the split of a corpus of SPOOL_BYTES or more is kept there, and an unchanged
    corpus is not read again. Raises UserError as they do, also later, where a text is asked for.
    """

    def read() -> Split:
        """The split of the corpus as it is now."""
        return _read_split(config, record, command, scratch)

    if cache_dir is None:
        return read()
    snapshot = _Snapshot.take(config, command)
    record = record or SplitRecord()
    kept = _load(cache_dir / NAME, snapshot, record, read)
    if kept is not None:
        return kept
    split = read()
    if snapshot.is_worth_keeping and _Snapshot.take(config, command).key == snapshot.key:
        with suppress(UserError):  # a folder that cannot be written: the text is read every time
            make_subfolder(cache_dir)
            write_atomically(cache_dir / NAME, _pack(snapshot, record, split), create_folder=False)
    return split


def _read_split(
    config: DataConfig, record: SplitRecord | None, command: str, scratch: Path | None
) -> Split:
    corpus = read_corpus(
        Path(config.path), data_format=config.format, command=command, scratch=scratch
    )
    split = split_documents(
        corpus.documents, validation_fraction=config.validation_fraction, record=record
    )
    if corpus.passed_over:
        split.notes["passed over"] = passed_over_line(corpus.passed_over)
    return split


@dataclass(frozen=True)
class _Snapshot:
    """What a split depends on besides its record, as JSON values."""

    key: Mapping[str, Any]
    is_worth_keeping: bool

    @classmethod
    def take(cls, config: DataConfig, command: str) -> "_Snapshot":
        """List the files and look at each, without opening it. Raises UserError as reading does."""
        now, files = time.time_ns(), find_files(Path(config.path), command=command)
        key: dict[str, Any] = {
            "version": [_FORMAT_VERSION, ys_llm.__version__],
            "data": asdict(config),
            "passed over": files.passed_over,
            "files": [],
        }
        try:
            found = [(path, os.stat(path)) for path in files.paths]
        except OSError:  # reading says what is wrong
            return cls(key, is_worth_keeping=False)
        key["files"] = [
            [str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev]
            for path, s in found
        ]
        latest = max((max(s.st_mtime_ns, s.st_ctime_ns) for _, s in found), default=now)
        is_large = sum(s.st_size for _, s in found) >= readers.SPOOL_BYTES
        return cls(json.loads(json.dumps(key)), is_large and latest + _SETTLED_NANOSECONDS < now)


class _Corpus:
    """Reads the corpus again, once, where the text of one of its documents is asked for."""

    def __init__(self, read: Callable[[], Split]) -> None:
        self._read = read

    def document(self, held_out: bool, index: int, content_hash: str) -> Document:
        """Return a document by its place; UserError if the corpus has changed meanwhile."""
        side = self._split.validation if held_out else self._split.training
        if index >= len(side) or side[index].content_hash != content_hash:
            raise UserError(
                "the text changed after it was looked at",
                "Wait until the program that writes it is done, then type the command again.",
            )
        return side[index]

    @cached_property
    def _split(self) -> Split:
        return self._read()


class KeptDocument(Document):
    """A document whose text is read only where it is asked for; the rest is known."""

    _corpus: _Corpus
    _place: tuple[bool, int]
    _has_prompt: bool
    _known_prompt: str | None

    def __init__(
        self,
        corpus: _Corpus,
        place: tuple[bool, int],
        *,
        has_prompt: bool,
        known_prompt: str | None,
        known: Mapping[str, Any],
    ) -> None:
        # Not by attribute: a Document is frozen, and its text is a property here.
        self.__dict__.update(
            known,
            _corpus=corpus,
            _place=place,
            _has_prompt=has_prompt,
            _known_prompt=known_prompt,
        )

    @property
    def text(self) -> str:
        """The text, from the corpus."""
        return self._original.text

    @property
    def prompt(self) -> str | None:
        """The prompt, from the corpus unless it is known."""
        if self._known_prompt is not None or not self._has_prompt:
            return self._known_prompt
        return self._original.prompt

    @property
    def has_prompt(self) -> bool:
        """Return whether there is a prompt."""
        return self._has_prompt

    def blocks(self) -> Iterator[str]:
        """Yield the text in parts, from the corpus."""
        return self._original.blocks()

    def part(self, begin: int, end: int) -> Document:
        """Return the characters from `begin` to `end` as a document of their own."""
        return self._original.part(begin, end)

    @property
    def _original(self) -> Document:
        return self._corpus.document(*self._place, self.content_hash)


def _pack(snapshot: _Snapshot, record: SplitRecord, split: Split) -> bytes:
    """Return a hash, the length of the header, the header as JSON, and a row for each document."""
    records = [record, split.record] if split.is_repeatable else [record]
    sides = ((False, split.training), (True, split.validation))
    sources: dict[str, int] = {}
    rows = [_row(document, held_out, sources) for held_out, side in sides for document in side]
    header = {
        "key": snapshot.key,
        "records": [each.to_json() for each in records],
        "record": split.record.to_json(),
        "leak check": split.leak_check,
        "notes": split.notes,
        "prompts": [_first_prompt(side) for _, side in sides],
        "sources": list(sources),
    }
    head = json.dumps(header).encode()
    payload = len(head).to_bytes(8, "little") + head + np.array(rows, _ROW).tobytes()
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest() + payload


def _row(document: Document, held_out: bool, sources: dict[str, int]) -> tuple[Any, ...]:
    found = _NUMBERED.fullmatch(document.source)
    name, line = found.groups() if found else (document.source, "0")
    return (
        document.id,
        document.content_hash,
        document.n_bytes,
        document.n_chars,
        sources.setdefault(name, len(sources)),
        int(line),
        document.has_prompt,
        held_out,
    )


def _first_prompt(side: Sequence[Document]) -> str | None:
    return next((document.prompt for document in side if document.has_prompt), None)


def _load(
    path: Path, snapshot: _Snapshot, record: SplitRecord, read: Callable[[], Split]
) -> Split | None:
    """Return what `_pack` wrote; None where it is missing, damaged, or of another corpus."""
    try:
        data = path.read_bytes()
        digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest() != digest:
            return None
        end = 8 + int.from_bytes(payload[:8], "little")
        header = json.loads(payload[8:end])
        if header["key"] != snapshot.key or record.to_json() not in header["records"]:
            return None
        return _unpack(header, np.frombuffer(payload[end:], _ROW), _Corpus(read))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _unpack(header: Mapping[str, Any], rows: np.ndarray[Any, Any], corpus: _Corpus) -> Split:
    sides: tuple[list[Document], list[Document]] = ([], [])
    prompts, sources = list(header["prompts"]), header["sources"]
    for (
        identity,
        content_hash,
        n_bytes,
        n_chars,
        source,
        line,
        has_prompt,
        held_out,
    ) in rows.tolist():
        side, known = sides[held_out], None
        if has_prompt:
            known, prompts[held_out] = prompts[held_out], None
        side.append(
            KeptDocument(
                corpus,
                (held_out, len(side)),
                has_prompt=has_prompt,
                known_prompt=known,
                known={
                    "id": identity.decode(),
                    "content_hash": content_hash.decode(),
                    "n_bytes": n_bytes,
                    "n_chars": n_chars,
                    "source": sources[source] + (f":{line}" if line else ""),
                },
            )
        )
    return Split(
        *sides, header["leak check"], header["notes"], SplitRecord.from_json(header["record"])
    )
