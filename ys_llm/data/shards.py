"""Documents as token shards: encoded once, memory-mapped, cached under a hash of their content.

A shard is `<end> doc <end> doc <end> ... doc <end>`; a document with a prompt is
`prompt <start> text`. `<end>` as an input means "a document begins", so every token of every
document, and the `<end>` after it, is predicted exactly once.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ys_llm.data.records import Document
from ys_llm.data.tokenizer import Tokenizer, id_format
from ys_llm.errors import UserError
from ys_llm.system.files import make_folder, readable_os_errors, write_atomically

_FORMAT_VERSION = 1  # part of the cache key: raised when the layout of a shard changes
_CHUNK_BYTES = 2_000_000  # of text encoded at a time: 0.1 s of work for one process
# A process encodes 20 MB/s and takes 0.4 s to start: below this size, one is as fast as several.
_PARALLEL_BYTES = 16_000_000
_MAX_PROCESSES = 16  # 0.15 GB each; more would wait for the one that writes

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenShard:
    """One encoded split. `tokens` is a read-only memory map (uint16 or uint32)."""

    tokens: npt.NDArray[Any]
    document_offsets: Int64Array  # position of each document's leading <end>
    document_bytes: Int64Array  # UTF-8 bytes of each document's prompt and text

    @property
    def n_bytes(self) -> int:
        """Return the UTF-8 bytes of all documents."""
        return int(self.document_bytes.sum())

    @property
    def n_inputs(self) -> int:
        """M, the number of tokens that have a successor: the predictions in one pass."""
        return len(self.tokens) - 1


def load_or_tokenize(
    documents: Sequence[Document], tokenizer: Tokenizer, *, cache_dir: Path, label: str
) -> TokenShard:
    """Return the documents as a shard, from `cache_dir/<key>/` if it is there, else made there.

    The key is a hash of the documents' content and of the tokenizer, never of a name, so stale ids
    are never trained on. A shard whose files have changed since they were checked must match its
    checksum, or it is made again. Documents are stored in the order of their hashes. `label` names
    the progress bar (stderr).
    """
    if not documents:
        raise UserError(
            f"The {label} split holds no documents",
            "Add text files, or change data.validation_fraction.",
        )
    ordered = sorted(documents, key=lambda document: document.content_hash)
    folder = cache_dir / _cache_key([document.content_hash for document in ordered], tokenizer)
    cached = _read_shard(folder)
    if cached is None:
        _write_shard(folder, ordered, tokenizer, label=label)
        cached = _read_shard(folder)
    if cached is None:
        raise UserError(
            f"{folder} was written and reads back damaged", "Check the disk and its free space"
        )
    return cached


def _cache_key(sorted_keys: Sequence[str], tokenizer: Tokenizer) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (f"format {_FORMAT_VERSION}", tokenizer.fingerprint, *sorted_keys):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def _write_shard(
    folder: Path, documents: Sequence[Document], tokenizer: Tokenizer, *, label: str
) -> None:
    dtype = _dtype_of(tokenizer.vocab_size)
    temporary = folder / f".tokens.bin.{os.getpid()}.tmp"
    with readable_os_errors(folder / "tokens.bin"):
        make_folder(folder)
        try:
            with temporary.open("wb") as file:
                sizes, checksum = _write_tokens(
                    file, documents, tokenizer, dtype=dtype, label=label
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / "tokens.bin")
        finally:
            temporary.unlink(missing_ok=True)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    index = np.stack([offsets, [document.n_bytes for document in documents]]).astype("<i8")
    write_atomically(folder / "index.bin", index.tobytes())
    meta = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.str,
        "n_tokens": sum(sizes) + 1,
        "n_documents": len(documents),
        "n_bytes": int(index[1].sum()),
        "key": folder.name,
        "checksum": zlib.crc32(index.tobytes(), checksum),
        "checked": _stamps(folder),
    }
    _write_meta(folder, meta)


def _write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    write_atomically(folder / "meta.json", json.dumps(meta, indent=2) + "\n")


def _stamps(folder: Path) -> list[list[int]]:
    """Return what changes whenever a file of the shard is written, moved or copied.

    The time of the last change of status is among it: no archive and no copy can set that.
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
) -> tuple[list[int], int]:
    """Return the token count of each document with its leading `<end>`, and the checksum."""
    sizes: list[int] = []
    checksum = 0
    total = sum(document.n_bytes for document in documents)
    encoded_chunks = _encode_all(documents, tokenizer, parallel=total >= _PARALLEL_BYTES)
    with tqdm(
        total=total, desc=f"encoding {label}", unit="B", unit_scale=True, disable=None
    ) as bar:
        for chunk, encoded in zip(_chunks(documents), encoded_chunks, strict=True):
            for ids in encoded:
                file.write(ids)
                sizes.append(len(ids) // dtype.itemsize)
                checksum = zlib.crc32(ids, checksum)
            bar.update(sum(document.n_bytes for document in chunk))
    closing = np.array([tokenizer.end_id], dtype=dtype).tobytes()
    file.write(closing)
    return sizes, zlib.crc32(closing, checksum)


def _chunks(documents: Sequence[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    n_bytes = 0
    for document in documents:
        chunk.append(document)
        n_bytes += document.n_bytes
        if n_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk


def _encode_all(
    documents: Sequence[Document], tokenizer: Tokenizer, *, parallel: bool
) -> Iterator[list[bytes]]:
    """Yield for each chunk, in order, the packed ids of each of its documents."""
    if not parallel:
        yield from (_encode(chunk, tokenizer) for chunk in _chunks(documents))
        return
    with tempfile.TemporaryDirectory(prefix="ys-encode-") as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        # spawn: a fork of a process with threads may inherit a lock that is never released.
        pool = ProcessPoolExecutor(
            min(os.cpu_count() or 1, _MAX_PROCESSES),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),  # the parent handles Ctrl-C
        )
        try:
            yield from pool.map(partial(_encode_with, tokenizer_path=path), _chunks(documents))
        finally:
            pool.shutdown(cancel_futures=True)


def _encode_with(documents: Sequence[Document], *, tokenizer_path: Path) -> list[bytes]:
    return _encode(documents, _load_once(tokenizer_path))


_load_once = cache(Tokenizer.load)


def _encode(documents: Sequence[Document], tokenizer: Tokenizer) -> list[bytes]:
    """Return the ids of each document with its leading `<end>`, packed as in the shard."""
    end, start = (
        struct.pack(tokenizer.id_format, id) for id in (tokenizer.end_id, tokenizer.start_id)
    )
    packed = tokenizer.encode_packed
    return [
        end + packed(document.text)
        if document.prompt is None
        else end + packed(document.prompt) + start + packed(document.text)
        for document in documents
    ]


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
