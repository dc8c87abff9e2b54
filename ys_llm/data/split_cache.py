"""The split of a large corpus, kept between sessions: unchanged files are not read again.

`split.bin` in the cache folder says which documents there are and on which side each one is. It is
used only where the settings, the run's record of its cuts, the list of files, and of every file the
path, size, inode and both times are what they were; in any doubt the text is read. It holds no text
but one prompt of each side: where a text is asked for, the corpus is read.
"""

import hashlib
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import ys_llm
from ys_llm.config.schema import DataConfig
from ys_llm.data import readers
from ys_llm.data.document_table import (
    ROW,
    DocumentTable,
    Row,
    RowFile,
    Rows,
    first_prompt,
    rows_of,
)
from ys_llm.data.readers import ADVICE, read_corpus
from ys_llm.data.records import Document
from ys_llm.data.remote import is_remote
from ys_llm.data.split import Split, SplitRecord, split_documents
from ys_llm.data.split_table import split_table
from ys_llm.data.text_files import find_files
from ys_llm.errors import UserError
from ys_llm.system.files import make_subfolder, write_atomically

NAME = "split.bin"

_FORMAT_VERSION = 3
_DIGEST_BYTES = 16
_READ_BYTES = 1 << 20
_ROWS_AT_ONCE = 1 << 16
# A file that was written less than this before it was read could be written again within the same
# tick of the file system's clock: 2 s on FAT, a second on network drives.
_SETTLED_NANOSECONDS = 3_000_000_000


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
    # A file that was skipped may be back the next time, and look the same.
    is_worth_keeping = snapshot.is_worth_keeping and "skipped" not in split.notes
    if is_worth_keeping and _Snapshot.take(config, command).key == snapshot.key:
        _keep(cache_dir, snapshot, record, split)
    return split


def _keep(folder: Path, snapshot: "_Snapshot", record: SplitRecord, split: Split) -> None:
    sides = [side for side in (split.training, split.validation) if isinstance(side, DocumentTable)]
    if len(sides) == 2:  # of a corpus that is not in memory
        with suppress(UserError):  # a folder that cannot be written: the text is read every time
            make_subfolder(folder)
            blocks = _blocks(snapshot, record, split, sides)
            write_atomically(folder / NAME, blocks, create_folder=False)


def _read_split(
    config: DataConfig, record: SplitRecord | None, command: str, scratch: Path | None
) -> Split:
    corpus = read_corpus(_root(config), config, command=command, scratch=scratch)
    fraction = config.validation_fraction
    if isinstance(corpus.documents, DocumentTable) and corpus.spool:
        split = split_table(
            corpus.documents, corpus.spool, validation_fraction=fraction, record=record
        )
    else:
        split = split_documents(corpus.documents, validation_fraction=fraction, record=record)
    split.notes.update(corpus.tally.notes())
    return split


@dataclass(frozen=True)
class _Snapshot:
    """What a split depends on besides its record, as JSON values."""

    key: Mapping[str, Any]
    is_worth_keeping: bool

    @classmethod
    def take(cls, config: DataConfig, command: str) -> "_Snapshot":
        """List the files and look at each, without opening it. Raises UserError as reading does."""
        now, files = (
            time.time_ns(),
            find_files(_root(config), command=command, include=config.include),
        )
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
        key["remote"] = [[file.url, file.size, file.version] for file in files.remote]
        is_known = all(file.version is not None for file in files.remote)
        latest = max((max(s.st_mtime_ns, s.st_ctime_ns) for _, s in found), default=0)
        size = sum(s.st_size for _, s in found) + sum(file.size or 0 for file in files.remote)
        is_settled = size >= readers.SPOOL_BYTES and latest + _SETTLED_NANOSECONDS < now
        return cls(json.loads(json.dumps(key)), is_settled and is_known)


def _root(config: DataConfig) -> Path | str:
    return config.path if is_remote(config.path) else Path(config.path)


class _Corpus:
    """Reads the corpus again, once, where the text of one of its documents is asked for."""

    def __init__(self, read: Callable[[], Split]) -> None:
        self._read = read

    def document(self, held_out: bool, index: int, content_hash: str) -> Document:
        """Return a document by its place; UserError if the corpus has changed meanwhile."""
        side = self._split.validation if held_out else self._split.training
        found = side[index] if index < len(side) else None
        if found is None or found.content_hash != content_hash:
            raise UserError(
                "the text changed after it was looked at",
                "Wait until the program that writes it is done, then type the command again.",
            )
        return found

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


@dataclass(frozen=True)
class _KeptTexts:
    """The documents of one side; `first_prompt` is the prompt of the first that has one."""

    corpus: _Corpus
    held_out: bool
    sources: Sequence[str]
    first_prompt: tuple[int, str] | None

    def document(self, place: int, chunk: int, row: Row) -> Document:
        """Return the document of a row, whose text is read where it is asked for."""
        known = self.first_prompt
        return KeptDocument(
            self.corpus,
            (self.held_out, place),
            has_prompt=row.prompt_bytes >= 0,
            known_prompt=known[1] if known and known[0] == place else None,
            known={**row.facts(), "source": row.where(self.sources)},
        )

    def documents(self, first: int, chunk: int, rows: Rows) -> Iterator[Document]:
        """Return the documents of a chunk."""
        for place, row in enumerate(rows_of(rows), start=first):
            yield self.document(place, chunk, row)


def _blocks(
    snapshot: _Snapshot, record: SplitRecord, split: Split, sides: Sequence[DocumentTable]
) -> Iterator[bytes]:
    """Yield the length of the header, the header as JSON, a row for each document, and a hash."""
    records = [record, split.record] if split.is_repeatable else [record]
    header = {
        "key": snapshot.key,
        "records": [each.to_json() for each in records],
        "record": split.record.to_json(),
        "leak check": split.leak_check,
        "notes": split.notes,
        "prompts": [first_prompt(side) for side in sides],
        "rows": [len(side) for side in sides],
        "sources": list(sides[0].sources),
    }
    head = json.dumps(header).encode()
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    rows = (block.tobytes() for side in sides for block in side.chunks())
    for block in chain((len(head).to_bytes(8, "little"), head), rows):
        digest.update(block)
        yield block
    yield digest.digest()


def _load(
    path: Path, snapshot: _Snapshot, record: SplitRecord, read: Callable[[], Split]
) -> Split | None:
    """Return what `_blocks` describes; None where it is missing, damaged, or of another corpus."""
    try:
        with path.open("rb") as file:
            head = file.read(int.from_bytes(file.read(8), "little"))
            header = json.loads(head)
            if header["key"] != snapshot.key or record.to_json() not in header["records"]:
                return None
        if not _is_whole(path):
            return None
        return _unpack(header, path, 8 + len(head), _Corpus(read))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError):
        return None


def _is_whole(path: Path) -> bool:
    """Return whether the hash at the end of a file is that of all before it."""
    digest, left = hashlib.blake2b(digest_size=_DIGEST_BYTES), path.stat().st_size - _DIGEST_BYTES
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, _READ_BYTES))):
            digest.update(block)
            left -= len(block)
        return left == 0 and file.read() == digest.digest()


def _unpack(header: Mapping[str, Any], path: Path, begin: int, corpus: _Corpus) -> Split:
    sides = []
    for held_out, count, prompt in zip(
        (False, True), header["rows"], header["prompts"], strict=True
    ):
        chunks = [
            (begin + first * ROW.itemsize, min(_ROWS_AT_ONCE, count - first))
            for first in range(0, count, _ROWS_AT_ONCE)
        ]
        begin += count * ROW.itemsize
        # Kept open: the rows are there also after the file is replaced.
        file = path.open("rb", buffering=0)
        rows = RowFile(file, chunks)
        weakref.finalize(rows, file.close)
        texts = _KeptTexts(corpus, held_out, header["sources"], _place_of(prompt, rows))
        sides.append(DocumentTable(rows, texts))
    training, validation = sides
    return Split(
        training,
        validation,
        header["leak check"],
        header["notes"],
        SplitRecord.from_json(header["record"]),
    )


def _place_of(prompt: str | None, rows: RowFile) -> tuple[int, str] | None:
    """Return the place of the first document with a prompt, which is this one."""
    if prompt is None:
        return None
    before = 0
    for chunk in range(rows.n_chunks):
        found = np.flatnonzero(rows.read(chunk)["prompt_bytes"] >= 0)
        if len(found):
            return before + int(found[0]), prompt
        before = rows.ends[chunk]
    raise ValueError("no document has a prompt")
