from __future__ import annotations

from collections.abc import Iterator

import torch

from support.op_cases import Case, leaf
from ys_llm.ops.rotary import angles


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for clocks in ((0, 0, 0), (5, 100_000, 0)):
        torch.manual_seed(length)
        x_BTHP = leaf(3, length, 2, 6, dtype=dtype)
        cos, sin = angles(clocks, length, 6, 100.0, x_BTHP)
        yield f"{clocks=}", Case((x_BTHP, cos, sin), {}, [x_BTHP])
