from __future__ import annotations

from collections.abc import Iterator

import torch

from support.op_cases import Case, leaf
from ys_llm.ops.cross_entropy import Mixture

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
        x_ND = leaf(length, 5, dtype=dtype, scale=0.3)  # no p so small that 1 / p is all rounding
        leaves = [x_ND, *leaves[1:]]
        share_N, other_N = (torch.rand(length, dtype=dtype) for _ in range(2))
        other_N[::3] = 0  # nowhere in view
        mixture = Mixture(share_N.requires_grad_(), other_N.requires_grad_())
        weights_N = torch.rand(length, dtype=dtype)
        arguments = (*leaves[:2], leaves[2] if bias else None, targets_N, weights_N, mixture)
        yield f"{bias=}, mixed", Case(arguments, {}, [*leaves, share_N, other_N])
