"""Inputs of every op, and how results are compared; `tests/ops/` and the GPU's tests share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ys_llm.ops.three_tier import reference

EPS = 1e-5
VOCAB_SIZE = 11

# Largest error allowed, as a share of the largest entry of the reference's tensor.
TOLERANCES = {
    # Another order of the same sums: 130 steps lose at most a few of 16 digits.
    "float64": 1e-10,
    # eps is 1.2e-7 and the worst setting measured 4e-6; a wrong term shows as 1e-2 or more.
    "float32": 3e-5,
    # Operands keep 8 bits, 4e-3 each, in products after the loop: 8e-3 measured, of gradients.
    "bf16 after the loop": 2e-2,
    # At every step too, where oneDNN rounds. A summary every 3 steps magnifies most: 7e-2 measured,
    # of `reference` with rounded operands; which of these small products oneDNN rounds is its own.
    "bf16 in the loop": 1.5e-1,
}


class Case(NamedTuple):
    """Arguments of an op with the tensors among them that take gradients."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    leaves: list[Tensor]


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


class Setting(NamedTuple):
    """A shape of the recurrence: 0 as a period leaves that tier out; as d_summary, d_state."""

    d_state: int = 16
    d_summary: int = 0
    n_heads: int = 1
    shaper: bool = False
    entry: bool = False
    drive_bias: bool = False
    shared_norm: bool = False
    local_interval: int = 16
    global_interval: int = 64


RECURRENCES = {
    "preset": Setting(shaper=True, shared_norm=True),
    "default": Setting(entry=True, drive_bias=True),
    "heads-local": Setting(n_heads=2, entry=True, local_interval=5, global_interval=0),
    "odd-periods": Setting(d_state=24, n_heads=3, shaper=True, local_interval=3, global_interval=7),
    "narrow-summaries": Setting(
        drive_bias=True, d_state=24, d_summary=12, n_heads=2, shaper=True, local_interval=5
    ),
    "one-tier": Setting(shaper=True, local_interval=0, global_interval=64),
    "no-summaries": Setting(local_interval=0, global_interval=0),
}


def leaf(*shape: int, dtype: torch.dtype, scale: float = 1.0, around: float = 0.0) -> Tensor:
    return (around + scale * torch.randn(*shape, dtype=dtype)).requires_grad_()


def recurrence_weights(setting: Setting, dtype: torch.dtype) -> reference.Weights:
    s, p = setting.d_state, setting.d_state // setting.n_heads
    r = setting.d_summary or s

    def matrix(*shape: int) -> Tensor:
        # Short of 1 / sqrt(width): there narrow heads are chaotic and magnify any rounding.
        return leaf(*shape, dtype=dtype, scale=0.6 * shape[-1] ** -0.5)

    def norm(width: int) -> tuple[Tensor, Tensor]:
        return leaf(width, dtype=dtype, scale=0.3, around=1.0), leaf(width, dtype=dtype, scale=0.3)

    gain, bias = norm(s)
    tiers = [
        reference.Summary(
            *(matrix(s, r), matrix(s, r), matrix(r, s)),
            *((gain, bias) if setting.shared_norm else norm(r)),
            every,
        )
        if every
        else None
        for every in (setting.local_interval, setting.global_interval)
    ]
    return reference.Weights(
        matrix(s, s) if setting.n_heads == 1 else matrix(setting.n_heads, p, p),
        gain,
        bias,
        matrix(s, s) if setting.shaper else None,
        leaf(s, dtype=dtype, scale=0.3) if setting.entry else None,
        leaf(s, dtype=dtype, scale=0.3) if setting.drive_bias else None,
        *tiers,
    )


def recurrence_case(
    setting: Setting, length: int, *, position: int, held: bool, starts: bool, dtype: torch.dtype
) -> Case:
    """`held`: the state before the first token is not zero; `starts`: documents begin inside."""
    torch.manual_seed(length)
    weights = recurrence_weights(setting, dtype)
    scale = 1.0 if held else 0.0
    state = [leaf(3, setting.d_state, dtype=dtype, scale=scale) for _ in range(3)]
    drive_TBS = leaf(length, 3, setting.d_state, dtype=dtype)
    starts_TB = torch.rand(length, 3) < 0.1 if starts else None
    leaves = {id(tensor): tensor for tensor in tensors_in([drive_TBS, weights, state])}
    arguments = (drive_TBS, weights, reference.State(*state, position))
    return Case(arguments, {"starts_TB": starts_TB}, list(leaves.values()))


def recurrence_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    choices = product(RECURRENCES.items(), (0, 5), (False, True), (False, True))
    for (name, setting), position, held, starts in choices:
        label = f"{name}, clock {position}, {held=}, {starts=}"
        case = recurrence_case(
            setting, length, position=position, held=held, starts=starts, dtype=dtype
        )
        yield label, case


def cross_entropy_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for bias in (False, True):
        torch.manual_seed(length)
        x_ND, weight_VD = leaf(length, 5, dtype=dtype), leaf(VOCAB_SIZE, 5, dtype=dtype)
        leaves = [x_ND, weight_VD, *([leaf(VOCAB_SIZE, dtype=dtype)] if bias else [])]
        targets_N = torch.randint(VOCAB_SIZE, (length,))
        yield (
            f"{bias=}",
            Case((x_ND, weight_VD, leaves[2] if bias else None, targets_N), {}, leaves),
        )


def rms_norm_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    shapes = [(length, 7), (3, length, 8), (2, length, 33)]
    for shape, scale, adds in product(shapes, (1e-2, 1.0, 1e3), (False, True)):
        torch.manual_seed(length)
        x = (scale * torch.randn(shape, dtype=dtype)).index_fill_(-2, torch.tensor([0]), 0.0)
        added = (scale * torch.randn(shape, dtype=dtype)).index_fill_(-2, torch.tensor([0]), 0.0)
        gain_D = leaf(shape[-1], dtype=dtype, scale=0.3, around=1.0)
        leaves = [x.requires_grad_(), *([added.requires_grad_()] if adds else []), gain_D]
        arguments = (x, added if adds else None, gain_D, EPS)
        yield f"{shape=}, {scale=}, {adds=}, first rows 0", Case(arguments, {}, leaves)


def swiglu_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for (d_model, width), time_major in product([(7, 1), (8, 17), (5, 33)], (False, True)):
        torch.manual_seed(length)
        shapes = ((width, d_model), (width, d_model), (d_model, width))
        weights = [leaf(*shape, dtype=dtype, scale=shape[1] ** -0.5) for shape in shapes]
        x_BTD = leaf(3, length, d_model, dtype=dtype)
        if time_major:
            x_BTD = leaf(length, 3, d_model, dtype=dtype).detach().transpose(0, 1).requires_grad_()
        yield f"{d_model=}, {width=}, {time_major=}", Case((x_BTD, *weights), {}, [x_BTD, *weights])


def weight_grad_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for k, m in ((5, 7), (32, 64)):
        torch.manual_seed(length)
        leaves = [leaf(length, k, dtype=dtype), leaf(length, m, dtype=dtype)]
        yield f"{k} x {m}", Case(tuple(leaves), {}, leaves)


def linear_cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    for shape in ((length, 5), (3, length, 8)):
        torch.manual_seed(length)
        leaves = [leaf(*shape, dtype=dtype), leaf(6, shape[-1], dtype=dtype)]
        yield f"{shape=}", Case(tuple(leaves), {}, leaves)


CASES = {
    "cross_entropy": cross_entropy_cases,
    "linear": linear_cases,
    "three_tier": recurrence_cases,
    "rms_norm": rms_norm_cases,
    "swiglu": swiglu_cases,
    "weight_grad": weight_grad_cases,
}


def results(function: Callable[..., Any], case: Case) -> list[Tensor]:
    """Outputs, final state and every gradient; the cotangents are the same for all."""
    outputs = list(tensors_in(function(*case.arguments, **case.options)))
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    loss = torch.stack([(o * c).sum() for o, c in zip(outputs, cotangents, strict=True)]).sum()
    gradients = torch.autograd.grad(loss, case.leaves, allow_unused=True)
    pairs = zip(gradients, case.leaves, strict=True)
    filled = [torch.zeros_like(v) if g is None else g for g, v in pairs]
    return [*(output.detach() for output in outputs), *filled]


def largest_error(values: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error of any tensor as a share of its largest entry, but at least of 1."""
    errors = [
        ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1)).item()
        for ours, theirs in zip(values, expected, strict=True)
    ]
    assert not any(error != error for error in errors), "NaN: memory was read before it was written"
    return max(errors)


def rerun(functions: list[Callable[[], None]]) -> list[Callable[[], None]]:
    """In the place of a CUDA graph: run them now, and the same again later."""
    for function in functions:
        function()
    return list(functions)
