"""The SwiGLU layer: three matmuls, and the gate between them.

    y = (silu(x gate^T) * (x up^T)) down^T,   silu(v) = v sigmoid(v)                  Shazeer 2020

`cpp` computes gate and up by one matmul. It saves them for the backward pass, which computes
silu * up again together with their gradients.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ys_llm.ops import rowwise
from ys_llm.ops.linear import is_plain
from ys_llm.ops.matmul import matmul
from ys_llm.ops.precision import compute_dtype
from ys_llm.ops.weight_grad import weight_grad


def swiglu(gate: nn.Module, up: nn.Module, down: nn.Module, x: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)), by the compiled kernel where there is one.

    Modules that are more than a plain nn.Linear (an adapter, a hook, a parametrisation) are called.
    """
    modules = (gate, up, down)
    if not all(is_plain(module) and module.bias is None for module in modules):
        y: Tensor = down(silu(gate(x)) * up(x))
        return y
    op = cpp if rowwise.is_available(x) else reference
    return op(x, *(cast(Tensor, module.weight) for module in modules))


def reference(x: Tensor, gate_MD: Tensor, up_MD: Tensor, down_DM: Tensor) -> Tensor:
    """The equation, over the last dimension of x."""
    return linear(silu(linear(x, gate_MD)) * linear(x, up_MD), down_DM)


def cpp(x: Tensor, gate_MD: Tensor, up_MD: Tensor, down_DM: Tensor) -> Tensor:
    """As `reference`, with the compiled kernel between the matmuls."""
    dtype = compute_dtype(x)
    if not rowwise.supports("swiglu_gate", dtype):
        return reference(x, gate_MD, up_MD, down_DM)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _SwiGLU.apply(x.to(dtype), gate_MD, up_MD, down_DM)  # type: ignore[no-untyped-call]
    return y


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """The layer's output, with gate and up as one matmul."""
        x_ND = rowwise.to_2d(x)
        weight, down_used = torch.cat([gate, up]).to(x.dtype), down.to(x.dtype)
        both = matmul(x_ND, weight.t())
        act = rowwise.swiglu_gate_forward(both)
        ctx.save_for_backward(x, both, weight, down_used)
        ctx.dtype = gate.dtype
        return rowwise.from_2d(matmul(act, down_used.t()), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of x and of the weights that need one."""
        x, both, weight, down_used = ctx.saved_tensors
        x_ND, width = rowwise.to_2d(x), both.shape[1] // 2
        d_y = rowwise.to_2d(rowwise.match_layout(grads[0], x))
        d_both, act = rowwise.swiglu_gate_backward(both, matmul(d_y, down_used))
        needs_x, *needs_weights, needs_down = ctx.needs_input_grad
        d_x = rowwise.from_2d(matmul(d_both, weight), x) if needs_x else None
        d_gate = d_up = d_down = None  # of frozen weights: adapters are trained elsewhere
        if any(needs_weights):
            d_gate, d_up = weight_grad(d_both, x_ND).to(ctx.dtype).split(width)
        if needs_down:
            d_down = weight_grad(d_y, act).to(ctx.dtype)
        return d_x, d_gate, d_up, d_down


BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference, "cpp": cpp}
