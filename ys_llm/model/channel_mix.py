"""The channel mix of RWKV-6: an MLP with a gate that also sees the token before.

Source: Peng et al. 2024, "Eagle and Finch", section 4.4.

    x^c_t = x_t + (x_{t-1} - x_t) shift_c            for c of k and r; x_{t-1} is 0 where a document
    y_t   = sigmoid(x^r_t receptance) (relu(x^k_t key)^2 value)                              starts

State: x_t, B x 1 x D. With shift 0 it sees x_t alone.
"""

import torch
from torch import Tensor, nn

from ys_llm.ops.linear import linear


class ChannelMix(nn.Module):
    """See the top of this file; without biases."""

    no_weight_decay = ("shift",)  # two numbers a channel, as vectors are

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.empty(2, d_model))
        self.key = nn.Linear(d_model, d_mlp, bias=False)
        self.value = nn.Linear(d_mlp, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x_BTD: Tensor, latest_B1D: Tensor, starts_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y_BTD and the last x; `latest_B1D` is the x before the first."""
        before_BTD = torch.cat([latest_B1D.to(x_BTD.dtype), x_BTD[:, :-1]], 1)
        if starts_BT is not None:
            before_BTD = before_BTD.masked_fill(starts_BT.unsqueeze(2), 0)
        k, r = (x_BTD + (before_BTD - x_BTD) * shift_D for shift_D in self.shift)
        hidden = linear(self.key, k).relu().square()
        y_BTD = linear(self.receptance, r).sigmoid() * linear(self.value, hidden)
        return y_BTD, x_BTD[:, -1:].to(latest_B1D.dtype)

    def init_state(self, batch_size: int) -> Tensor:
        """The state before the first token: 0."""
        like = self.shift
        return torch.zeros(batch_size, 1, like.shape[1], dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def initialise(self, *, depth: float, n_layers: int) -> None:
        """Normal by fan-in; `value`, which writes to the residual stream, shrinks with the depth.

        A channel begins with more of the token before the earlier it comes, and the deeper its
        layer is; `depth` is 0 for the first layer and below 1 for the last.
        """
        d_mlp, d_model = self.key.weight.shape
        share_D = torch.arange(d_model, device=self.shift.device) / d_model
        self.shift.copy_((1 - share_D ** (1 - depth)).repeat(2, 1))
        nn.init.normal_(self.key.weight, std=d_model**-0.5)
        nn.init.normal_(self.receptance.weight, std=d_model**-0.5)
        nn.init.normal_(self.value.weight, std=(2 * n_layers * d_mlp) ** -0.5)
