from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for (d_model, width), time_major in product([(7, 1), (8, 17), (5, 33)], (False, True)):
        torch.manual_seed(length)
        shapes = ((width, d_model), (width, d_model), (d_model, width))
        weights = [leaf(*shape, dtype=dtype, scale=shape[1] ** -0.5) for shape in shapes]
        x_BTD = leaf(3, length, d_model, dtype=dtype)
        if time_major:
            x_BTD = leaf(length, 3, d_model, dtype=dtype).detach().transpose(0, 1).requires_grad_()
        yield f"{d_model=}, {width=}, {time_major=}", Case((x_BTD, *weights), {}, [x_BTD, *weights])
