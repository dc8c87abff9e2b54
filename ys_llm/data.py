"""Documents become memory-mapped token shards, and shards become batches.

A shard is `<end> doc <end> doc <end> ... doc <end>`; a document with a prompt is
`prompt <start> text`. `<end>` at the input means "a document begins", so every token of every
document, and the `<end>` that closes it, is predicted exactly once. The first and the last
token of a shard are both `<end>`: training reads it as a ring of M = len(tokens) - 1 inputs,
and position i of the ring is followed by position (i + 1) mod M.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from ys_llm.corpus import Document
from ys_llm.errors import UserError
from ys_llm.files import write_atomically
from ys_llm.tokenizer import Tokenizer

IGNORED = -100  # torch's own default `ignore_index`: a target that no loss counts
_FORMAT_VERSION = 1  # part of the cache key: raise it when the layout of a shard changes
_CHUNK_BYTES = 4_000_000  # text encoded at a time, half a second's work for one process
# A process encodes 5 to 10 MB/s and takes some 2 s to start: below this, one is as fast as many.
_PARALLEL_BYTES = 32_000_000
_MOST_PROCESSES = 16  # each holds 0.3 GB, most of it torch

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class TokenData:
    """One encoded split. `tokens` is a read-only memory map (uint16 or uint32)."""

    tokens: npt.NDArray[Any]
    document_offsets: Int64Array  # position of each document's leading <end>
    document_bytes: Int64Array  # UTF-8 bytes of each document's prompt and text

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return int(self.document_bytes.sum())

    @property
    def n_inputs(self) -> int:
        """M: tokens that have a successor, which is the number of predictions in a pass."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Batch:
    """What one step reads: `inputs_BT`, `targets_BT` (int64), `starts_BT` (bool).

    `carry` says that row b goes on where row b of the batch before stopped, so that the state
    is to be carried. `starts_BT` marks the first token (`<end>`) of each document.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    starts_BT: Tensor
    carry: bool


@dataclass(frozen=True)
class BatchPlan:
    """Everything the order of batches depends on, besides the data and the batch's index."""

    layout: Literal["windows", "streams"]
    seq_len: int
    batch_size: int
    seed: int
    end_id: int


def prepare(
    documents: Sequence[Document], tokenizer: Tokenizer, *, cache_dir: Path, label: str
) -> TokenData:
    """The documents as a shard, read from `cache_dir/<key>/` or made there.

    The key is a hash of what the documents say and of the tokenizer, never of a name, and a
    shard that does not match its own checksum is made again: no stale ids can be trained on.
    Documents are stored in the order of their keys. `label` names the progress bar (stderr).
    """
    if not documents:
        raise UserError(
            f"The {label} split holds no documents",
            "Add text files, or change data.validation_fraction.",
        )
    keyed = sorted(((document.key, document) for document in documents), key=lambda pair: pair[0])
    folder = cache_dir / _cache_key([key for key, _ in keyed], tokenizer)
    cached = _read_shard(folder)
    if cached is None:
        _write_shard(folder, [document for _, document in keyed], tokenizer, label=label)
        cached = _read_shard(folder)
    if cached is None:
        raise UserError(
            f"{folder} was written and reads back damaged", "Check the disk and its free space."
        )
    return cached


def batches_per_epoch(data: TokenData, plan: BatchPlan) -> int:
    """Batches until every token has been an input at least once (the last one rounds up)."""
    _check_length(data, plan)
    if plan.layout == "windows":
        return -(-_n_windows(data, plan) // plan.batch_size)
    return _n_pieces(data, plan)


def batch_at(data: TokenData, plan: BatchPlan, index: int) -> Batch:
    """Batch number `index` (0 is the first): a pure function of its arguments, in O(1).

    windows: sample s = index * batch_size + row is window `permute(s mod n)` of epoch s // n,
    with n = ceil(M / seq_len); samples run on over epochs, so no partial batch is dropped.
    streams: row b reads from floor(b M / batch_size) on, piece k = index mod K, with
    K = ceil(M / (batch_size seq_len)); `carry` is false at an epoch's first piece only.
    In both, an offset drawn from (seed, epoch) turns the ring, so borders move every epoch.

    Raises UserError where the data is shorter than one window.
    """
    _check_length(data, plan)
    if plan.layout == "windows":
        begins, carry = _window_begins(data, plan, index), False
    else:
        begins, carry = _stream_begins(data, plan, index)
    positions = (begins[:, None] + np.arange(plan.seq_len + 1)) % data.n_inputs
    rows = torch.from_numpy(data.tokens[positions].astype(np.int64))
    return _batch(rows[:, :-1], rows[:, 1:], end_id=plan.end_id, carry=carry)


def permute(indices: UInt64Array, n: int, *, seed: int, epoch: int) -> UInt64Array:
    """A keyed bijection of 0..n-1, computed for each index alone (nothing is shuffled).

    Four Feistel rounds over 2h bits, 4**h >= n:  (l, r) <- (r, l xor F(r xor key_i)), where F
    keeps h bits of a 64-bit mixer; a value that falls at n or above goes through again
    (cycle walking) until it is below n, fewer than 4 times on average.
    """
    half_bits = max(1, -(-(n - 1).bit_length() // 2))
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    keys = _draw("permute", seed, epoch, n=4)
    values = indices.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << half) | right
        outside = values >= n
    return values


def evaluation_span(data: TokenData, *, max_tokens: int) -> tuple[int, int]:
    """(predictions, bytes) of the part that is evaluated with this limit.

    Whole documents from the front, as many as have `max_tokens` tokens together but at least
    one; 0 means all. The part depends on nothing else, so evaluations can be compared.
    """
    if max_tokens <= 0 or data.n_inputs <= max_tokens:
        return data.n_inputs, data.n_bytes
    ends = np.append(data.document_offsets[1:], data.n_inputs)
    n_documents = max(1, int(np.searchsorted(ends, max_tokens, side="right")))
    return int(ends[n_documents - 1]), int(data.document_bytes[:n_documents].sum())


def evaluation_batches(
    data: TokenData, *, seq_len: int, batch_size: int, end_id: int, max_tokens: int = 0
) -> Iterator[Batch]:
    """Contiguous streams, state carried, in which every token is predicted exactly once.

    Row b scores [floor(b n / B), floor((b + 1) n / B)) and begins to read `seq_len` tokens
    earlier, so that a prediction beside a border has context too. Targets that are not scored
    (this run-up, and the end of rows shorter than the longest) are IGNORED. The last batch is
    as short as what is left.
    """
    n_tokens, _ = evaluation_span(data, max_tokens=max_tokens)
    # A row shorter than a window would spend more on its run-up than on its own tokens.
    n_rows = max(1, min(batch_size, n_tokens // seq_len))
    borders = np.arange(n_rows + 1, dtype=np.int64) * n_tokens // n_rows
    firsts = np.maximum(borders[:-1] - seq_len, 0)
    longest = int((borders[1:] - firsts).max())
    for done in range(0, longest, seq_len):
        columns = np.arange(done, min(done + seq_len, longest))
        positions = firsts[:, None] + columns
        scored = (positions >= borders[:-1, None]) & (positions < borders[1:, None])
        inside = np.minimum(positions, n_tokens - 1)  # what lies beyond is IGNORED anyway
        inputs = torch.from_numpy(data.tokens[inside].astype(np.int64))
        targets = np.where(scored, data.tokens[inside + 1].astype(np.int64), IGNORED)
        yield _batch(inputs, torch.from_numpy(targets), end_id=end_id, carry=done > 0)


def _batch(inputs_BT: Tensor, targets_BT: Tensor, *, end_id: int, carry: bool) -> Batch:
    return Batch(inputs_BT.contiguous(), targets_BT.contiguous(), inputs_BT == end_id, carry)


def _check_length(data: TokenData, plan: BatchPlan) -> None:
    if data.n_inputs < plan.seq_len:
        raise UserError(
            f"The training split has {len(data.tokens):,} tokens, and train.seq_len: "
            f"{plan.seq_len} needs at least {plan.seq_len + 1:,}",
            f"Add text, or type --set train.seq_len={max(1, data.n_inputs)} (or less).",
        )


def _n_windows(data: TokenData, plan: BatchPlan) -> int:
    return -(-data.n_inputs // plan.seq_len)


def _n_pieces(data: TokenData, plan: BatchPlan) -> int:
    return -(-data.n_inputs // (plan.batch_size * plan.seq_len))


def _window_begins(data: TokenData, plan: BatchPlan, index: int) -> Int64Array:
    n = _n_windows(data, plan)
    samples = index * plan.batch_size + np.arange(plan.batch_size, dtype=np.int64)
    epochs = samples // n
    begins = np.empty(plan.batch_size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        windows = permute((samples[rows] % n).astype(np.uint64), n, seed=plan.seed, epoch=epoch)
        offset = int(_draw("offset", plan.seed, epoch)[0]) % plan.seq_len
        begins[rows] = offset + windows.astype(np.int64) * plan.seq_len
    return begins


def _stream_begins(data: TokenData, plan: BatchPlan, index: int) -> tuple[Int64Array, bool]:
    epoch, piece = divmod(index, _n_pieces(data, plan))
    offset = int(_draw("offset", plan.seed, epoch)[0]) % data.n_inputs
    rows = np.arange(plan.batch_size, dtype=np.int64)
    begins = offset + rows * data.n_inputs // plan.batch_size + piece * plan.seq_len
    return begins, piece > 0


def _mix(x: UInt64Array) -> UInt64Array:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every input bit reaches every output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draw(purpose: str, seed: int, epoch: int, *, n: int = 1) -> UInt64Array:
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=8 * n).digest()
    return np.frombuffer(digest, dtype="<u8")


def _cache_key(sorted_keys: Sequence[str], tokenizer: Tokenizer) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (f"format {_FORMAT_VERSION}", tokenizer.fingerprint, *sorted_keys):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def _write_shard(
    folder: Path, documents: Sequence[Document], tokenizer: Tokenizer, *, label: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    temporary = folder / f"tokens.bin.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            sizes, checksum = _write_tokens(file, documents, tokenizer, dtype=dtype, label=label)
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
    }
    write_atomically(folder / "meta.json", json.dumps(meta, indent=2) + "\n")


def _write_tokens(
    file: BinaryIO,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    dtype: np.dtype[Any],
    label: str,
) -> tuple[list[int], int]:
    """Tokens of each document with its leading `<end>`, and the checksum of what was written."""
    sizes: list[int] = []
    checksum = 0
    total = sum(document.n_bytes for document in documents)
    encoded_chunks = _encode_all(documents, tokenizer, dtype, parallel=total >= _PARALLEL_BYTES)
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
    documents: Sequence[Document], tokenizer: Tokenizer, dtype: np.dtype[Any], *, parallel: bool
) -> Iterator[list[bytes]]:
    """Chunk after chunk, in order, the bytes of each of its documents."""
    if not parallel:
        yield from (_encode(chunk, tokenizer, dtype) for chunk in _chunks(documents))
        return
    with tempfile.TemporaryDirectory(prefix="ys-encode-") as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        # Not forked: a fork of a process with threads may inherit a lock that nobody releases.
        pool = ProcessPoolExecutor(
            min(os.cpu_count() or 1, _MOST_PROCESSES),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is the parent's to answer
        )
        try:
            yield from pool.map(
                partial(_encode_with, tokenizer_path=path, dtype=dtype), _chunks(documents)
            )
        finally:
            pool.shutdown(cancel_futures=True)


def _encode_with(
    documents: Sequence[Document], *, tokenizer_path: Path, dtype: np.dtype[Any]
) -> list[bytes]:
    return _encode(documents, _load_once(tokenizer_path), dtype)


_load_once = cache(Tokenizer.load)


def _encode(
    documents: Sequence[Document], tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> list[bytes]:
    texts = [text for d in documents for text in (d.prompt, d.text) if text is not None]
    encoded = iter(tokenizer.encode_batch(texts))
    result = []
    for document in documents:
        prompt = [] if document.prompt is None else [*next(encoded), tokenizer.start_id]
        ids = [tokenizer.end_id, *prompt, *next(encoded)]
        result.append(np.array(ids, dtype=dtype).tobytes())
    return result


def _read_shard(folder: Path) -> TokenData | None:
    """The shard in this folder, or None where there is none that matches its own description."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        tokens = np.memmap(folder / "tokens.bin", dtype=np.dtype(meta["dtype"]), mode="r")
        index = np.fromfile(folder / "index.bin", dtype="<i8")
        checksum = zlib.crc32(index.tobytes(), zlib.crc32(tokens.data))
        expected = (folder.name, meta["checksum"], meta["n_tokens"], 2 * meta["n_documents"])
        if (meta["key"], checksum, len(tokens), len(index)) != expected:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    offsets, document_bytes = index.reshape(2, -1)
    return TokenData(tokens, offsets, document_bytes)
