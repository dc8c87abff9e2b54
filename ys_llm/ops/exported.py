"""What the layers of an exported model have in common, in plain torch.

This file is copied into every export (`runs/export.py`), so that it needs torch alone. Nothing here
branches on the value of a tensor, so that one step can be traced.

Letters: B batch, T tokens of this call, N those and the ones kept from before, H heads.
"""

import torch
from torch import Tensor

TensorDict = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]  # of the tensors of a state, without the batch


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider: errors of a recurrence add up."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_normed(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def of_length_1(x: Tensor) -> Tensor:
    """x over its length."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def heads(x: Tensor, n_heads: int) -> Tensor:
    """The last dimension cut into heads, in float32 or wider."""
    split: Tensor = wide(x).unflatten(-1, (n_heads, -1))
    return split


def convolved(x_BTD: Tensor, taps_KD: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i taps_i x_{t-K+1+i}, and the last of all inputs; `past` are those before the first."""
    all_BND, n_tokens = torch.cat([past.to(x_BTD.dtype), x_BTD], 1), x_BTD.shape[1]
    sum_BTD = torch.zeros_like(x_BTD)
    for i, tap_D in enumerate(taps_KD.unbind(0)):
        sum_BTD = sum_BTD + tap_D * all_BND[:, i : i + n_tokens]
    return sum_BTD, all_BND[:, n_tokens:].to(past.dtype)


def rotated(x_BTHP: Tensor, position_B: Tensor, theta: float) -> Tensor:
    """Channel c turned with channel c + P/2 by the angle clock * theta ** (-2c / P)."""
    n_tokens, width = x_BTHP.shape[1], x_BTHP.shape[3]
    device = x_BTHP.device
    pair = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
    clock_BT = position_B[:, None] + torch.arange(n_tokens, device=device)
    angle = clock_BT.double()[:, :, None, None] * theta**-pair
    cos, sin = angle.cos().to(x_BTHP.dtype), angle.sin().to(x_BTHP.dtype)
    left, right = x_BTHP.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def appended(state: TensorDict, new: TensorDict, window: int) -> tuple[TensorDict, TensorDict]:
    """What is kept with the new tokens after it, and what of both is kept next.

    With a window the state has room for window - 1 tokens from the start, filled from the right.
    `document` is 1 for a token and 0 for padding.
    """
    first, document = next(iter(new.values())), state["document"]
    ones = torch.ones(first.shape[:2], dtype=document.dtype, device=document.device)
    new = {**new, "document": ones}
    every = {name: torch.cat([state[name].to(x.dtype), x], 1) for name, x in new.items()}
    begin = first.shape[1] if window else 0
    return every, {name: x[:, begin:].to(state[name].dtype) for name, x in every.items()}


def visible(document_BN: Tensor, n_queries: int, window: int) -> Tensor:
    """B x T x N, whether a query, one of the last T, sees a key."""
    key_N = torch.arange(document_BN.shape[1], device=document_BN.device)
    age_TN = key_N[document_BN.shape[1] - n_queries :, None] - key_N
    in_view_TN = (age_TN >= 0) & (age_TN < window) if window else age_TN >= 0
    return in_view_TN & (document_BN[:, None] > 0)


def products(x: Tensor) -> Tensor:
    """x_a x_b for a <= b, times sqrt(2) where a < b: phi with phi(q) . phi(k) = (q . k)^2."""
    a, b = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device).unbind(0)
    scale = 1 + (a != b).to(x.dtype) * (2**0.5 - 1)
    return x[..., a] * x[..., b] * scale
