"""LRU: a linear recurrence of complex numbers, each with a decay and a turn of its own.

    l   = exp(-exp(decay) + i exp(turn))                     S complex numbers
    h_t = l h_{t-1} + exp(scale) (x_t in_proj)
    y_t = Re(h_t C) + skip x_t                               C = out_proj, of h's two parts

State: h, B x S x 2, its real and imaginary part, 0 before the first token.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, wide


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        d_state = options["d_state"]
        self.in_proj = nn.Linear(d_model, 2 * d_state, bias=False)
        self.out_proj = nn.Linear(2 * d_state, d_model, bias=False)
        self.skip = nn.Parameter(torch.empty(d_model))
        self.decay = nn.Parameter(torch.empty(d_state))
        self.turn = nn.Parameter(torch.empty(d_state))
        self.scale = nn.Parameter(torch.empty(d_state))

    def shapes(self) -> Shapes:
        """Of h."""
        return {"h": (len(self.decay), 2)}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        written = wide(self.in_proj(x_BTD)).unflatten(2, (2, -1)) * self.scale.exp()
        radius, angle = (-wide(self.decay).exp()).exp(), wide(self.turn).exp()
        a, b = radius * angle.cos(), radius * angle.sin()
        (real, imaginary), outputs = state["h"].unbind(2), []
        for t in range(x_BTD.shape[1]):
            turned = a * real - b * imaginary, a * imaginary + b * real
            real, imaginary = turned[0] + written[:, t, 0], turned[1] + written[:, t, 1]
            outputs.append(torch.cat([real, imaginary], 1))
        y_BTD = self.out_proj(torch.stack(outputs, 1).to(x_BTD.dtype)) + self.skip * x_BTD
        return y_BTD, {"h": torch.stack([real, imaginary], 2)}
