from __future__ import annotations

from collections.abc import Iterator

import torch

from support.op_cases import Case, leaf

VOCAB_SIZE = 11


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for bias in (False, True):
        torch.manual_seed(length)
        x_ND, weight_VD = leaf(length, 5, dtype=dtype), leaf(VOCAB_SIZE, 5, dtype=dtype)
        leaves = [x_ND, weight_VD, *([leaf(VOCAB_SIZE, dtype=dtype)] if bias else [])]
        targets_N = torch.randint(VOCAB_SIZE, (length,))
        yield (
            f"{bias=}",
            Case((x_ND, weight_VD, leaves[2] if bias else None, targets_N), {}, leaves),
        )
