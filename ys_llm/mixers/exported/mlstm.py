"""mLSTM: heads of a matrix memory with an exponential input gate, read over their sum of keys.

    q_t, k_t, v_t = x_t q_proj / sqrt(K), x_t k_proj, x_t v_proj
    i_t = exp(cap(x_t input_proj + bias))           cap(z) = 15 tanh(z / 15)
    f_t = sigmoid(cap(x_t forget_proj + bias))
    M_t = f_t M_{t-1} + i_t k_t^T [v_t, 1]
    [r_t, s_t] = q_t M_t
    y_t = (RMSNorm(r_t / max(|s_t|, 1)) * sigmoid(x_t gate_proj)) out_proj

State: M, B x H x K x (V + 1), 0 before the first token.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, heads, rms_normed, wide


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads, self.d_key = options["n_heads"], options["d_key"]
        self.d_value, self.eps = options["d_value"], constants["norm_eps"]
        self.cap = constants["gate_cap"]
        n_keys, n_values = self.n_heads * self.d_key, self.n_heads * self.d_value
        self.q_proj = nn.Linear(d_model, n_keys, bias=False)
        self.k_proj = nn.Linear(d_model, n_keys, bias=False)
        self.v_proj = nn.Linear(d_model, n_values, bias=False)
        self.gate_proj = nn.Linear(d_model, n_values, bias=False)
        self.input_proj = nn.Linear(d_model, self.n_heads)
        self.forget_proj = nn.Linear(d_model, self.n_heads)
        self.out_proj = nn.Linear(n_values, d_model, bias=False)
        self.norm_gain = nn.Parameter(torch.empty(n_values))

    def shapes(self) -> Shapes:
        """Of M."""
        return {"memory": (self.n_heads, self.d_key, self.d_value + 1)}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (heads(layer(x_BTD), self.n_heads) for layer in layers)
        query = query * self.d_key**-0.5
        into_BTH1 = self._capped(self.input_proj(x_BTD)).exp().unsqueeze(3)
        values = torch.cat([into_BTH1 * value, into_BTH1], 3)
        kept_BTH = self._capped(self.forget_proj(x_BTD)).sigmoid()
        memory, outputs = state["memory"], []
        for t in range(x_BTD.shape[1]):
            q, k, v = (x[:, t, :, None] for x in (query, key, values))
            memory = kept_BTH[:, t, :, None, None] * memory + k.mT @ v
            outputs.append((q @ memory).squeeze(2))
        read = torch.stack(outputs, 1)
        read = read[..., :-1] / read[..., -1:].abs().clamp(min=1)
        normed = rms_normed(read, self.eps).flatten(2) * self.norm_gain
        gated = normed.to(x_BTD.dtype) * self.gate_proj(x_BTD).sigmoid()
        return self.out_proj(gated), {"memory": memory}

    def _capped(self, x: Tensor) -> Tensor:
        capped: Tensor = self.cap * (wide(x) / self.cap).tanh()
        return capped
