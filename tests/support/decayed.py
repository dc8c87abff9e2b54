"""The equations of attention with a decay over all pairs of tokens, for tests of mixers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_convolution(x_BTD: Tensor, taps_WD: Tensor, bias_D: Tensor | None) -> Tensor:
    padded = F.pad(x_BTD.mT, (len(taps_WD) - 1, 0))
    return F.conv1d(padded, taps_WD.t()[:, None], bias_D, groups=x_BTD.shape[2]).mT


def logarithms(log_decay_BTH: Tensor) -> Tensor:
    """B x H x T x T, A_{s+1} + ... + A_t summed term by term; -inf for s > t."""
    n_tokens = log_decay_BTH.shape[1]
    rows = [
        torch.stack([log_decay_BTH[:, s + 1 : t + 1].sum(1) for s in range(t + 1)], 2)
        for t in range(n_tokens)
    ]
    padded = [F.pad(row, (0, n_tokens - row.shape[2]), value=-torch.inf) for row in rows]
    return torch.stack(padded, 2)


def attended(
    qkv: tuple[Tensor, ...], log_decay_BTH: Tensor, power: str, *, divided: bool
) -> Tensor:
    """q, k and v are B x T x H x P, of any scale; over the sum of the weights where `divided`."""
    q, k, v = (x.transpose(1, 2) for x in qkv)
    bias = logarithms(log_decay_BTH)
    if power == "exp":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1).transpose(1, 2)
    weights = (q @ k.mT) ** {"linear": 1, "squared": 2}[power] * bias.exp()
    total = weights.sum(-1, keepdim=True) if divided else torch.ones(1)
    return torch.where(total > 0, weights @ v / total.where(total > 0, 1), 0).transpose(1, 2)


def decay_attention(mixer: Any, x_BTD: Tensor) -> Tensor:
    """What a mixer of `decay_attention` computes, from its weights."""
    options = mixer.options
    qkv = x_BTD @ mixer.qkv_proj.weight.t()
    if options.taps > 1:
        qkv = causal_convolution(qkv, mixer.conv_taps, mixer.conv_bias)
    q, k, value = (part.unflatten(2, (options.n_heads, -1)) for part in qkv.chunk(3, 2))
    act = {"none": lambda x: x, "relu": F.relu, "silu": F.silu}[options.activation]
    step = F.softplus(mixer.step_proj(x_BTD)) if hasattr(mixer, "step_proj") else None
    log_decay = torch.zeros(*x_BTD.shape[:2], options.n_heads, dtype=x_BTD.dtype)
    if options.decay == "softplus":
        log_decay = torch.log(torch.sigmoid(-mixer.decay_proj(x_BTD)))
    elif options.decay == "original":
        log_decay = -mixer.log_rate.exp() * step
    v = value * step[..., None] if options.value_step and step is not None else value
    scaled = act(q) / q.shape[3] ** 0.5, act(k), v
    y = attended(scaled, log_decay, options.power, divided=options.norm == "sum").flatten(2)
    if options.skip:
        y = y + mixer.skip * value.flatten(2)
    if options.gate:
        y = y * F.silu(mixer.gate_proj(x_BTD))
    if options.norm == "rms":
        y = F.rms_norm(y, y.shape[2:], mixer.norm_gain, torch.finfo(torch.float32).eps)
    return y @ mixer.out_proj.weight.t()


def mamba2(mixer: Any, x_BTD: Tensor) -> Tensor:
    """As `decay_attention` of power linear with q = C, k = B, v = step x, and SiLU on all three."""
    options, d_ssm = mixer.options, mixer.d_ssm
    beside, n_keys = mixer.d_inner - d_ssm, mixer.n_groups * options.d_state
    parts = (x_BTD @ mixer.in_proj.weight.t()).split(
        [beside, beside, d_ssm, d_ssm + 2 * n_keys, mixer.n_heads], 2
    )
    skipped, plain, gate, mixed, step = parts
    mixed = F.silu(causal_convolution(mixed, mixer.conv_taps, mixer.conv_bias))
    step = F.softplus(step + mixer.step_bias)
    v, b, c = mixed.split([d_ssm, n_keys, n_keys], 2)
    share = mixer.n_heads // mixer.n_groups
    key, query = (x.unflatten(2, (mixer.n_groups, -1)).repeat_interleave(share, 2) for x in (b, c))
    value = v.unflatten(2, (mixer.n_heads, -1)) * step[..., None]
    qkv, log_decay = (query, key, value), -mixer.log_rate.exp() * step
    y = attended(qkv, log_decay, "linear", divided=False).flatten(2)
    y = ((y + mixer.skip * v) * F.silu(gate)).unflatten(2, (mixer.n_groups, -1))
    y = F.rms_norm(y, y.shape[3:], eps=1e-5).flatten(2) * mixer.norm_gain
    return torch.cat([F.silu(skipped) * plain, y], 2) @ mixer.out_proj.weight.t()
