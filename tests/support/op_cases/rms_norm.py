from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf

EPS = 1e-5


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    shapes = [(length, 7), (3, length, 8), (2, length, 33)]
    for shape, scale, adds in product(shapes, (1e-2, 1.0, 1e3), (False, True)):
        torch.manual_seed(length)
        x = (scale * torch.randn(shape, dtype=dtype)).index_fill_(-2, torch.tensor([0]), 0.0)
        added = (scale * torch.randn(shape, dtype=dtype)).index_fill_(-2, torch.tensor([0]), 0.0)
        gain_D = leaf(shape[-1], dtype=dtype, scale=0.3, around=1.0)
        leaves = [x.requires_grad_(), *([added.requires_grad_()] if adds else []), gain_D]
        arguments = (x, added if adds else None, gain_D, EPS)
        yield f"{shape=}, {scale=}, {adds=}, first rows 0", Case(arguments, {}, leaves)
