from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf
from ys_llm.ops.delta_rule import Writes


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Keys of length 1, decays near 1 and near 0, rates up to 1, documents that start anywhere."""
    for with_state, starts, fast_decay in product((False, True), repeat=3):
        torch.manual_seed(length)
        query_BTHK, key_BTHK = (leaf(2, length, 3, 6, dtype=dtype, scale=0.4) for _ in range(2))
        with torch.no_grad():  # the same key again and again, as the same word has
            key_BTHK[1] = key_BTHK[1, :1]
            key_BTHK /= key_BTHK.norm(dim=3, keepdim=True)
        value_BTHV = leaf(2, length, 3, 5, dtype=dtype)
        log_decay = (-torch.rand(2, length, 3, dtype=dtype) * (4.0 if fast_decay else 0.1)).detach()
        rate = torch.rand(2, length, 3, dtype=dtype)
        for leaf_BTH in (log_decay, rate):
            leaf_BTH.requires_grad_()
        memory_BHKV = leaf(2, 3, 6, 5, dtype=dtype, scale=1.0 if with_state else 0.0)
        starts_BT = torch.rand(2, length) < 0.1 if starts else None
        writes = Writes(key_BTHK, value_BTHV, log_decay, rate)
        leaves = [query_BTHK, *writes, memory_BHKV]
        arguments = (query_BTHK, writes, memory_BHKV, starts_BT)
        yield f"{with_state=}, {starts=}, {fast_decay=}", Case(arguments, {}, leaves)
