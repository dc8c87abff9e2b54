"""Documents as token shards: encoded once, memory-mapped, cached under a hash of their content.

A shard is `<end> doc <end> doc <end> ... doc <end>`; a document with a prompt is
`prompt <start> text`. `<end>` as an input means "a document begins", so every token of every
document, and the `<end>` after it, is predicted exactly once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ys_llm.data.document_table import content_digest, in_hash_order, sizes_of, total_bytes
from ys_llm.data.pieces import chunks_of, split_chunks
from ys_llm.data.records import END, START, Document, utf8_length
from ys_llm.data.tokenizer import Tokenizer, id_format
from ys_llm.errors import UserError
from ys_llm.system.files import make_subfolder, readable_os_errors, write_atomically
from ys_llm.system.machine import inspect_machine

_FORMAT_VERSION = 1  # part of the cache key: raised when the layout of a shard changes
_PART_CHARS = 2_000_000  # of text encoded at a time: 0.1 s of work for one process
# A process encodes 20 MB/s and takes 0.4 s to start: below this size, one is as fast as several.
_PARALLEL_BYTES = 16_000_000
_MAX_PROCESSES = 16  # 0.15 GB each; more would wait for the one that writes

_BLOCK_BYTES = 1 << 20
_pack_offset = struct.Struct("<q").pack

NOT_COUNTED = -100  # in place of a target: the default `ignore_index` of torch
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # a shard equals itself alone: its arrays are never compared
class TokenShard:
    """One encoded split. `tokens` is a read-only memory map (uint16 or uint32).

    Where replies alone are to be learned (`examples.py`), `counts` says of each token whether
    predicting it counts, the bytes are those of the replies, and `<end>` may also end a turn.
    """

    tokens: npt.NDArray[Any]
    document_offsets: Int64Array  # position of each document's leading <end>
    document_bytes: Int64Array  # UTF-8 bytes of each document's prompt and text
    counts: npt.NDArray[np.bool_] | None = None

    @property
    def n_bytes(self) -> int:
        """Return the UTF-8 bytes of all documents."""
        return int(self.document_bytes.sum())

    @property
    def n_inputs(self) -> int:
        """M, the number of tokens that have a successor: the predictions in one pass."""
        return len(self.tokens) - 1

    def n_counted(self, n_inputs: int) -> int:
        """Return how many of the predictions of the first `n_inputs` tokens count."""
        if self.counts is None:
            return n_inputs
        return int(np.count_nonzero(self.counts[1 : n_inputs + 1]))

    def targets(self, positions: Int64Array) -> Int64Array:
        """Return the tokens at these positions, NOT_COUNTED for each that does not count."""
        found = self.tokens[positions].astype(np.int64)
        return (
            found if self.counts is None else np.where(self.counts[positions], found, NOT_COUNTED)
        )

    def begins(self, positions: Int64Array) -> npt.NDArray[np.bool_]:
        """Return whether a document begins at each of these positions."""
        if self.counts is None:
            return np.asarray(self.tokens[positions] == self.tokens[0])
        found = np.searchsorted(self.document_offsets, positions, side="right") - 1
        return np.asarray(self.document_offsets[found] == positions)

    @property
    def folder(self) -> Path:
        """Return where it is on disk, named after its content."""
        assert isinstance(self.tokens, np.memmap), "a shard in memory has no folder"
        return Path(str(self.tokens.filename)).parent


def open_shard(folder: Path) -> TokenShard:
    """Return the shard that another process has made here; UserError where there is none."""
    shard = _read_shard(folder)
    if shard is None:
        raise UserError(f"{folder} holds no shard", "Start again: it is made where it is missing.")
    return shard


def load_or_tokenize(
    documents: Sequence[Document], tokenizer: Tokenizer, *, cache_dir: Path, label: str
) -> TokenShard:
    """Return the documents as a shard, read from `cache_dir/<key>/`, or written there first.

    The key is a hash of the documents' content and of the tokenizer, never of a name, so stale ids
    are never trained on. A shard whose files have changed since they were checked must match its
    checksum, or it is rewritten. Documents are stored in the order of their hashes. `label` names
    the progress bar (stderr).
    """
    if not documents:
        raise UserError(
            f"The {label} split holds no documents",
            "Add text files, or change data.validation_fraction.",
        )
    ordered = in_hash_order(documents)
    folder = cache_dir / _cache_key(ordered, tokenizer)
    cached = _read_shard(folder)
    if cached is None:
        _write_shard(folder, ordered, tokenizer, label=label)
        cached = _read_shard(folder)
    if cached is None:
        raise UserError(
            f"{folder} was written and reads back damaged", "Check the disk and its free space"
        )
    return cached


def _cache_key(documents: Sequence[Document], tokenizer: Tokenizer) -> str:
    head = (f"format {_FORMAT_VERSION}".encode(), tokenizer.fingerprint.encode())
    return content_digest(documents, head).hexdigest()


def _write_shard(
    folder: Path, documents: Sequence[Document], tokenizer: Tokenizer, *, label: str
) -> None:
    dtype = _dtype_of(tokenizer.vocab_size)
    temporary = folder / f".tokens.bin.{os.getpid()}.tmp"
    with readable_os_errors(folder / "tokens.bin"):
        make_subfolder(folder.parent)
        make_subfolder(folder)
        try:
            with temporary.open("wb") as file:
                offsets, checksum = _write_tokens(
                    file, documents, tokenizer, dtype=dtype, label=label
                )
                n_tokens = file.tell() // dtype.itemsize
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / "tokens.bin")
            with offsets:
                write_atomically(
                    folder / "index.bin", _index(offsets, documents), create_folder=False
                )
        finally:
            temporary.unlink(missing_ok=True)
    for block in _file_blocks(folder / "index.bin"):
        checksum = zlib.crc32(block, checksum)
    meta = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.str,
        "n_tokens": n_tokens,
        "n_documents": len(documents),
        "n_bytes": total_bytes(documents),
        "key": folder.name,
        "checksum": checksum,
        "checked": _stamps(folder),
    }
    _write_meta(folder, meta)


def _index(offsets: IO[bytes], documents: Sequence[Document]) -> Iterator[bytes]:
    """Yield the index in blocks: where each document begins, then its bytes."""
    offsets.seek(0)
    yield from iter(lambda: offsets.read(_BLOCK_BYTES), b"")
    for sizes in sizes_of(documents):
        yield sizes.astype("<i8").tobytes()


def _file_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(_BLOCK_BYTES), b"")


def _write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    text = json.dumps(meta, indent=2) + "\n"
    write_atomically(folder / "meta.json", text, create_folder=False)


def _stamps(folder: Path) -> list[list[int]]:
    """Return what changes whenever a file of the shard is written, moved or copied.

    It includes the time of the last status change (ctime), which no archive or copy can set.
    """
    found = [(folder / name).stat() for name in ("tokens.bin", "index.bin")]
    return [[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for s in found]


def _write_tokens(
    file: BinaryIO,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    dtype: np.dtype[Any],
    label: str,
) -> tuple[IO[bytes], int]:
    """Return a temporary file with the position of each document's `<end>`, and the checksum."""
    offsets = tempfile.TemporaryFile(dir=Path(file.name).parent)  # noqa: SIM115 (the caller's)
    checksum = position = 0
    total = total_bytes(documents)
    encoded = _encode_all(documents, tokenizer, parallel=total >= _PARALLEL_BYTES)
    with tqdm(
        total=total, desc=f"encoding {label}", unit="B", unit_scale=True, disable=None
    ) as bar:
        for part, ids in encoded:
            file.write(ids)
            checksum = zlib.crc32(ids, checksum)
            if part.control == END:
                offsets.write(_pack_offset(position))
            position += len(ids) // dtype.itemsize
            bar.update(part.n_bytes)
    closing = np.array([tokenizer.end_id], dtype=dtype).tobytes()
    file.write(closing)
    return offsets, zlib.crc32(closing, checksum)


class _Part(NamedTuple):
    """A stretch of a document, and the control token before it: one, or "" inside a text."""

    control: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Bytes of the text as UTF-8."""
        return utf8_length(self.text)


def _parts(documents: Iterable[Document]) -> Iterator[_Part]:
    """Cut the documents into parts that are encoded separately with the same result."""
    for document in documents:
        control, prompt = END, document.prompt
        if prompt is not None:
            yield from _controlled(END, split_chunks(prompt, _PART_CHARS))
            control = START
        yield from _controlled(control, chunks_of(document.blocks(), _PART_CHARS))


def _controlled(control: str, pieces: Iterable[str]) -> Iterator[_Part]:
    """Put the control token before the first of the pieces of a text."""
    for piece in pieces:
        yield _Part(control, piece)
        control = ""


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Group parts into batches of about _PART_CHARS characters."""
    batch: list[_Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= _PART_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_all(
    documents: Iterable[Document], tokenizer: Tokenizer, *, parallel: bool
) -> Iterator[tuple[_Part, bytes]]:
    """Yield the parts of all documents, in order, with their packed ids."""
    batches = _batches(_parts(documents))
    if not parallel:
        for batch in batches:
            yield from zip(batch, _encode(batch, tokenizer), strict=True)
        return
    with tempfile.TemporaryDirectory(prefix="ys-encode-") as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        processes = min(inspect_machine().usable_cores, _MAX_PROCESSES)
        # spawn: a fork of a process with threads may inherit a lock that is never released.
        pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),  # the parent handles Ctrl-C
        )
        pending: deque[tuple[list[_Part], Future[list[bytes]]]] = deque()
        try:
            for batch in batches:
                pending.append((batch, pool.submit(_encode_with, batch, path)))
                if len(pending) > 2 * processes:  # a bound on the text that waits in memory
                    yield from _results(*pending.popleft())
            while pending:
                yield from _results(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _results(batch: list[_Part], future: Future[list[bytes]]) -> Iterator[tuple[_Part, bytes]]:
    return zip(batch, future.result(), strict=True)


def _encode_with(parts: Sequence[_Part], tokenizer_path: Path) -> list[bytes]:
    return _encode(parts, _load_once(tokenizer_path))


_load_once = cache(Tokenizer.load)


def _encode(parts: Sequence[_Part], tokenizer: Tokenizer) -> list[bytes]:
    """Return the ids of each part, packed as in the shard, with its control token before them."""
    control = {
        END: struct.pack(tokenizer.id_format, tokenizer.end_id),
        START: struct.pack(tokenizer.id_format, tokenizer.start_id),
        "": b"",
    }
    return [control[part.control] + tokenizer.encode_packed(part.text) for part in parts]


def _dtype_of(vocab_size: int) -> np.dtype[Any]:
    return np.dtype(id_format(vocab_size))


def _read_shard(folder: Path) -> TokenShard | None:
    """Return the shard in this folder, or None if there is none that matches its description.

    All tokens are read and checked only where the files are not those that were checked before.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # The dtype in the file is only compared: numpy would read `O` as addresses of objects.
        dtype = _dtype_of(meta["vocab_size"])
        tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")
        index = np.memmap(folder / "index.bin", dtype="<i8", mode="r")
        sizes = (folder.name, dtype.str, meta["n_tokens"], 2 * meta["n_documents"])
        if (meta["key"], meta["dtype"], len(tokens), len(index)) != sizes:
            return None  # before the checksum, which would read a file of any size
        stamps = _stamps(folder)
        if meta.get("checked") != stamps:
            checksum = zlib.crc32(index.tobytes(), zlib.crc32(tokens.data))
            if checksum != meta["checksum"] or tokens.max() >= meta["vocab_size"]:
                return None
            with suppress(UserError):  # a folder that cannot be written is checked every time
                _write_meta(folder, {**meta, "checked": stamps})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    offsets, document_bytes = index.reshape(2, -1)
    return TokenShard(tokens, offsets, document_bytes)
