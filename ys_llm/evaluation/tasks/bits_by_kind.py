"""Bits per byte by kind: how well a model predicts each of the kinds that a folder of text holds.

A kind is what the files `KIND-01.md`, `KIND-02.md`, ... are called, or the name of a file without a
number.

Protocol. Of each kind the first documents in the order of their hashes, with at most 100,000
tokens, each read from its own start with a fresh state; prompt, `<start>` and `<end>` are predicted
too.

    bits per byte = nats of all tokens / ln 2 / UTF-8 bytes of prompts and texts

Standard errors are those of a ratio of sums over documents (`recall.py`); none for one document.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ys_llm.data.records import Document
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.evaluation.mentions import documents_of
from ys_llm.evaluation.recall import ratio
from ys_llm.evaluation.token_losses import Float64Array, losses_of_documents
from ys_llm.model.language_model import Model

MAX_TOKENS = 100_000  # of each kind
ALL = "all"
# The file of a document, without its folder, number, ending and line.
_KIND = re.compile(r"(?:.*/)?(?P<kind>[^/]+?)(?:-\d+)?(?:\.\w+)?(?::\d+)?", re.DOTALL)


@dataclass(frozen=True)
class KindRow:
    """Bits per byte of one kind, or of all that was read."""

    kind: str
    documents: int
    tokens: int
    bytes: int
    bits_per_byte: float
    standard_error: float | None


def bits_by_kind(
    model: Model,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    max_tokens: int = MAX_TOKENS,
) -> list[KindRow]:
    """A row for each kind by name, and one for all of them."""
    rows, sums = [], list[tuple[Float64Array, Float64Array, int]]()
    for kind, own in sorted(by_kind(documents).items()):
        sums.append(_sums(model, tokenizer, own, max_tokens))
        rows.append(_row(kind, *sums[-1]))
    nats, n_bytes, n_tokens = zip(*sums, strict=True)
    whole = _row(ALL, np.concatenate(nats), np.concatenate(n_bytes), sum(n_tokens))
    return [*rows, whole] if len(rows) > 1 else rows


def by_kind(documents: Sequence[Document]) -> Mapping[str, list[Document]]:
    """The documents of each kind."""
    kinds: dict[str, list[Document]] = {}
    for document in documents[:]:  # one by one, those of a large text have none of it in memory
        kinds.setdefault(kind_of(document), []).append(document)
    return kinds


def kind_of(document: Document) -> str:
    """`tales` for a record of `training_data/tales-01.md`."""
    found = _KIND.fullmatch(document.source)
    return found["kind"] if found else document.source


def _sums(
    model: Model, tokenizer: Tokenizer, documents: Sequence[Document], max_tokens: int
) -> tuple[Float64Array, Float64Array, int]:
    """Nats and bytes of each document that is read, and the number of tokens."""
    with tempfile.TemporaryDirectory(prefix="ys-eval-") as cache:
        data = load_or_tokenize(documents, tokenizer, cache_dir=Path(cache), label="text")
        read = documents_of(data, max_tokens=max_tokens)
        n_bytes = np.array(data.document_bytes[: len(read)], dtype=np.float64)
    losses = losses_of_documents(model, read, first_id=tokenizer.end_id)
    return np.array([loss.sum() for loss in losses]), n_bytes, sum(map(len, read))


def _row(kind: str, nats: Float64Array, n_bytes: Float64Array, n_tokens: int) -> KindRow:
    bits, error = ratio(nats / math.log(2), n_bytes)
    return KindRow(kind, len(nats), n_tokens, int(n_bytes.sum()), bits, error)
