from __future__ import annotations

from collections.abc import Iterator

import torch

from support.op_cases import Case, leaf


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for shape in ((length, 5), (3, length, 8)):
        torch.manual_seed(length)
        leaves = [leaf(*shape, dtype=dtype), leaf(6, shape[-1], dtype=dtype)]
        yield f"{shape=}", Case(tuple(leaves), {}, leaves)
