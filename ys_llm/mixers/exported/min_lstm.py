"""minLSTM: a forget and an input gate that see the input alone and add up to 1.

    [forget_t, input_t, candidate_t] = x_t in_proj
    f_t = sigmoid(log sigmoid(forget_t) - log sigmoid(input_t))
    h_t = f_t h_{t-1} + (1 - f_t) g(candidate_t)     g(v) = v + 1/2 for v >= 0, else sigmoid(v)
    y_t = h_t out_proj

State: h, B x S, 0 before the first token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, wide


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.d_state = options["d_state"]
        self.in_proj = nn.Linear(d_model, 3 * self.d_state)
        self.out_proj = nn.Linear(self.d_state, d_model, bias=False)

    def shapes(self) -> Shapes:
        """Of h."""
        return {"h": (self.d_state,)}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        forget, into, candidate = wide(self.in_proj(x_BTD)).chunk(3, dim=-1)
        log_ratio, h, outputs = F.logsigmoid(forget) - F.logsigmoid(into), state["h"], []
        kept, positive = log_ratio.sigmoid(), candidate.relu() + candidate.clamp_max(0).sigmoid()
        written = (-log_ratio).sigmoid() * positive
        for t in range(x_BTD.shape[1]):
            h = kept[:, t] * h + written[:, t]
            outputs.append(h)
        return self.out_proj(torch.stack(outputs, 1).to(x_BTD.dtype)), {"h": h}
