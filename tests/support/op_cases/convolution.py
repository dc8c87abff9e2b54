from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """1 to 3 earlier tokens, both memory orders, documents that start and inputs that came before.

    17 channels: more than a vector, and not a multiple of one.
    """
    for n_earlier, starts, time_major in product((1, 3), (False, True), (False, True)):
        torch.manual_seed(length)
        x = leaf(*((length, 3) if time_major else (3, length)), 17, dtype=dtype)
        weight_KD, past_BKD = leaf(n_earlier, 17, dtype=dtype), leaf(3, n_earlier, 17, dtype=dtype)
        starts_BT = torch.rand(3, length) < 0.2 if starts else None
        x_BTD = x.transpose(0, 1) if time_major else x
        arguments = (x_BTD, weight_KD, past_BKD, starts_BT)
        yield (
            f"{n_earlier=}, {starts=}, {time_major=}",
            Case(arguments, {}, [x, weight_KD, past_BKD]),
        )
