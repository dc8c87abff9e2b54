from __future__ import annotations

from collections.abc import Iterator

import torch

from support.op_cases import Case, leaf


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for k, m in ((5, 7), (32, 64)):
        torch.manual_seed(length)
        leaves = [leaf(length, k, dtype=dtype), leaf(length, m, dtype=dtype)]
        yield f"{k} x {m}", Case(tuple(leaves), {}, leaves)
