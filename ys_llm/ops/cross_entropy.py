"""Cross-entropy of a linear head that never has all logits in memory.

    nats_n = logsumexp_v(z_n) - z_{n, target_n},   z_n = x_n W^T + b
    loss = sum_n w_n nats_n / sum_n w_n            nats per token; w_n = 1 without weights
    d z_n = w_n (softmax(z_n) - onehot(target_n)) / sum_n w_n

Where a part of the probability comes from elsewhere, the head has only a share of it:

    nats_n = -log(share_n p_n + other_n),   p_n = softmax(z_n)_{target_n}
    d z_n = w_n r_n (softmax(z_n) - onehot(target_n)) / sum_n w_n
    r_n = share_n p_n / (share_n p_n + other_n)

A target that is IGNORE_INDEX, or whose weight is 0, does not count; where none counts the loss and
all gradients are 0. Weights are not negative.

`chunked` computes the gradients of x, W and b together with the logits of each chunk, so that the
peak is one chunk of logits instead of N x V numbers, and backward only scales the gradients.
`cpp` does so with one kernel between the matmuls, in place. Rows that do not count are left out
before the first matmul: in an evaluation they are up to half of all rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.ops import rowwise
from ys_llm.ops.head_products import products
from ys_llm.ops.linear import is_plain
from ys_llm.ops.precision import compute_dtype

CHUNK_ELEMENTS = 1 << 22  # logits of one chunk: 16 MiB in float32
MODULE_ROWS = 256  # of one chunk of a head that is called: its number of logits per row is unknown


class Mixture(NamedTuple):
    """The head's share of the probability of each row, and what the rest gives to its target."""

    share_N: Tensor
    other_N: Tensor


class Counted(NamedTuple):
    """The rows whose targets count, with their targets, weights and mixture."""

    x_ND: Tensor
    targets_N: Tensor
    weights_N: Tensor | None
    mixture: Mixture | None


# Logits of a chunk, bias, targets, weights, mixture, and the gradient of the bias, which is added
# to. Returns weighted nats, gradients of the logits, and those of the mixture.
_Step = Callable[
    [Tensor, Tensor | None, Tensor, Tensor | None, Mixture | None, Tensor | None],
    tuple[Tensor, Tensor, Sequence[Tensor] | None],
]


def cross_entropy(
    head: nn.Module,
    x_ND: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    mixture: Mixture | None = None,
) -> Tensor:
    """Mean nats of the targets that count, for the logits head(x).

    Uses the compiled kernel where there is one. A head that is more than a plain nn.Linear (an
    adapter, a hook, a parametrisation) is called, one chunk of rows at a time.
    """
    if not is_plain(head):
        return _of_module(head, Counted(x_ND, targets_N, weights_N, mixture))
    weight, bias = head.weight, head.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    op = cpp if rowwise.is_available(x_ND) else chunked
    return op(x_ND, weight, bias, targets_N, weights_N, mixture)


def reference(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    mixture: Mixture | None = None,
) -> Tensor:
    """All logits at once."""
    logits_NV = functional.linear(x_ND, weight_VD, bias_V)
    nats_N = functional.cross_entropy(
        logits_NV, targets_N, reduction="none", ignore_index=IGNORE_INDEX
    )
    nats_N = nats_N if mixture is None else mixed_nats(nats_N, *mixture)
    counts_N = (targets_N != IGNORE_INDEX).to(nats_N.dtype)
    weights_N = counts_N if weights_N is None else counts_N * weights_N
    total = weights_N.sum()
    return (weights_N * nats_N).sum() / torch.where(total > 0, total, 1)


def chunked(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    mixture: Mixture | None = None,
) -> Tensor:
    """As `reference`, one chunk of rows at a time; bf16 operands under bf16 autocast."""
    rows = Counted(x_ND, targets_N, weights_N, mixture)
    return _loss(rows, weight_VD, bias_V, _softmax)


def cpp(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    mixture: Mixture | None = None,
) -> Tensor:
    """As `chunked`, with the compiled kernel for softmax, loss and gradient of the logits."""
    known = rowwise.supports("cross_entropy", compute_dtype(x_ND), weight_VD.dtype)
    step = _compiled_softmax if known else _softmax
    rows = Counted(x_ND, targets_N, weights_N, mixture)
    return _loss(rows, weight_VD, bias_V, step)


@torch.no_grad()
def token_nats(head: nn.Module, x_ND: Tensor, targets_N: Tensor) -> Tensor:
    """The nats of each target for the logits head(x), a chunk at a time, without gradients."""
    weight = head.weight if is_plain(head) else None
    size = max(1, CHUNK_ELEMENTS // len(weight)) if isinstance(weight, Tensor) else MODULE_ROWS
    nats = []
    for x, targets in zip(x_ND.split(size), targets_N.long().split(size), strict=True):
        logits: Tensor = head(x)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats.append(functional.cross_entropy(exact, targets, reduction="none"))
    return torch.cat(nats)


def mixed_nats(nats_N: Tensor, share_N: Tensor, other_N: Tensor) -> Tensor:
    """-log(share exp(-nats) + other), finite in every case."""
    probability_N = share_N * (-nats_N).exp() + other_N
    return -probability_N.clamp_min(torch.finfo(probability_N.dtype).tiny).log()


def counted_rows(rows: Counted) -> Counted:
    """Those of the rows whose targets count."""
    counts_N = rows.targets_N != IGNORE_INDEX
    if rows.weights_N is not None:
        counts_N = counts_N & (rows.weights_N != 0)
    if bool(counts_N.all()):
        return rows
    counted = counts_N.nonzero().squeeze(1)
    x_ND, targets_N, weights_N, mixture = rows
    return Counted(
        x_ND[counted],
        targets_N[counted],
        None if weights_N is None else weights_N[counted],
        None if mixture is None else Mixture(*(part_N[counted] for part_N in mixture)),
    )


def _loss(rows: Counted, weight_VD: Tensor, bias_V: Tensor | None, softmax: _Step) -> Tensor:
    x_ND, targets_N, weights_N, mixture = counted_rows(rows)
    dtype = compute_dtype(x_ND)
    share_N, other_N = mixture or (None, None)
    if not torch.is_grad_enabled():  # needs_input_grad would still be true, and cost matmuls
        x_ND, weight_VD = x_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
        share_N, other_N = (None if x is None else x.detach() for x in (share_N, other_N))
    with torch.autocast(x_ND.device.type, enabled=False):
        loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
            x_ND, weight_VD, bias_V, share_N, other_N, targets_N, weights_N, dtype, softmax
        )
    return loss


def _softmax(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    mixture: Mixture | None,
    d_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Sequence[Tensor] | None]:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        exact += bias
    log_p, picked = torch.log_softmax(exact, -1), targets.unsqueeze(1)
    nats = -log_p.gather(1, picked).squeeze(1)
    d_logits = log_p.exp_().scatter_add_(1, picked, log_p.new_full((), -1.0).expand(picked.shape))
    scale, d_mixture = weights, None
    if mixture is not None:
        nats, scale, *d_mixture = _mixed(nats, mixture, weights)
    elif weights is not None:
        nats = nats * weights
    if scale is not None:
        d_logits.mul_(scale.unsqueeze(1))
    if d_bias is not None:
        d_bias += d_logits.sum(0)
    return nats, d_logits.to(logits.dtype), d_mixture


def _compiled_softmax(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    mixture: Mixture | None,
    d_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Sequence[Tensor] | None]:
    """As `_softmax`; the logits become their gradients."""
    nats, d_mixture = rowwise.cross_entropy(logits, bias, targets, d_bias, weights, mixture)
    return nats, logits, d_mixture


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        share: Tensor | None,
        other: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        dtype: torch.dtype,
        softmax: _Step,
    ) -> Tensor:
        """The mean loss, and its gradients, which backward scales."""
        x_used, weight_used = x.to(dtype), weight.to(dtype)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_x = torch.empty_like(x_used, memory_format=torch.contiguous_format) if needs_x else None
        d_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        nats, d_mixture = [], []
        size = max(1, CHUNK_ELEMENTS // len(weight))
        head = products(x_used, weight_used, size, weight.dtype)
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            logits = head.logits(x_used[part])
            w_part = None if weights is None else weights[part]
            mixed = None if share is None or other is None else Mixture(share[part], other[part])
            nats_n, d_logits, d_mixed = softmax(logits, bias, targets[part], w_part, mixed, d_bias)
            nats.append(nats_n)
            if d_mixed is not None:
                d_mixture.append(d_mixed)
            if d_x is not None:
                head.d_x(d_logits, d_x[part])
            if needs_weight:
                head.add_d_weight(d_logits, x_used[part])
            del logits, d_logits  # before the next ones are allocated
        d_share, d_other = (
            (torch.cat(parts) for parts in zip(*d_mixture, strict=True))
            if d_mixture
            else (None, None)
        )
        d_weight = head.d_weight() if needs_weight else None
        ctx.save_for_backward(d_x, d_weight, d_bias, d_share, d_other)
        ctx.dtype, ctx.total = x.dtype, len(x) if weights is None else weights.sum()
        if not nats:  # no target counts
            ctx.total = 1
            return weight.new_zeros(())
        loss: Tensor = torch.cat(nats).sum() / ctx.total
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The saved gradients times the gradient of the loss."""
        d_x, *others = ctx.saved_tensors
        scale = grads[0] / ctx.total
        d_x = None if d_x is None else (d_x * scale).to(ctx.dtype)
        scaled = (None if d is None else d * scale for d in others)
        return d_x, *scaled, None, None, None, None


def _mixed(nats: Tensor, mixture: Mixture, weights: Tensor | None) -> tuple[Tensor, ...]:
    """Weighted nats of a mixture, and its gradients by the head's nats, by share and other."""
    head, (share, other) = (-nats).exp(), mixture
    total = (share * head + other).clamp_min(torch.finfo(nats.dtype).tiny)
    results = -total.log(), share * head / total, -head / total, -1 / total
    return results if weights is None else tuple(x * weights for x in results)


def _of_module(head: nn.Module, rows: Counted) -> Tensor:
    """The loss of head(x) a chunk at a time; logits are recomputed for the gradients."""
    x_ND, targets_N, weights_N, mixture = counted_rows(rows)
    if not len(x_ND):
        return x_ND.sum()  # 0, with gradients of zeros

    def nats(x: Tensor, targets: Tensor) -> Tensor:
        """The nats of each row of a chunk."""
        logits: Tensor = head(x)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(exact, targets, reduction="none")

    pairs = zip(x_ND.split(MODULE_ROWS), targets_N.split(MODULE_ROWS), strict=True)
    nats_N = torch.cat([checkpoint(nats, *pair, use_reentrant=False) for pair in pairs])
    nats_N = nats_N if mixture is None else mixed_nats(nats_N, *mixture)
    if weights_N is None:
        return nats_N.mean()
    loss: Tensor = (nats_N * weights_N).sum() / weights_N.sum()
    return loss


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference,
    "chunked": chunked,
    "cpp": cpp,
}
