"""Gated DeltaNet: heads of a matrix memory, written by the gated delta rule.

    q_t, k_t = silu(x_t q_proj), silu(x_t k_proj), each over its norm;   v_t = silu(x_t v_proj)
    a_t = exp(-softplus(x_t decay_proj + bias))      b_t = sigmoid(x_t rate_proj + bias)
    M_t = a_t (M_{t-1} - b_t k_t^T k_t M_{t-1}) + b_t k_t^T v_t
    y_t = (RMSNorm(q_t M_t) * silu(x_t gate_proj)) out_proj

State: M, B x H x K x V, 0 before the first token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, heads, of_length_1, rms_normed, wide


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads, self.eps = options["n_heads"], constants["norm_eps"]
        self.shape = (self.n_heads, options["d_key"], options["d_value"])
        n_keys, n_values = self.n_heads * self.shape[1], self.n_heads * self.shape[2]
        self.q_proj = nn.Linear(d_model, n_keys, bias=False)
        self.k_proj = nn.Linear(d_model, n_keys, bias=False)
        self.v_proj = nn.Linear(d_model, n_values, bias=False)
        self.gate_proj = nn.Linear(d_model, n_values, bias=False)
        self.decay_proj = nn.Linear(d_model, self.n_heads)
        self.rate_proj = nn.Linear(d_model, self.n_heads)
        self.out_proj = nn.Linear(n_values, d_model, bias=False)
        self.norm_gain = nn.Parameter(torch.empty(options["d_value"]))

    def shapes(self) -> Shapes:
        """Of M."""
        return {"memory": self.shape}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (heads(F.silu(layer(x_BTD)), self.n_heads) for layer in layers)
        query, key = of_length_1(query), of_length_1(key)
        decay_BTH = (-F.softplus(wide(self.decay_proj(x_BTD)))).exp()
        rate_BTH = wide(self.rate_proj(x_BTD)).sigmoid()
        memory, outputs = state["memory"], []
        for t in range(x_BTD.shape[1]):
            q, k, v = (x[:, t, :, None] for x in (query, key, value))
            memory = decay_BTH[:, t, :, None, None] * memory
            memory = memory + k.mT @ (rate_BTH[:, t, :, None, None] * (v - k @ memory))
            outputs.append((q @ memory).squeeze(2))
        read = (rms_normed(torch.stack(outputs, 1), self.eps) * self.norm_gain).flatten(2)
        gated = read.to(x_BTD.dtype) * F.silu(self.gate_proj(x_BTD))
        return self.out_proj(gated), {"memory": memory}
