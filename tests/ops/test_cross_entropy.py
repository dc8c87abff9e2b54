"""Targets that do not count, and weights: every backend against torch's own cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.adapters import LowRankLinear
from torch import Tensor, nn
from torch.nn import functional

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.ops import cross_entropy as module
from ys_llm.ops.cross_entropy import BACKENDS, cross_entropy

N, D, V = 50, 7, 11
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_bias = pytest.mark.parametrize("bias", [False, True])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 8 * V)
    monkeypatch.setattr(module, "MODULE_ROWS", 8)


def leaves(*, bias: bool) -> list[Tensor]:
    shapes: list[tuple[int, ...]] = [(N, D), (V, D), *([(V,)] if bias else [])]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def targets_with(ignored: int) -> Tensor:
    targets_N = torch.randint(V, (N,))
    targets_N[torch.randperm(N)[:ignored]] = IGNORE_INDEX
    return targets_N


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    loss = function(tensors[0], tensors[1], tensors[2] if len(tensors) == 3 else None)
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


@every_backend
@every_bias
@pytest.mark.parametrize("ignored", [0, 1, 20, N - 1])
def test_ignored_targets_count_as_torchs_do(backend: str, bias: bool, ignored: int) -> None:
    targets_N = targets_with(ignored)

    def expected(x: Tensor, weight: Tensor, bias_V: Tensor | None) -> Tensor:
        logits_NV = functional.linear(x, weight, bias_V)
        return functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE_INDEX)

    def ours(*tensors: Any) -> Tensor:
        return BACKENDS[backend](*tensors, targets_N)

    tensors = leaves(bias=bias)
    torch.testing.assert_close(with_gradients(ours, tensors), with_gradients(expected, tensors))


@every_backend
@every_bias
@pytest.mark.parametrize("ignored", [0, 20])
def test_weights_weigh_the_nats_of_each_target(backend: str, bias: bool, ignored: int) -> None:
    targets_N, weights_N = targets_with(ignored), torch.rand(N, dtype=torch.float64)
    weights_N[::7] = 0
    counts_N = torch.where(targets_N == IGNORE_INDEX, 0, weights_N)

    def expected(x: Tensor, weight: Tensor, bias_V: Tensor | None) -> Tensor:
        logits_NV = functional.linear(x, weight, bias_V)
        nats_N = functional.cross_entropy(logits_NV, targets_N, reduction="none")
        return (counts_N * nats_N).sum() / counts_N.sum()

    def ours(*tensors: Any) -> Tensor:
        return BACKENDS[backend](*tensors, targets_N, weights_N)

    tensors = leaves(bias=bias)
    torch.testing.assert_close(with_gradients(ours, tensors), with_gradients(expected, tensors))


@every_backend
@every_bias
def test_weights_of_one_change_nothing(backend: str, bias: bool) -> None:
    targets_N, tensors = targets_with(20), leaves(bias=bias)
    results = [
        with_gradients(lambda *t, w=weights_N: BACKENDS[backend](*t, targets_N, w), tensors)
        for weights_N in (None, torch.ones(N, dtype=torch.float64))
    ]
    torch.testing.assert_close(*results)


@every_backend
@every_bias
@pytest.mark.parametrize("weighted", [False, True])
def test_where_no_target_counts_loss_and_gradients_are_zero(
    backend: str, bias: bool, weighted: bool
) -> None:
    targets_N = torch.zeros(N, dtype=torch.int64) if weighted else targets_with(N)
    weights_N = torch.zeros(N, dtype=torch.float64) if weighted else None
    results = with_gradients(
        lambda *t: BACKENDS[backend](*t, targets_N, weights_N), leaves(bias=bias)
    )
    assert all(result.count_nonzero() == 0 for result in results)


@every_backend
@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_that_does_not_count_may_hold_anything(backend: str, weighted: bool) -> None:
    tensors, targets_N = leaves(bias=False), torch.randint(V, (N,))
    expected = with_gradients(
        lambda x, w, _: BACKENDS[backend](x[1:], w, None, targets_N[1:]), tensors
    )
    weights_N = None
    if weighted:
        weights_N = torch.ones(N, dtype=torch.float64)
        weights_N[0] = 0
    else:
        targets_N[0] = IGNORE_INDEX
    found = with_gradients(lambda *t: BACKENDS[backend](*t, targets_N, weights_N), tensors)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [0, 20, N])
def test_a_wrapped_head_has_the_loss_of_its_logits(ignored: int, weighted: bool) -> None:
    head = LowRankLinear(nn.Linear(D, V).double())
    x_ND, targets_N = (
        torch.randn(N, D, dtype=torch.float64, requires_grad=True),
        targets_with(ignored),
    )
    weights_N = torch.rand(N, dtype=torch.float64) if weighted else None
    learned = [x_ND, *head.lora_A.parameters(), *head.lora_B.parameters()]
    loss = cross_entropy(head, x_ND, targets_N, weights_N)
    expected = BACKENDS["reference"](x_ND, head.merged(), head.bias, targets_N, weights_N)
    torch.testing.assert_close(loss, expected)
    gradients, expected_gradients = (
        torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)
        for value in (loss, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients)


def test_without_gradients_none_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation pays for the logits alone."""
    made: list[tuple[int, ...]] = []
    real = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *a, **k: (made.append(tuple(a[0].shape)), real(*a, **k))[1]
    )
    with torch.inference_mode():
        x_ND, weight_VD = leaves(bias=False)
        BACKENDS["chunked"](x_ND, weight_VD, None, targets_with(0))
    assert made == []
