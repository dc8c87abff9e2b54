"""Sums of values under weights that a kernel makes of q . k, and what they are divided by.

    w_ts = kappa(min(q_t . k_s, clamp))     over s <= t of t's own document, t - s < window
    V_t  = sum_s w_ts v_s;   S_t = sum_s w_ts;   n_t = the number of such s

kappa is exp, the first 80 terms of its series ("taylor80") or, for every other name, the identity.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ys_llm.ops.attention import visible

BLOCK = 128  # queries computed together
_TINY = 1e-30  # a sum of weights below is 0
_TERMS = 80


class Kernel(NamedTuple):
    """The name of kappa, and the most that a score may be; 0 = no limit."""

    name: str
    clamp: float


class Sums(NamedTuple):
    """V, S, where it is known, and n."""

    values_BTHP: Tensor
    weights_BTH1: Tensor | None
    count_BT: Tensor


def sums_in_view(
    qkv: tuple[Tensor, Tensor, Tensor],
    kernel: Kernel,
    document_BN: Tensor,
    window: int,
    block: int = BLOCK,
) -> Sums:
    """The sums of T queries, the last of N keys: q is B x T x H x P, k and v are B x N x H x P."""
    query, keys, values = (x.transpose(1, 2) for x in qkv)
    n_tokens, past = query.shape[2], keys.shape[2] - query.shape[2]
    parts = []
    for first in range(0, n_tokens, block):
        q, end = query[:, :, first : first + block], past + min(first + block, n_tokens)
        seen = slice(max(0, past + first + 1 - window) if window else 0, end)
        view_BTN = visible(document_BN[:, seen], q.shape[2], window)
        weights = _weights(q @ keys[:, :, seen].mT, kernel, ~view_BTN[:, None])
        total = weights.sum(-1, keepdim=True).transpose(1, 2)
        read = (weights @ values[:, :, seen]).transpose(1, 2)
        parts.append((read, total, view_BTN.sum(2)))
    return Sums(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _weights(scores: Tensor, kernel: Kernel, hidden: Tensor) -> Tensor:
    """kappa, 0 where a key is hidden; exp without a clamp up to a factor of the row."""
    if kernel.clamp:
        scores = scores.clamp(max=kernel.clamp)
    if kernel.name == "exp":
        scores = scores.masked_fill(hidden, -torch.inf)
        if not kernel.clamp:
            scores = scores - scores.detach().amax(-1, keepdim=True)
        return scores.exp()
    if kernel.name == "taylor80":
        scores = exp_series(scores)
    return scores.masked_fill(hidden, 0)


def exp_series(scores: Tensor) -> Tensor:
    """The first 80 terms of the series of exp, in float64."""
    x = scores.double()
    series = torch.ones_like(x)
    for m in range(_TERMS - 1, 0, -1):
        series = 1 + series * x / m
    return series.to(scores.dtype)


def divided(values_BTHP: Tensor, sums: Sums, denominator: str) -> Tensor:
    """V over nothing, n or S, with 1 at least or a small number more, and a gradient or not."""
    if denominator == "none":
        return values_BTHP
    if denominator == "count":
        return values_BTHP / sums.count_BT[:, :, None, None]
    total = sums.weights_BTH1
    assert total is not None
    if denominator.startswith("sum_at_least_1"):
        total = total.clamp(min=1)
    elif denominator.startswith("sum_plus_eps"):
        total = total + (1e-4 if denominator.endswith("detached") else 1e-8)
    if denominator.endswith("detached"):
        total = total.detach()
    is_read = total > _TINY
    return (values_BTHP / total.where(is_read, 1)).masked_fill(~is_read, 0)


def counts(before_B1: Tensor, starts_BT: Tensor | None, n_tokens: int) -> Tensor:
    """n of the next tokens, where no window hides any; `before_B1` is that of the last token."""
    t_T = torch.arange(n_tokens, device=before_B1.device, dtype=before_B1.dtype)
    if starts_BT is None:
        return before_B1 + 1 + t_T
    start_BT = t_T.where(starts_BT, -before_B1).cummax(1).values
    return 1 + t_T - start_BT
