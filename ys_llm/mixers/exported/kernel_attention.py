"""Attention by a kernel of q . k, with a denominator, gates and a norm to choose from.

    q_t = (x_t q_proj) R_t     k_t = (x_t k_proj) R_t
    v_t = (x_t v_proj) sigmoid(x_t in_gate_proj + bias)
    w_ts = kappa(min(c psi(q_t) . psi(k_s), clamp))      c = 1/sqrt(P) if scaled, else 1
    g_t  = sigmoid(x_t out_gate_proj + bias)
    y_t  = g_t Norm(g_t sum_s w_ts v_s / den_t) out_proj

State: where kappa is the identity and there is no clamp, a matrix a head and the number of tokens;
else keys and values, as of softmax attention.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, appended, heads, rotated, visible

Sums = tuple[Tensor, Tensor, Tensor]  # of values, of weights, and the number of tokens

_TINY = 1e-30  # a sum of weights below is 0


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.constants = options, constants
        self.n_heads, self.d_head = options["n_heads"], d_model // options["n_heads"]
        self.grows = options["kernel"] in ("exp", "taylor80") or options["clamp"] > 0
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        if options["in_gate"]:
            self.in_gate_proj = nn.Linear(d_model, self.n_heads)
        if options["out_gate"] != "none":
            self.out_gate_proj = nn.Linear(d_model, self.n_heads)
        if options["norm"] in ("ln", "rms"):
            self.norm_gain = nn.Parameter(torch.empty(self.d_head))
        if options["norm"] == "ln":
            self.norm_bias = nn.Parameter(torch.empty(self.d_head))
        if options["kernel"] == "cosine":
            self.exponent = nn.Parameter(torch.empty(self.n_heads))

    def shapes(self) -> Shapes:
        """Of the matrix and the count, or of the cache before the first token."""
        if not self.grows:
            needs_sum = self.options["denominator"].startswith("sum")
            return {"memory": (self.n_heads, self.d_head, self.d_head + needs_sum), "count": (1,)}
        n_keys = max(0, self.options["window"] - 1)
        cached = (n_keys, self.n_heads, self.d_head)
        return {"keys": cached, "values": cached, "document": (n_keys,)}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        options, layers = self.options, (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (heads(layer(x_BTD), self.n_heads) for layer in layers)
        if theta := options["rope_theta"]:
            query, key = rotated(query, position_B, theta), rotated(key, position_B, theta)
        query, key = self._mapped(query), self._mapped(key)
        if options["scaled"]:
            query = query * self.d_head**-0.5
        if options["in_gate"]:
            value = value * heads(self.in_gate_proj(x_BTD), self.n_heads).sigmoid()
        sums, after = (self._in_view if self.grows else self._read)((query, key, value), state)
        gate = torch.ones_like(value[..., :1])
        if options["out_gate"] != "none":
            gate = heads(self.out_gate_proj(x_BTD), self.n_heads).sigmoid()
        return self.out_proj(self._output(sums, gate).flatten(2).to(x_BTD.dtype)), after

    def _mapped(self, x_BTHP: Tensor) -> Tensor:
        """psi."""
        kernel = self.options["kernel"]
        if kernel == "relu":
            return F.relu(x_BTHP)
        if kernel == "elu":
            return F.elu(x_BTHP) + 1
        if kernel == "cosine":
            return F.normalize(x_BTHP, dim=3 if self.options["cosine_axis"] == "width" else 2)
        return x_BTHP

    def _read(
        self, qkv: tuple[Tensor, Tensor, Tensor], state: TensorDict
    ) -> tuple[Sums, TensorDict]:
        """The sums by the matrices, where kappa is the identity."""
        query, key, value = qkv
        memory, n_tokens, outputs = state["memory"], query.shape[1], []
        count_BT = state["count"] + 1 + torch.arange(n_tokens, device=query.device)
        if self.options["kernel"] == "cosine":
            value = value / count_BT[:, :, None, None] ** self.exponent.sigmoid().unsqueeze(1)
        if memory.shape[3] > self.d_head:
            value = torch.cat([value, torch.ones_like(value[..., :1])], 3)
        for t in range(n_tokens):
            q, k, v = (x[:, t, :, None] for x in (query, key, value))
            memory = memory + k.mT @ v
            outputs.append((q @ memory).squeeze(2))
        read, count = torch.stack(outputs, 1), count_BT[:, -1:].to(state["count"].dtype)
        sums = (read[..., : self.d_head], read[..., -1:], count_BT)
        return sums, {"memory": memory, "count": count}

    def _in_view(
        self, qkv: tuple[Tensor, Tensor, Tensor], state: TensorDict
    ) -> tuple[Sums, TensorDict]:
        """The sums over all keys in view."""
        query, window = qkv[0], self.options["window"]
        cache, after = appended(state, {"keys": qkv[1], "values": qkv[2]}, window)
        seen_BTN = visible(cache["document"], query.shape[1], window)
        keys, values = (cache[name].transpose(1, 2) for name in ("keys", "values"))
        weights = self._weights(query.transpose(1, 2) @ keys.mT, ~seen_BTN[:, None])
        total = weights.sum(-1, keepdim=True).transpose(1, 2)
        return ((weights @ values).transpose(1, 2), total, seen_BTN.sum(2)), after

    def _weights(self, scores: Tensor, hidden: Tensor) -> Tensor:
        """kappa, 0 where a key is hidden; exp without a clamp up to a factor of the row."""
        kernel, clamp = self.options["kernel"], self.options["clamp"]
        if clamp:
            scores = scores.clamp(max=clamp)
        if kernel == "exp":
            scores = scores.masked_fill(hidden, -torch.inf)
            return (scores if clamp else scores - scores.amax(-1, keepdim=True)).exp()
        if kernel == "taylor80":
            scores = _exp_series(scores, self.constants["taylor_terms"])
        return scores.masked_fill(hidden, 0)

    def _output(self, sums: Sums, gate: Tensor) -> Tensor:
        """The sums, divided, gated and normed."""
        values, gating = sums[0], self.options["out_gate"]
        if gating == "weights":
            values = values * gate
        read = self._divided(values, sums)
        read = self._normed(read * gate if gating in ("pre", "both") else read)
        return read * gate if gating == "both" else read

    def _divided(self, values: Tensor, sums: Sums) -> Tensor:
        denominator, (_, total, count) = self.options["denominator"], sums
        if denominator == "none":
            return values
        if denominator == "count":
            return values / count[:, :, None, None]
        if denominator.startswith("sum_at_least_1"):
            total = total.clamp(min=1)
        elif denominator.startswith("sum_plus_eps"):
            total = total + (1e-4 if denominator.endswith("detached") else 1e-8)
        is_read = total > _TINY
        return (values / torch.where(is_read, total, 1)).masked_fill(~is_read, 0)

    def _normed(self, read: Tensor) -> Tensor:
        norm, eps, shape = self.options["norm"], self.constants["norm_eps"], (self.d_head,)
        if norm == "ln":
            return F.layer_norm(read, shape, self.norm_gain, self.norm_bias, eps["ln"])
        if norm == "rms":
            return F.rms_norm(read, shape, self.norm_gain, eps["rms"])
        return F.normalize(read, dim=3, eps=eps["l2"]) if norm == "l2" else read


def _exp_series(scores: Tensor, n_terms: int) -> Tensor:
    """The first terms of the series of exp, in float64."""
    x = scores.double()
    series = torch.ones_like(x)
    for m in range(n_terms - 1, 0, -1):
        series = 1 + series * x / m
    return series.to(scores.dtype)
