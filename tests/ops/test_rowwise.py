"""The row-wise kernels, beyond what `test_ops.py` tests of every op."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ys_llm.config.schema import ModelConfig
from ys_llm.csrc import loader
from ys_llm.mixers import three_tier
from ys_llm.model.language_model import Model
from ys_llm.model.state import detach
from ys_llm.ops import cross_entropy, rms_norm, rowwise, swiglu

EPS, B, T, D, M, V = 1e-5, 3, 40, 33, 17, 50


@pytest.fixture(autouse=True)
def kernels() -> None:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())


def time_major(x_BTD: Tensor) -> Tensor:
    """The same numbers, stored T x B x D."""
    return x_BTD.transpose(0, 1).contiguous().transpose(0, 1)


def norm(x_BTD: Tensor, added_BTD: Tensor) -> tuple[Tensor, ...]:
    return rms_norm.cpp(x_BTD, added_BTD, torch.linspace(0.5, 2, D, dtype=x_BTD.dtype), EPS)


def mlp(x_BTD: Tensor, added_BTD: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((M, D), (M, D), (D, M))
    weights = [torch.randn(s, generator=generator).to(x_BTD.dtype) for s in shapes]
    return (swiglu.cpp(x_BTD + added_BTD, *weights),)


def with_gradients(function: Any, order: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Outputs, and gradients of both inputs, for cotangents in the other layout."""
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(B, T, D, generator=generator) for _ in range(4)]
    inputs = [order(x).requires_grad_() for x in numbers[:2]]
    outputs = function(*inputs)
    torch.autograd.backward(outputs, numbers[2 : 2 + len(outputs)])
    return [*(o.detach() for o in outputs), *(x.grad for x in inputs if x.grad is not None)]


@pytest.mark.parametrize("function", [norm, mlp])
def test_the_layout_changes_no_bit_and_is_kept(function: Any) -> None:
    plain, swapped = (with_gradients(function, order) for order in (Tensor.clone, time_major))
    for ours, theirs in zip(swapped, plain, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.transpose(0, 1).is_contiguous()


def test_a_strided_input_is_copied() -> None:
    x_BTD = torch.randn(B, T, 2 * D)[..., ::2]
    stream, _ = norm(x_BTD, torch.zeros(D).expand(B, T, D))
    assert torch.equal(stream, x_BTD)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_spoils_its_row_and_no_other(bad: float) -> None:
    x_BTD = torch.randn(B, T, D)
    x_BTD[1, 5, 7] = bad
    for result in (norm(x_BTD, torch.zeros_like(x_BTD))[1], *mlp(x_BTD, torch.zeros_like(x_BTD))):
        finite_BT = result.isfinite().all(-1)
        assert not finite_BT[1, 5]
        assert finite_BT.sum() == B * T - 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_logit_makes_the_loss_non_finite(bad: float) -> None:
    x_ND, weight_VD = torch.randn(T, D), torch.randn(V, D)
    x_ND[3, 0] = bad
    loss = cross_entropy.cpp(x_ND, weight_VD, None, torch.zeros(T, dtype=torch.int64))
    assert not loss.isfinite()


@pytest.mark.parametrize("target", [-1, V, 1 << 40])
def test_an_invalid_target_gives_a_nan_loss(target: int) -> None:
    targets_N = torch.tensor([0, target, 1])
    assert cross_entropy.cpp(torch.randn(3, D), torch.randn(V, D), None, targets_N).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_give_the_loss_of_torch(dtype: torch.dtype) -> None:
    logits_NV = torch.randn(T, V, dtype=dtype) * torch.logspace(-3, 4, T, dtype=dtype)[:, None]
    targets_N, eye = torch.randint(V, (T,)), torch.eye(V, dtype=dtype)
    loss = cross_entropy.cpp(logits_NV, eye, None, targets_N)
    expected = torch.nn.functional.cross_entropy(logits_NV.double(), targets_N)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_gate_is_silu_to_the_last_bits_at_any_size() -> None:
    gates = torch.cat([torch.linspace(-200, 200, 8001), torch.tensor([1e30, 0.0, -0.0])])
    both = torch.stack([gates, torch.ones_like(gates)], 1)
    out = rowwise.swiglu_gate_forward(both)
    expected = torch.nn.functional.silu(gates.double())
    error = (out[:, 0] - expected).abs() / expected.abs().clamp_min(1e-26)  # below, all are 0
    assert error.max() < 5e-7


@pytest.mark.parametrize("function", [norm, mlp])
def test_the_same_inputs_give_the_same_bits_with_any_threads(
    function: Any, threads_as_they_were: None
) -> None:
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        results.append(with_gradients(function, time_major))
    for one, two, again in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(two, again)


def test_backward_may_run_twice_through_a_retained_graph() -> None:
    x_BTD = torch.randn(B, T, D, requires_grad=True)
    x, y = norm(x_BTD, torch.randn(B, T, D))
    loss = mlp(y, x)[0].sum()
    first, second = (torch.autograd.grad(loss, x_BTD, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_one_output_may_be_left_unused() -> None:
    x_BTD, added_BTD = (torch.randn(B, T, D, requires_grad=True) for _ in range(2))
    for used in (0, 1):
        ours = torch.autograd.grad(norm(x_BTD, added_BTD)[used].sum(), [x_BTD, added_BTD])
        gain_D = torch.linspace(0.5, 2, D)
        outputs = rms_norm.reference(x_BTD, added_BTD, gain_D, EPS)
        theirs = torch.autograd.grad(outputs[used].sum(), [x_BTD, added_BTD])
        torch.testing.assert_close(ours, theirs)


def test_unsupported_dtypes_take_torchs_operators() -> None:
    x_BTD, gain_D = torch.randn(B, T, D).half(), torch.ones(D).half()
    _, y = rms_norm.cpp(x_BTD, x_BTD, gain_D, EPS)
    torch.testing.assert_close(y, rms_norm.fused_backward(x_BTD, x_BTD, gain_D, EPS)[1])
    mixed = rms_norm.cpp(x_BTD.float(), x_BTD, gain_D.float(), EPS)  # half added to float
    assert mixed[1].dtype == torch.float32


def model_of(mixer: str, **changes: Any) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, n_layers=2, d_mlp=24, layers=(mixer,), **changes)
    return Model(config, vocab_size=V)


def read_by_head(model: Model, tokens_BT: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.final_dropout.register_forward_hook(lambda _, __, x_BTD: seen.append(x_BTD))
    model(tokens_BT)
    handle.remove()
    return seen[0]


def loss_and_gradients(model: Model, *, bf16: bool) -> tuple[float, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    tokens_BT, targets_BT = torch.randint(V, (2, B, T), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss, _ = model(tokens_BT, None, tokens_BT == 0, targets_BT=targets_BT)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mixer", ["three_tier", "softmax_attention"])
def test_a_model_learns_the_same_without_compiled_kernels(
    mixer: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, gradients = loss_and_gradients(model_of(mixer), bf16=bf16)
    monkeypatch.setattr(loader, "load", lambda **_: None)
    expected, expected_gradients = loss_and_gradients(model_of(mixer), bf16=bf16)
    assert loss == pytest.approx(expected, rel=1e-3 if bf16 else 1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        scale = theirs.abs().max().clamp_min(1e-6)
        assert (ours - theirs).abs().max() / scale < (0.1 if bf16 else 1e-4)


@pytest.mark.parametrize("block", ["pre_norm", "plain"])
@pytest.mark.parametrize("mixer", ["three_tier", "softmax_attention"])
def test_a_time_major_residual_stream_changes_nothing_but_memory(mixer: str, block: str) -> None:
    results = []
    for order in (False, True):
        model = model_of(mixer, block=block).double()
        model.time_major = order
        results.append(
            (model(torch.arange(20).view(2, 10))[0], loss_and_gradients(model, bf16=False))
        )
        x_BTD = read_by_head(model, torch.arange(20).view(2, 10))
        assert x_BTD.shape == (2, 10, 16)
        if block == "pre_norm":
            assert x_BTD.transpose(0, 1).is_contiguous() == order
    (logits, (loss, gradients)), (expected, (expected_loss, expected_gradients)) = results
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)


def test_a_carried_state_keeps_no_memory_but_its_own() -> None:
    model = Model(ModelConfig(d_model=16, n_layers=1, d_mlp=0), vocab_size=V)
    _, state = model(torch.zeros(B, T, dtype=torch.int64))
    carried = detach(state)["layers"][0]
    assert three_tier.Options().d_state == carried["main"].shape[1]
    for tensor in (carried["main"], carried["local_summary"], carried["global_summary"]):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert not tensor.requires_grad


class Distributed(Tensor):
    """A tensor whose numbers are not all at its own address."""


def test_a_subclass_of_tensor_takes_torchs_operators() -> None:
    x_BTD = torch.randn(B, T, D)
    assert rowwise.is_available(x_BTD)
    assert not rowwise.is_available(x_BTD.as_subclass(Distributed))
