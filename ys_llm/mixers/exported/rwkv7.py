"""The time mix of RWKV-7: a generalised delta rule whose decays and rates are vectors.

    x^c_t = x_t + (x_{t-1} - x_t) shift_c              for c of r, w, k, v, a, g; x_0 is 0
    r_t, k_t, v_t = x^r_t r_proj, x^k_t k_proj, x^v_t v_proj
    w_t = exp(-sigmoid(tanh(x^w_t decay_in) decay_out + bias) / sqrt(e))
    a_t, g_t = sigmoid(x^a_t rate_in rate_out + bias), sigmoid(x^g_t gate_in) gate_out
    c_t = k_t removal_scale, over its norm;   l_t = k_t (1 + (a_t - 1) key_scale)
    M_t = diag(w_t) M_{t-1} - (a_t c_t)^T c_t M_{t-1} + l_t^T v_t
    y_t = (g_t (LayerNorm(r_t M_t) + (r_t . (bonus l_t)) v_t)) out_proj

State: M, B x H x P x P, and the last x, 0 before the first token.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, heads, of_length_1


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.d_model, self.n_heads = d_model, options["n_heads"]
        self.eps, rank = constants["norm_eps"], options["rank"]
        self.shift = nn.Parameter(torch.empty(6, d_model))
        self.r_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.decay_in = nn.Linear(d_model, rank, bias=False)
        self.decay_out = nn.Linear(rank, d_model)
        self.rate_in = nn.Linear(d_model, rank, bias=False)
        self.rate_out = nn.Linear(rank, d_model)
        self.gate_in = nn.Linear(d_model, rank, bias=False)
        self.gate_out = nn.Linear(rank, d_model, bias=False)
        self.removal_scale = nn.Parameter(torch.empty(d_model))
        self.key_scale = nn.Parameter(torch.empty(d_model))
        self.bonus = nn.Parameter(torch.empty(d_model))
        self.norm_gain = nn.Parameter(torch.empty(d_model))
        self.norm_bias = nn.Parameter(torch.empty(d_model))

    def shapes(self) -> Shapes:
        """Of the last x and of M."""
        d_head = self.d_model // self.n_heads
        return {"inputs": (1, self.d_model), "memory": (self.n_heads, d_head, d_head)}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        before_BTD = torch.cat([state["inputs"].to(x_BTD.dtype), x_BTD[:, :-1]], 1)
        r, w, k, v, a, g = (
            x_BTD + (before_BTD - x_BTD) * shift_D for shift_D in self.shift.unbind(0)
        )
        query, key, value = (
            self._heads(layer(x))
            for layer, x in ((self.r_proj, r), (self.k_proj, k), (self.v_proj, v))
        )
        decay = self._heads(self.decay_out(self.decay_in(w).tanh())).sigmoid()
        kept = (-math.exp(-0.5) * decay).exp()
        rate = self._heads(self.rate_out(self.rate_in(a))).sigmoid()
        removed = of_length_1(key * self._heads(self.removal_scale))
        written = key * (1 + (rate - 1) * self._heads(self.key_scale))
        rows = (query, -removed, rate * removed, written, value, kept)
        read, memory = _delta_rule(rows, state["memory"])
        bonus = (query * written * self._heads(self.bonus)).sum(3, keepdim=True) * value
        normed = F.layer_norm(read, read.shape[3:], eps=self.eps).flatten(2)
        read_BTD = normed * self.norm_gain + self.norm_bias + bonus.flatten(2)
        gate = self.gate_out(self.gate_in(g).sigmoid())
        y_BTD = self.out_proj(gate * read_BTD.to(gate.dtype))
        return y_BTD, {"inputs": x_BTD[:, -1:].to(state["inputs"].dtype), "memory": memory}

    def _heads(self, x: Tensor) -> Tensor:
        return heads(x, self.n_heads)


def _delta_rule(rows: tuple[Tensor, ...], memory: Tensor) -> tuple[Tensor, Tensor]:
    """What each token reads, B x T x H x P, and M after the last."""
    outputs = []
    for t in range(rows[0].shape[1]):
        q, z, b, k, v, w = (x[:, t, :, None] for x in rows)
        memory = w.mT * memory + b.mT @ (z @ memory) + k.mT @ v
        outputs.append((q @ memory).squeeze(2))
    return torch.stack(outputs, 1), memory
