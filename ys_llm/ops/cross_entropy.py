"""Cross-entropy of a linear head without ever holding all logits.

    loss = mean_n ( logsumexp_v(x_n W^T + b)_v - (x_n W^T + b)_{target_n} )      nats per token
    d logits_n = (softmax(logits_n) - onehot(target_n)) / N

`chunked` forms the gradients of x, W and b while the logits of a chunk are at hand, so that the
peak is one chunk of logits instead of N x V numbers, and backward only scales what is there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MiB in float32


def reference(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """Mean nats per token, all logits at once."""
    logits_NV = torch.nn.functional.linear(x_ND, weight_VD, bias_V)
    return torch.nn.functional.cross_entropy(logits_NV, targets_N)


def chunked(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """As `reference`, one chunk of rows at a time; bf16 operands under bf16 autocast."""
    device = x_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
    with torch.autocast(device, enabled=False):
        loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
            x_ND, weight_VD, bias_V, targets_N, dtype
        )
    return loss


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: Any
    ) -> Tensor:
        exact = torch.promote_types(weight.dtype, torch.float32)
        x_used, weight_used = x.to(dtype), weight.to(dtype)
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        total = torch.zeros((), dtype=exact, device=x.device)
        rows = max(1, CHUNK_ELEMENTS // len(weight))
        for begin in range(0, len(x), rows):
            part = slice(begin, begin + rows)
            logits = (x_used[part] @ weight_used.t()).to(exact)
            if bias is not None:
                logits += bias
            log_p = torch.log_softmax(logits, -1)
            picked = targets[part].unsqueeze(1)
            total -= log_p.gather(1, picked).sum()
            if not any(ctx.needs_input_grad):
                continue
            d_logits = log_p.exp_().scatter_add_(
                1, picked, log_p.new_full((), -1.0).expand(picked.shape)
            )
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            d_used = d_logits.to(dtype)
            d_x[part] = d_used @ weight_used
            d_weight += d_used.t() @ x_used[part]
        ctx.save_for_backward(d_x, d_weight, d_bias)
        ctx.count = len(x)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        d_x, d_weight, d_bias = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return d_x * scale, d_weight * scale, None if d_bias is None else d_bias * scale, None, None


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"reference": reference, "chunked": chunked}
