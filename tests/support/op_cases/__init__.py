"""Inputs of every op, one module per op, found by its name: `cases(length, dtype)`.

A new op in `ys_llm/ops/` needs a module here with its name, and nothing else to be tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ys_llm.ops.accuracy import largest_error


class Case(NamedTuple):
    """Arguments of an op, and the tensors among them that take gradients."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    leaves: list[Tensor]


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def leaf(*shape: int, dtype: torch.dtype, scale: float = 1.0, around: float = 0.0) -> Tensor:
    return (around + scale * torch.randn(*shape, dtype=dtype)).requires_grad_()


def results(function: Callable[..., Any], case: Case) -> list[Tensor]:
    """Outputs, final state and every gradient, on the CPU; the same cotangents for all."""
    outputs = [
        o for o in tensors_in(function(*case.arguments, **case.options)) if o.is_floating_point()
    ]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in outputs]
    used, theirs = zip(
        *((o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad), strict=True
    )
    gradients = torch.autograd.grad(used, case.leaves, theirs, allow_unused=True)
    pairs = zip(gradients, case.leaves, strict=True)
    filled = [torch.zeros_like(v) if g is None else g for g, v in pairs]
    return [*(output.detach().cpu() for output in outputs), *(g.cpu() for g in filled)]


def assert_within(
    tolerance: float, values: list[Tensor], expected: list[Tensor], label: str = ""
) -> None:
    """Every tensor within this share of its own scale; NaN fails."""
    error = largest_error(values, expected)
    assert error <= tolerance, f"{label}: error {error:.1e}, {tolerance} allowed"
