from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch

from support.op_cases import Case, leaf
from ys_llm.ops.copy_attention import View

VOCAB_SIZE = 5  # few, so that most targets are found


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """With and without carried keys, documents (0 pads a row on the left) and small windows.

    Without a window, keys expire at random, and one row has no sentinel.
    """
    for past, starts, window in product((0, 21), (False, True), (0, 7, 40, 512)):
        torch.manual_seed(length)
        n_keys = past + length
        query_BTK, keys_BNK = leaf(3, length, 6, dtype=dtype), leaf(3, n_keys, 6, dtype=dtype)
        document_BN = torch.ones(3, n_keys, dtype=torch.int32)
        if starts:
            document_BN += (torch.rand(3, n_keys) < 0.1).cumsum(1, dtype=torch.int32)
            document_BN[0, :past] = 0
        tokens_BN = torch.randint(VOCAB_SIZE, (3, n_keys))
        targets_BT = torch.randint(VOCAB_SIZE, (3, length))
        own_N = torch.arange(n_keys) - past
        expires_BN = None if window else own_N + 1 + torch.randint(40, (3, n_keys))
        view = View(document_BN, window, expires_BN)
        exact = torch.promote_types(dtype, torch.float32)
        sentinel_BT = leaf(3, length, dtype=exact)
        if not window:
            with torch.no_grad():
                sentinel_BT[1] = -math.inf
        leaves = [query_BTK, keys_BNK, sentinel_BT]
        yield (
            f"{past=}, {starts=}, {window=}",
            Case((*leaves, tokens_BN, targets_BT, view), {}, leaves),
        )
