"""How well a model predicts a text: bits per byte, loss by position, and what is to be beaten."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ys_llm.data.batches import IGNORE_INDEX, evaluation_batches, evaluation_span
from ys_llm.data.readers import read_documents
from ys_llm.data.records import Document
from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun
from ys_llm.system.files import write_atomically

_HEAD_TOKENS = 2048  # logits made at a time: 32 MB at a vocabulary of 4,096


@dataclass(frozen=True)
class Evaluation:
    """`loss` is nats per token; `bytes` are the UTF-8 bytes of the evaluated documents."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class PositionLoss:
    """Mean `loss` (nats per token) at the positions [first, last] after a fresh state."""

    first: int
    last: int
    loss: float
    tokens: int


@dataclass(frozen=True)
class PathEvaluation:
    """The evaluation of one file or folder."""

    path: str
    documents: int
    result: Evaluation


def evaluate_tokens(
    model: Model,
    data: TokenShard,
    *,
    seq_len: int,
    batch_size: int = 32,
    max_tokens: int = 0,
    reset_at_document: bool = True,
) -> Evaluation:
    """Loss and bits per byte over a shard, every token predicted once, state carried.

    bits per byte = (sum of nats over all tokens, <start> and <end> included) / ln 2 / bytes,
    which compares models with different tokenizers. `max_tokens` > 0 evaluates only the whole
    documents at the front that fit into it (at least one), and counts their bytes.
    """
    end_id = int(data.tokens[0])  # a shard begins with <end>
    n_tokens, n_bytes = evaluation_span(data, max_tokens=max_tokens)
    batches = evaluation_batches(
        data, seq_len=seq_len, batch_size=batch_size, end_id=end_id, max_tokens=max_tokens
    )
    device = next(model.parameters()).device
    nats, state = 0.0, None
    with _evaluating(model):
        for batch in batches:
            starts_BT = batch.starts_BT.to(device) if reset_at_document else None
            targets_BT = batch.targets_BT.to(device)
            loss, state = model(
                batch.inputs_BT.to(device),
                state if batch.carry else None,
                starts_BT,
                targets_BT=targets_BT,
            )
            nats += loss.item() * int((targets_BT != IGNORE_INDEX).sum())
    return Evaluation(
        loss=nats / n_tokens,
        bits_per_byte=nats / math.log(2) / max(1, n_bytes),
        tokens=n_tokens,
        bytes=n_bytes,
    )


def loss_by_position(
    model: Model,
    data: TokenShard,
    *,
    seq_len: int,
    multiple: int = 16,
    max_tokens: int = 500_000,
    reset_at_document: bool = True,
) -> list[PositionLoss]:
    """Loss at the positions [k seq_len, (k + 1) seq_len), k < multiple, after a fresh state.

    With `seq_len` of the training this shows whether loss rises beyond the trained length. The
    streams are spread evenly over the data and overlap where `max_tokens` predictions allow, so
    that every row of the table is measured on nearly the same text. Shorter data gives fewer rows.
    """
    multiple = min(multiple, data.n_inputs // seq_len)
    if multiple == 0:
        raise UserError(
            f"The text has {data.n_inputs:,} tokens, and one row of the table needs {seq_len:,}",
            "Give a longer text.",
        )
    length = multiple * seq_len
    n_streams = max(1, min(max_tokens // length, data.n_inputs - length + 1))
    firsts = np.linspace(0, data.n_inputs - length, n_streams).astype(np.int64)
    nats = np.zeros(multiple)
    end_id, device = int(data.tokens[0]), next(model.parameters()).device
    with _evaluating(model):
        for group in np.array_split(firsts, -(-n_streams // 32)):
            state = None
            for k in range(multiple):
                positions = (group + k * seq_len)[:, None] + np.arange(seq_len + 1)
                tokens_BT = torch.from_numpy(data.tokens[positions].astype(np.int64)).to(device)
                inputs_BT = tokens_BT[:, :-1]
                starts_BT = inputs_BT == end_id if reset_at_document else None
                targets_BT = tokens_BT[:, 1:]
                loss, state = model(inputs_BT, state, starts_BT, targets_BT=targets_BT)
                nats[k] += loss.item() * targets_BT.numel()
    n_tokens = n_streams * seq_len
    return [
        PositionLoss(k * seq_len, (k + 1) * seq_len - 1, float(nats[k]) / n_tokens, n_tokens)
        for k in range(multiple)
    ]


def baselines(training: Sequence[Document], validation: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of the validation text for three predictors that a model has to beat.

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
    """As `baselines`, kept in `cache_dir/<key>/`: xz takes seconds over what never changes.

    The key is a hash of what the documents say. What is kept is taken as it is where it is three
    finite numbers with these names, and made again where it is not.
    """
    digest = hashlib.blake2b(b"baselines 1", digest_size=16)
    for side in (training, validation):
        digest.update(
            "\n".join(["", "", *sorted(document.content_hash for document in side)]).encode()
        )
    path = cache_dir / digest.hexdigest() / "baselines.json"
    kept = _read_baselines(path)
    if kept is None:
        kept = baselines(training, validation)
        write_atomically(path, json.dumps(kept) + "\n")
    return kept


def _read_baselines(path: Path) -> dict[str, float] | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or list(read) != ["unigram", "gzip", "xz"]:
        return None
    right = all(isinstance(value, float) and math.isfinite(value) for value in read.values())
    return read if right else None


def evaluate_run(loaded: LoadedRun, data: TokenShard) -> Evaluation:
    """A run's published model on a shard: what `ys eval` prints and training reports at its end."""
    return evaluate_tokens(
        loaded.model,
        data,
        seq_len=loaded.config.train.plan[-1].seq_len,
        reset_at_document=loaded.config.data.reset_at_document,
    )


def evaluate_paths(loaded: LoadedRun, paths: Sequence[Path]) -> list[PathEvaluation]:
    """Each file or folder as one evaluation with the run's own tokenizer; leaves no cache."""
    return [
        PathEvaluation(
            str(path),
            len(data.document_offsets),
            evaluate_run(loaded, data),
        )
        for path, data in _shards(loaded, paths)
    ]


def positions_of_paths(loaded: LoadedRun, paths: Sequence[Path]) -> list[tuple[str, PositionLoss]]:
    """Each file or folder as loss by position, up to 16 times the trained length."""
    return [
        (str(path), row)
        for path, data in _shards(loaded, paths)
        for row in loss_by_position(
            loaded.model,
            data,
            seq_len=loaded.config.train.plan[-1].seq_len,
            reset_at_document=loaded.config.data.reset_at_document,
        )
    ]


def _shards(loaded: LoadedRun, paths: Sequence[Path]) -> Iterator[tuple[Path, TokenShard]]:
    for path in paths:
        documents = read_documents(
            path, data_format=loaded.config.data.format, command="ys eval RUN PATH"
        )
        with tempfile.TemporaryDirectory(prefix="ys-eval-") as cache:
            label = path.name or str(path)
            yield (
                path,
                load_or_tokenize(documents, loaded.tokenizer, cache_dir=Path(cache), label=label),
            )


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _bytes_of(document: Document) -> bytes:
    return ((document.prompt or "") + document.text).encode()
