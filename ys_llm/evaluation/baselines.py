"""Bits per byte of three simple predictors, which a model has to beat."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ys_llm.data.records import Document
from ys_llm.errors import UserError
from ys_llm.system.files import write_atomically

_NAMES = ["unigram", "gzip", "xz"]


def baselines(training: Sequence[Document], validation: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of the validation text.

    unigram: each byte by its frequency in the training text, (count + 1) / (total + 256);
    gzip (level 9) and xz (preset 6): the size of the validation text, compressed on its own.
    """
    counts = np.ones(256)
    for document in training:
        counts += np.bincount(np.frombuffer(_bytes_of(document), np.uint8), minlength=256)
    text = b"".join(map(_bytes_of, validation))
    if not text:
        raise UserError("The validation split holds no text", "Add documents to it.")
    seen = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
    return {
        "unigram": float(seen @ -np.log2(counts / counts.sum())) / len(text),
        "gzip": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=6)) / len(text),
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
        digest.update(
            "\n".join(["", "", *sorted(document.content_hash for document in side)]).encode()
        )
    path = cache_dir / digest.hexdigest() / "baselines.json"
    cached = _read_cache(path)
    if cached is None:
        cached = baselines(training, validation)
        write_atomically(path, json.dumps(cached) + "\n")
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


def _bytes_of(document: Document) -> bytes:
    return ((document.prompt or "") + document.text).encode()
