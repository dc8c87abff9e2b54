"""The quadratic state of Why Snakes v0.1: every product of two of its numbers drives it.

    s_t = LN(sum_ij s_{t-1,i} s_{t-1,j} P_ij + x_t in_proj)          P = quadratic
    y_t = LN(s_t out_proj + x_t skip_proj)

State: s, B x S, 0 before the first token.
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
        d_state, eps = options["d_state"], constants["norm_eps"]
        self.quadratic = nn.Parameter(torch.empty(d_state, d_state, d_state))
        self.in_proj = nn.Linear(d_model, d_state, bias=False)
        self.out_proj = nn.Linear(d_state, d_model, bias=False)
        self.skip_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = nn.LayerNorm(d_state, eps=eps)
        self.out_norm = nn.LayerNorm(d_model, eps=eps)

    def shapes(self) -> Shapes:
        """Of s."""
        return {"s": (len(self.quadratic),)}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        weight, s, outputs = wide(self.quadratic).flatten(0, 1), state["s"], []
        gain = (wide(self.norm.weight), wide(self.norm.bias))
        for drive_BS in wide(self.in_proj(x_BTD)).unbind(1):
            products = (s[:, :, None] * s[:, None]).flatten(1)
            s = F.layer_norm(products @ weight + drive_BS, s.shape[1:], *gain, self.norm.eps)
            outputs.append(s)
        read = self.out_proj(torch.stack(outputs, 1).to(x_BTD.dtype))
        return self.out_norm(read + self.skip_proj(x_BTD)), {"s": s}
