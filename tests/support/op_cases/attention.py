from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """With and without carried keys, documents (0 pads a row on the left), windows and groups.

    Half of the combinations at one length, the other half at the next.
    """
    windows = (0, 7, 40)
    for past, starts, window, n_kv_heads in product((0, 21), (False, True), windows, (4, 2)):
        if (length + past + starts + windows.index(window) + n_kv_heads // 2) % 2:
            continue
        torch.manual_seed(length)
        n_keys = past + length
        query_BTHP = leaf(3, length, 4, 6, dtype=dtype)
        keys, values = (leaf(3, n_keys, n_kv_heads, 6, dtype=dtype) for _ in range(2))
        document_BN = torch.ones(3, n_keys, dtype=torch.int32)
        if starts:
            document_BN += (torch.rand(3, n_keys) < 0.1).cumsum(1, dtype=torch.int32)
            document_BN[0, :past] = 0
        label = f"{past=}, {starts=}, {window=}, {n_kv_heads=}"
        leaves = [query_BTHP, keys, values]
        yield label, Case((query_BTHP, keys, values, document_BN, window), {}, leaves)
