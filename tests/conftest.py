"""What every test may rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def memory_filled_with_nan() -> Iterator[None]:
    """Fill what `torch.empty` hands out with NaN, so that a read before the write is seen.

    Only deterministic mode obeys `fill_uninitialized_memory`; `test_ops.py` proves that it does.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
