"""Loss by position: does a model predict as well far beyond the length that it was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ys_llm.data.shards import TokenShard
from ys_llm.errors import UserError
from ys_llm.evaluation.bits_per_byte import evaluating, shards_of_paths, sum_of_nats
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

_BATCH_SIZE = 32  # streams at a time


@dataclass(frozen=True)
class PositionLoss:
    """Mean `loss` (nats per token) at the positions [first, last] after a fresh state."""

    first: int
    last: int
    loss: float
    tokens: int


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

    With the `seq_len` of training this shows whether loss rises beyond the trained length. The
    streams are spread evenly over the data and overlap where `max_tokens` predictions allow, so
    that every row of the table is measured on nearly the same text. Shorter data gives fewer rows.
    The dtype is that of `evaluate_tokens`.
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
    with evaluating(model):
        for group in np.array_split(firsts, -(-n_streams // _BATCH_SIZE)):
            state = None
            for k in range(multiple):
                positions = (group + k * seq_len)[:, None] + np.arange(seq_len + 1)
                tokens_BT = torch.from_numpy(data.tokens[positions].astype(np.int64)).to(device)
                inputs_BT = tokens_BT[:, :-1]
                starts_BT = inputs_BT == end_id if reset_at_document else None
                row_nats, state = sum_of_nats(model, inputs_BT, tokens_BT[:, 1:], state, starts_BT)
                nats[k] += row_nats
    n_tokens = n_streams * seq_len
    return [
        PositionLoss(k * seq_len, (k + 1) * seq_len - 1, float(nats[k]) / n_tokens, n_tokens)
        for k in range(multiple)
    ]


def positions_of_paths(
    loaded: LoadedRun, paths: Sequence[Path], *, held_out: bool = False
) -> list[tuple[str, PositionLoss]]:
    """Each file or folder as loss by position, up to 16 times the trained length."""
    return [
        (str(path), row)
        for path, data in shards_of_paths(loaded, paths, held_out=held_out)
        for row in loss_by_position(
            loaded.model,
            data,
            seq_len=loaded.config.train.plan[-1].seq_len,
            reset_at_document=loaded.config.data.reset_at_document,
        )
    ]
