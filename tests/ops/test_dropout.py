"""Dropout drops the share it says, keeps the mean, and gives the same mask for the same seed."""

from __future__ import annotations

import math

import pytest
import torch

from ys_llm.ops.dropout import Dropout

N = 1_000_003  # not a multiple of the 8 elements that one drawn integer serves


def kept_of_ones(p: float, *, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(p).train()(torch.ones(N))


@pytest.mark.parametrize("p", [1 / 256, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_p_to_the_nearest_256th(p: float) -> None:
    share = round(p * 256) / 256
    dropped = kept_of_ones(p).eq(0).float().mean().item()
    deviation = math.sqrt(share * (1 - share) / N)
    assert dropped == pytest.approx(share, abs=4 * deviation)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_stays_is_scaled_so_that_the_mean_is_kept(p: float) -> None:
    share = round(p * 256) / 256
    y = kept_of_ones(p)
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
    assert y.mean().item() == pytest.approx(1, abs=4 * math.sqrt(share / (1 - share) / N))


def test_each_of_the_eight_bytes_of_an_integer_drops_the_same_share() -> None:
    dropped_8 = kept_of_ones(0.25)[: N // 8 * 8].eq(0).view(-1, 8).float().mean(0)
    deviation = math.sqrt(0.25 * 0.75 / (N // 8))
    assert (dropped_8 - 0.25).abs().max() < 4.5 * deviation


def test_neighbours_are_dropped_independently() -> None:
    dropped = kept_of_ones(0.5).eq(0).double() - 0.5
    for lag in (1, 2, 8):
        correlation = (dropped[lag:] * dropped[:-lag]).mean() / 0.25
        assert abs(correlation) < 4.5 / math.sqrt(N)


def test_the_same_seed_drops_the_same_elements() -> None:
    assert torch.equal(kept_of_ones(0.3, seed=1), kept_of_ones(0.3, seed=1))
    assert not torch.equal(kept_of_ones(0.3, seed=1), kept_of_ones(0.3, seed=2))


def test_nothing_is_dropped_in_evaluation_nor_below_half_a_256th() -> None:
    x = torch.randn(5, 7)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert Dropout(0.4 / 256).train()(x) is x


def test_something_stays_however_high_p_is() -> None:
    y = kept_of_ones(0.9999)
    assert y.isfinite().all()
    assert y.mean().item() == pytest.approx(1, abs=4 * math.sqrt(255 / N))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_dtype_stay_and_gradients_pass_where_values_do(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 7).transpose(0, 2).to(dtype).requires_grad_()
    y = Dropout(0.5).train()(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.where(y == 0, 0.0, 2.0).to(dtype))
