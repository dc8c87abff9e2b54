from __future__ import annotations

from collections.abc import Iterator

import torch

from support.op_cases import Case, leaf
from ys_llm.ops.trapezoid import Memory, Rows, Steps


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """One row and two, packed documents with a past, and one document without."""
    for n_rows, packed in ((1, False), (2, True)):
        torch.manual_seed(length)
        shape, scale = (2, length, 3, n_rows), 1.0 if packed else 0.0
        rows = Rows(*(leaf(*shape, n, dtype=dtype, scale=0.5) for n in (4, 4, 3)))
        log_decay = (-torch.rand(2, length, 3, dtype=dtype)).requires_grad_()
        steps = Steps(log_decay, *(leaf(2, length, 3, dtype=dtype, around=0.5) for _ in range(2)))
        shapes = ((4, 3), (n_rows, 4), (n_rows, 3))
        memory = Memory(*(leaf(2, 3, *s, dtype=dtype, scale=scale) for s in shapes))
        starts_BT = torch.rand(2, length) < 0.1 if packed else None
        yield (
            f"{n_rows=}, {packed=}",
            Case((rows, steps, memory, starts_BT), {}, [*rows, *steps, *memory]),
        )
