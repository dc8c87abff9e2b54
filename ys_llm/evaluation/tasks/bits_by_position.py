"""Bits per byte by position: does a model predict as well far beyond the length it was trained on?

Protocol. Up to 64 times the trained length after a fresh state, in streams spread evenly over the
text (`evaluation/by_position.py`), at most 500,000 predictions; every row is measured on nearly the
same text. Rows double: the trained length itself, then up to 2, 4, 8, ... 64 times it. A shorter
text gives fewer rows. A state that is reset at documents in training is reset here too: give a book
to see how a model does far from any start.

    bits per byte = nats per token / ln 2 * tokens per byte of the whole text
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ys_llm.data.shards import TokenShard
from ys_llm.evaluation.by_position import PositionLoss, loss_by_position
from ys_llm.runs.model_files import LoadedRun

MULTIPLE = 64


@dataclass(frozen=True)
class PositionRow:
    """Means over the positions [first, last] after a fresh state; `loss` is nats per token."""

    first: int
    last: int
    tokens: int
    loss: float
    bits_per_byte: float


def bits_by_position(loaded: LoadedRun, data: TokenShard) -> list[PositionRow]:
    """A row for the trained length, and one for each doubling of it."""
    losses = loss_by_position(
        loaded.model,
        data,
        seq_len=loaded.config.train.plan[-1].seq_len,
        multiple=MULTIPLE,
        reset_at_document=loaded.config.data.reset_at_document,
    )
    return doubling(losses, tokens_per_byte=data.n_inputs / max(1, data.n_bytes))


def doubling(losses: Sequence[PositionLoss], *, tokens_per_byte: float) -> list[PositionRow]:
    """Rows of equal lengths, joined to [0, 1), [1, 2), [2, 4), [4, 8), ... lengths."""
    rows, begin, end = [], 0, 1
    while begin < len(losses):
        part = losses[begin:end]
        tokens = sum(one.tokens for one in part)
        loss = sum(one.loss * one.tokens for one in part) / tokens
        bits = loss / math.log(2) * tokens_per_byte
        rows.append(PositionRow(part[0].first, part[-1].last, tokens, loss, bits))
        begin, end = end, 2 * end
    return rows
