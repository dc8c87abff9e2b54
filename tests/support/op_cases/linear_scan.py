from __future__ import annotations

from collections.abc import Iterator

import torch

from support.op_cases import Case, leaf


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Decays over the whole of 0 to 1; `starts`: some are exactly 0, as where documents start."""
    for with_state in (False, True):
        for starts in (False, True):
            torch.manual_seed(length)
            decay_TBS = torch.rand(length, 3, 8, dtype=dtype)
            if starts:
                decay_TBS[torch.rand(length, 3) < 0.1] = 0.0
            decay_TBS.requires_grad_()
            input_TBS = leaf(length, 3, 8, dtype=dtype)
            initial_BS = leaf(3, 8, dtype=dtype, scale=1.0 if with_state else 0.0)
            leaves = [decay_TBS, input_TBS, initial_BS]
            yield f"{with_state=}, {starts=}", Case((*leaves,), {}, leaves)
