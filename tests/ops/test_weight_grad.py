"""The compiled gradient of a matrix, in bfloat16; `test_ops.py` tests what is left to torch."""

from __future__ import annotations

import pytest
import torch

from ys_llm.ops import weight_grad


@pytest.fixture(autouse=True)
def kernel() -> None:
    """Checked when a test runs: the kernels are compiled by then."""
    if not weight_grad.is_available():
        pytest.skip("the kernel needs a compiler and a CPU with AMX")


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 511, 512, 513, 1300])
@pytest.mark.parametrize(("k", "m"), [(32, 32), (64, 96), (544, 512)])
def test_sums_are_exact_to_float32_whatever_the_number_of_rows(rows: int, k: int, m: int) -> None:
    x_NK, dy_NM = torch.randn(rows, k).bfloat16(), torch.randn(rows, m).bfloat16()
    expected = x_NK.double().t() @ dy_NM.double()
    error = (weight_grad.cpp(x_NK, dy_NM) - expected).norm() / expected.norm()
    assert error < 1e-6


def test_rows_may_be_strided_and_threads_do_not_change_the_bits(threads_as_they_were: None) -> None:
    wide_x, wide_dy = torch.randn(700, 256).bfloat16(), torch.randn(700, 160).bfloat16()
    x_NK, dy_NM = wide_x[:, 64:192], wide_dy[:, 32:96]
    torch.set_num_threads(1)
    alone = weight_grad.cpp(x_NK, dy_NM)
    torch.set_num_threads(2)
    assert torch.equal(weight_grad.cpp(x_NK, dy_NM), alone)
    assert torch.equal(weight_grad.cpp(x_NK.contiguous(), dy_NM.contiguous()), alone)


def test_a_nan_spoils_its_row_alone() -> None:
    x_NK, dy_NM = torch.randn(600, 64).bfloat16(), torch.randn(600, 32).bfloat16()
    x_NK[555, 7] = float("nan")
    grad = weight_grad.cpp(x_NK, dy_NM)
    assert grad[7].isnan().all()
    assert grad[torch.arange(64) != 7].isfinite().all()


def test_sizes_that_are_no_multiple_of_a_block_are_left_to_torch() -> None:
    x_NK, dy_NM = torch.randn(300, 40).bfloat16(), torch.randn(300, 64).bfloat16()
    assert torch.equal(weight_grad.cpp(x_NK, dy_NM), weight_grad.plain(x_NK, dy_NM))
