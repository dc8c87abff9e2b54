"""A linear map of very many rows whose weights' gradient is `weight_grad`'s.

y = x W^T;   dx = dy W;   dW = dy^T x          x: ... x K, W: M x K
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ys_llm.ops import weight_grad
from ys_llm.ops.rowwise import product_dtype


def reference(x: Tensor, weight_MK: Tensor) -> Tensor:
    """As the equation has it; under autocast in its dtype."""
    return torch.nn.functional.linear(x, weight_MK)


def fused_backward(x: Tensor, weight_MK: Tensor) -> Tensor:
    """As `reference`, with the gradient of the weights in the dtype of their sums."""
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Linear.apply(x.to(dtype), weight_MK)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x_NK, used = x.reshape(-1, x.shape[-1]), weight.to(x.dtype)
        ctx.save_for_backward(x_NK, used)
        ctx.dtype, ctx.shape = weight.dtype, x.shape
        return (x_NK @ used.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_NK, used = ctx.saved_tensors
        dy_NM = grads[0].reshape(-1, grads[0].shape[-1])
        d_x = (dy_NM @ used).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return d_x, weight_grad.fastest(dy_NM, x_NK).to(ctx.dtype)


BACKENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": reference,
    "fused_backward": fused_backward,
}
