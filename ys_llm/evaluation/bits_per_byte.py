"""How well a model predicts a text: mean loss and bits per byte.

bits per byte = (sum of nats over all tokens, <start> and <end> included) / ln 2 / UTF-8 bytes
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ys_llm.data.batches import IGNORE_INDEX, Batch, evaluation_batches, evaluation_span
from ys_llm.data.padded import padded_batch
from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.evaluation.run_text import documents_of_path
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import State
from ys_llm.runs.model_files import LoadedRun

EVALUATION_ROWS = 32  # streams that an evaluation reads in parallel


@dataclass(frozen=True)
class Evaluation:
    """`loss` is nats per token; `bytes` are the UTF-8 bytes of the evaluated documents."""

    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int


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
    batch_size: int = EVALUATION_ROWS,
    max_tokens: int = 0,
    reset_at_document: bool = True,
) -> Evaluation:
    """Loss and bits per byte over a shard, every token that counts predicted once, state carried.

    Computed in the dtype of the parameters (float32), also where training uses bfloat16 autocast:
    so `ys train` and `ys eval` give the same figure for the same weights and text. `max_tokens` > 0
    evaluates only the first documents that fit into it (at least one), and counts their bytes.
    """
    n_inputs, n_bytes = evaluation_span(data, max_tokens=max_tokens)
    n_tokens = data.n_counted(n_inputs)
    batches = evaluation_batches(
        data, seq_len=seq_len, batch_size=batch_size, max_tokens=max_tokens
    )
    nats = nats_of_batches(model, batches, reset_at_document=reset_at_document)
    return evaluation_of(nats, n_tokens, n_bytes)


def nats_of_batches(model: Model, batches: Iterable[Batch], *, reset_at_document: bool) -> float:
    """The loss of all targets that count in batches that follow each other, added up."""
    device = next(model.parameters()).device
    nats, state = 0.0, None
    with evaluating(model):
        for batch in batches:
            batch_nats, state = sum_of_nats(
                model,
                batch.inputs_BT.to(device),
                batch.targets_BT.to(device),
                state if batch.carry else None,
                batch.starts_BT.to(device) if reset_at_document else None,
            )
            nats += batch_nats
    return nats


def evaluation_of(nats: float, n_tokens: int, n_bytes: int) -> Evaluation:
    """The result for a text of this many predictions and bytes."""
    return Evaluation(
        loss=nats / max(1, n_tokens),
        bits_per_byte=nats / math.log(2) / max(1, n_bytes),
        tokens=n_tokens,
        bytes=n_bytes,
    )


def evaluate_apart(model: Model, data: TokenShard, seq_len: int) -> Evaluation:
    """Every document from the initial state, one a row, at most `seq_len` tokens of each."""
    nats, n_tokens, device = 0.0, 0, next(model.parameters()).device
    numbers = np.arange(len(data.document_offsets))
    with evaluating(model):
        for begin in range(0, len(numbers), EVALUATION_ROWS):
            batch = padded_batch(data, numbers[begin : begin + EVALUATION_ROWS], seq_len).to(device)
            nats += sum_of_nats(model, batch.inputs_BT, batch.targets_BT, None, None)[0]
            n_tokens += int((batch.targets_BT != IGNORE_INDEX).sum())
    # Of a document that is longer, as many bytes count as it has for each token, on average.
    n_bytes = round(data.n_bytes * n_tokens / max(1, data.n_counted(data.n_inputs)))
    bits = nats / math.log(2) / max(1, n_bytes)
    return Evaluation(nats / max(1, n_tokens), bits, n_tokens, n_bytes)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Inference mode, and no autocast: see `evaluate_tokens` for the dtype."""
    device = next(model.parameters()).device
    with inference_mode(model), torch.autocast(device.type, enabled=False):
        yield


def sum_of_nats(
    model: Model,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    state: State | None,
    starts_BT: Tensor | None,
) -> tuple[float, State]:
    """The loss of all targets that count, added up, and the state after the last input."""
    loss, state = model(inputs_BT, state, starts_BT, targets_BT=targets_BT)
    n_targets = int((targets_BT != IGNORE_INDEX).sum())
    return (float(loss) * n_targets if n_targets else 0.0), state


def evaluate_run(loaded: LoadedRun, data: TokenShard) -> Evaluation:
    """A run's published model on a shard: what `ys eval` prints and training reports at its end."""
    if loaded.model.initial_state is not None:
        return evaluate_apart(loaded.model, data, loaded.config.train.plan[-1].seq_len)
    return evaluate_tokens(
        loaded.model,
        data,
        seq_len=loaded.config.train.plan[-1].seq_len,
        reset_at_document=loaded.config.data.reset_at_document,
    )


def evaluate_paths(
    loaded: LoadedRun, paths: Sequence[Path], *, held_out: bool = False
) -> list[PathEvaluation]:
    """Each file or folder as one evaluation with the run's own tokenizer; leaves no cache."""
    return [
        PathEvaluation(
            str(path),
            len(data.document_offsets),
            evaluate_run(loaded, data),
        )
        for path, data in shards_of_paths(loaded, paths, held_out=held_out)
    ]


def shards_of_paths(
    loaded: LoadedRun, paths: Sequence[Path], *, held_out: bool = False
) -> Iterator[tuple[Path, TokenShard]]:
    """Tokenize each file or folder; a shard can be read until the next one is requested."""
    for path in paths:
        with (
            documents_of_path(loaded, path, held_out=held_out) as documents,
            tempfile.TemporaryDirectory(prefix="ys-eval-") as cache,
        ):
            label = path.name or str(path)
            yield (
                path,
                load_or_tokenize(documents, loaded.tokenizer, cache_dir=Path(cache), label=label),
            )
