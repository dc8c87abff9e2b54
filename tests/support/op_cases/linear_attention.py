from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf
from ys_llm.ops.linear_attention import Writes, n_features


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Both powers, four heads in two groups, with a past and packed documents or without."""
    for power, packed in product((1, 2), (False, True)):
        torch.manual_seed(length)
        query_BTGK, key_BTGK = (leaf(2, length, 2, 4, dtype=dtype, scale=0.5) for _ in range(2))
        value_BTHV = leaf(2, length, 4, 3, dtype=dtype)
        log_decay = (-torch.rand(2, length, 4, dtype=dtype)).requires_grad_()
        scale = 1.0 if packed else 0.0
        memory_BHFV = leaf(2, 4, n_features(4, power), 3, dtype=dtype, scale=scale)
        starts_BT = torch.rand(2, length) < 0.1 if packed else None
        writes = Writes(key_BTGK, value_BTHV, log_decay)
        leaves = [query_BTGK, *writes, memory_BHFV]
        yield (
            f"{power=}, {packed=}",
            Case((query_BTGK, writes, memory_BHFV, starts_BT, power), {}, leaves),
        )
