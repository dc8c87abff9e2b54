"""Cross-entropy of a linear head without ever holding all logits.

    loss = mean_n ( logsumexp_v(x_n W^T + b)_v - (x_n W^T + b)_{target_n} )      nats per token
    d logits_n = (softmax(logits_n) - onehot(target_n)) / N

`chunked` forms the gradients of x, W and b while the logits of a chunk are at hand, so that the
peak is one chunk of logits instead of N x V numbers, and backward only scales what is there.
`cpp` does so with one kernel between the products, in place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ys_llm.ops import rowwise

CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MiB in float32


def reference(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """Mean nats per token, all logits at once."""
    logits_NV = torch.nn.functional.linear(x_ND, weight_VD, bias_V)
    return torch.nn.functional.cross_entropy(logits_NV, targets_N)


def chunked(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """As `reference`, one chunk of rows at a time; bf16 operands under bf16 autocast."""
    return _loss(x_ND, weight_VD, bias_V, targets_N, _softmax)


def cpp(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """As `chunked`, with the compiled kernel for what is done with the logits."""
    known = rowwise.letters(rowwise.product_dtype(x_ND), weight_VD) in ("bf", "ff", "dd")
    step = _compiled_softmax if known else _softmax
    return _loss(x_ND, weight_VD, bias_V, targets_N, step)


def fastest(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """The compiled kernel where there is one, else torch's operators."""
    take = cpp if rowwise.is_available(x_ND) else chunked
    return take(x_ND, weight_VD, bias_V, targets_N)


def _loss(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, softmax: Any
) -> Tensor:
    dtype = rowwise.product_dtype(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
            x_ND, weight_VD, bias_V, targets_N, (dtype, softmax)
        )
    return loss


def _softmax(
    logits: Tensor, bias: Tensor | None, targets: Tensor, d_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Nats of each row, and d logits, whose sum over the rows is added to d_bias."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        exact += bias
    log_p, picked = torch.log_softmax(exact, -1), targets.unsqueeze(1)
    nats = -log_p.gather(1, picked).squeeze(1)
    d_logits = log_p.exp_().scatter_add_(1, picked, log_p.new_full((), -1.0).expand(picked.shape))
    if d_bias is not None:
        d_bias += d_logits.sum(0)
    return nats, d_logits.to(logits.dtype)


def _compiled_softmax(
    logits: Tensor, bias: Tensor | None, targets: Tensor, d_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `_softmax`; the logits become their gradients."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    nats = torch.empty(len(logits), dtype=exact)
    name = f"cross_entropy_{rowwise.letters(logits)}"
    rowwise.run(name, logits, bias, targets.contiguous(), nats, d_bias, *logits.shape)
    return nats, logits


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: Any
    ) -> Tensor:
        dtype, softmax = how
        x_used, weight_used = x.to(dtype), weight.to(dtype)
        d_x, d_weight = torch.empty_like(x_used), torch.zeros_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        nats = []
        size = max(1, CHUNK_ELEMENTS // len(weight))
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            logits = x_used[part] @ weight_used.t()
            nats_n, d_logits = softmax(logits, bias, targets[part], d_bias)
            nats.append(nats_n)
            if any(ctx.needs_input_grad):
                torch.mm(d_logits, weight_used, out=d_x[part])
                rowwise.add_to(d_weight, d_logits.t() @ x_used[part])
            del logits, d_logits  # before the next ones are made
        ctx.save_for_backward(d_x, d_weight, d_bias)
        ctx.count, ctx.dtype = len(x), x.dtype
        return torch.cat(nats).sum() / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        d_x, d_weight, d_bias = ctx.saved_tensors
        scale = grads[0] / ctx.count
        d_bias = None if d_bias is None else d_bias * scale
        return (d_x * scale).to(ctx.dtype), d_weight * scale, d_bias, None, None


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference,
    "chunked": chunked,
    "cpp": cpp,
}
