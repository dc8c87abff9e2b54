from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf
from ys_llm.ops.vector_delta_rule import Writes


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Decays from none to the fastest, corrections of any rate, documents that start anywhere."""
    for packed, fast_decay in product((False, True), repeat=2):
        torch.manual_seed(length)
        query_BTHK, key_BTHK = (leaf(2, length, 3, 6, dtype=dtype, scale=0.4) for _ in range(2))
        value_BTHV = leaf(2, length, 3, 5, dtype=dtype)
        removed = torch.nn.functional.normalize(torch.randn(2, length, 3, 6, dtype=dtype), dim=3)
        aim, correction = -removed, removed * torch.rand(2, length, 3, 6, dtype=dtype)
        log_decay = torch.rand(2, length, 3, 6, dtype=dtype) * (-0.607 if fast_decay else -0.02)
        for tensor in (aim, correction, log_decay):
            tensor.requires_grad_()
        memory_BHKV = leaf(2, 3, 6, 5, dtype=dtype, scale=1.0 if packed else 0.0)
        starts_BT = torch.rand(2, length) < 0.1 if packed else None
        writes = Writes(aim, correction, key_BTHK, value_BTHV, log_decay)
        leaves = [query_BTHK, *writes, memory_BHKV]
        yield (
            f"{packed=}, {fast_decay=}",
            Case((query_BTHK, writes, memory_BHKV, starts_BT), {}, leaves),
        )
