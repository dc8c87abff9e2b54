"""Shards of documents whose tokens all differ, so that a batch tells what it has read."""

from __future__ import annotations

import numpy as np
import torch

from ys_llm.data.batches import Batch
from ys_llm.data.shards import TokenShard

END = 0


def token_data(lengths: list[int]) -> TokenShard:
    """Documents of these lengths; every text token differs from every other."""
    total = sum(lengths) + len(lengths) + 1
    tokens = np.arange(total, dtype=np.uint32) + 10
    offsets = np.cumsum([0, *[length + 1 for length in lengths[:-1]]]).astype(np.int64)
    tokens[offsets] = END
    tokens[-1] = END
    return TokenShard(tokens, offsets, np.array(lengths, dtype=np.int64) * 3)


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches are equal."""
    tensors = ("inputs_BT", "targets_BT", "starts_BT")
    return a.carry == b.carry and all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors)
