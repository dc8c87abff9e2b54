"""Bits per byte of three simple predictors, which a model has to beat."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ys_llm.data.document_table import in_hash_order, sorted_hashes
from ys_llm.data.records import Document
from ys_llm.errors import UserError
from ys_llm.system.files import make_subfolder, readable_os_errors, write_atomically

_NAMES = ["unigram", "gzip", "xz"]
UNIGRAM_BYTES = 256_000_000
COMPRESSED_BYTES = 64_000_000  # half a minute of xz
_GZIP_FORMAT = 31  # of zlib: the largest window, with the header of gzip


def baselines(training: Sequence[Document], validation: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of the validation text.

    unigram: each byte by its frequency in the training text, (count + 1) / (total + 256);
    gzip (level 9) and xz (preset 6): the size of the validation text, compressed on its own in the
    order of the hashes. Of a larger text only the first UNIGRAM_BYTES and COMPRESSED_BYTES count.
    """
    counts = np.ones(256)
    for block in _first(_blocks(in_hash_order(training)), UNIGRAM_BYTES):
        counts += _bincount(block)
    seen, gzipped, xzipped = np.zeros(256), 0, 0
    gzip, xz = zlib.compressobj(9, wbits=_GZIP_FORMAT), lzma.LZMACompressor(preset=6)
    for block in _first(_blocks(in_hash_order(validation)), COMPRESSED_BYTES):
        seen += _bincount(block)
        gzipped += len(gzip.compress(block))
        xzipped += len(xz.compress(block))
    n_bytes = int(seen.sum())
    if not n_bytes:
        raise UserError("The validation split holds no text", "Add documents to it.")
    return {
        "unigram": float(seen @ -np.log2(counts / counts.sum())) / n_bytes,
        "gzip": 8 * (gzipped + len(gzip.flush())) / n_bytes,
        "xz": 8 * (xzipped + len(xz.flush())) / n_bytes,
    }


def cached_baselines(
    training: Sequence[Document], validation: Sequence[Document], *, cache_dir: Path
) -> dict[str, float]:
    """As `baselines`, cached in `cache_dir/<key>/`: compressing takes seconds at every start.

    The key is a hash of the documents' contents. A cache file without three finite
    numbers under these names is rewritten.
    """
    digest = hashlib.blake2b(b"baselines 1", digest_size=16)
    for side in (training, validation):
        digest.update(b"\n")
        for hashes in sorted_hashes(side, before=b"\n"):
            digest.update(hashes)
    path = cache_dir / digest.hexdigest() / "baselines.json"
    cached = _read_cache(path)
    if cached is None:
        cached = baselines(training, validation)
        with readable_os_errors(path):
            make_subfolder(path.parent)
        write_atomically(path, json.dumps(cached) + "\n", create_folder=False)
    return cached


def _read_cache(path: Path) -> dict[str, float] | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or list(read) != _NAMES:
        return None
    valid = all(isinstance(value, float) and math.isfinite(value) for value in read.values())
    return read if valid else None


def _blocks(documents: Sequence[Document]) -> Iterator[bytes]:
    """Yield prompts and texts as UTF-8, a part at a time."""
    for document in documents:
        yield (document.prompt or "").encode()
        for block in document.blocks():
            yield block.encode()


def _first(blocks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """Yield blocks until they have `limit` bytes."""
    size = 0
    for block in blocks:
        yield block
        size += len(block)
        if size >= limit:
            return


def _bincount(block: bytes) -> npt.NDArray[np.int64]:
    return np.bincount(np.frombuffer(block, np.uint8), minlength=256)
