"""The fixed filter of Why Snakes v0.2: past inputs, weighted by their distance alone.

    y_t = (b . c) sum_s exp(a (t - s)) x_s       a = rate, b, c = write, read, each of a head
    out_t = LN(y_t out_proj + bias)

With `fidelity: paper` t sees of its own block of `block` tokens those before it, of the block
before that nothing, and all of the earlier ones; else all tokens and itself, and a is -|rate|.

State: the sums of exp(a (t - s)) x_s, B x D each: of the own block, the one before, earlier ones.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, wide


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.d_model, n_heads = d_model, options["n_heads"]
        self.is_paper, self.block = options["fidelity"] == "paper", options["block"]
        self.rate = nn.Parameter(torch.empty(n_heads))
        self.write = nn.Parameter(torch.empty(n_heads, options["d_state"]))
        self.read = nn.Parameter(torch.empty(n_heads, options["d_state"]))
        self.out_proj = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps=constants["norm_eps"])

    def shapes(self) -> Shapes:
        """Of the sums."""
        names = ("own", "previous", "earlier") if self.is_paper else ("own",)
        return dict.fromkeys(names, (self.d_model,))

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """out_BTD, and the state after the last token."""
        rate = wide(self.rate if self.is_paper else -self.rate.abs())
        width = self.d_model // len(self.rate)
        kept_D = rate.exp().repeat_interleave(width)
        scale_D = wide((self.write * self.read).sum(1)).repeat_interleave(width)
        outputs = []
        for t, x_BD in enumerate(wide(x_BTD).unbind(1)):
            before = {name: kept_D * sum_BD for name, sum_BD in state.items()}
            own = before["own"] + x_BD
            outputs.append(scale_D * (before["own"] + before["earlier"] if self.is_paper else own))
            state = {**before, "own": own}
            if self.is_paper:
                state = _older(state, ((position_B + t + 1) % self.block == 0)[:, None])
        out_BTD: Tensor = self.norm(self.out_proj(torch.stack(outputs, 1).to(x_BTD.dtype)))
        return out_BTD, state


def _older(sums: TensorDict, is_last_B1: Tensor) -> TensorDict:
    """The sums for the next token: after the last of a block, all are one older."""
    own, previous, earlier = sums["own"], sums["previous"], sums["earlier"]
    return {
        "own": own.masked_fill(is_last_B1, 0),
        "previous": torch.where(is_last_B1, own, previous),
        "earlier": torch.where(is_last_B1, earlier + previous, earlier),
    }
