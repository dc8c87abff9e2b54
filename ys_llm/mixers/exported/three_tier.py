"""The three-tier state-space mixer: a main state at every token and two slower summaries.

    h_t = LN((f_t * h_{t-1}) state_controller + u_t + scale * (G + L))   u_t: what the input adds
    f_t = tanh(x_t state_gate + b), or 1
    o_t = h_t out_proj                                               y_t = h_t [output_shaper]
    G <- LN(G state_controller + y_t input_influencer) output_shaper     every 64 tokens
    L <- the same, with weights of its own                               every 16 tokens

State: h, G and L, each B x S, 0 before the first token.
"""

from collections.abc import Container
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, wide

_SUMMARIES = ("local_summary", "global_summary")


class _Summary(nn.Module):
    """The parameters of a summary."""

    def __init__(self, d_state: int, width: int, *, has_norm: bool) -> None:
        super().__init__()
        self.state_controller = nn.Parameter(torch.empty(d_state, width))
        self.input_influencer = nn.Parameter(torch.empty(d_state, width))
        self.output_shaper = nn.Parameter(torch.empty(width, d_state))
        self.norm = nn.LayerNorm(width) if has_norm else None


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        d_state, n_heads = options["d_state"], options["n_heads"]
        self.d_state, self.n_heads, self.eps = d_state, n_heads, constants["norm_eps"]
        self.factored = options["factored"]
        intervals = (options["local_interval"], options["global_interval"])
        self.intervals = dict(zip(_SUMMARIES, intervals, strict=True))
        self.in_proj = nn.Linear(d_model, d_state)
        self.out_proj = nn.Linear(d_state, d_model, bias=self.factored)
        self.state_gate = nn.Linear(d_model, d_state) if options["state_gate"] else None
        if self.factored:
            self.input_influencer = nn.Parameter(torch.empty(d_state, d_state))
            self.output_shaper = nn.Parameter(torch.empty(d_state, d_state))
        width = d_state // n_heads
        shape = (d_state, d_state) if n_heads == 1 else (n_heads, width, width)
        self.state_controller = nn.Parameter(torch.empty(shape))
        self.norm = nn.LayerNorm(d_state)
        for name, interval in self.intervals.items():
            if interval:
                summary = options["d_summary"] or d_state
                has_norm = not options["shared_norm"]
                setattr(self, name, _Summary(d_state, summary, has_norm=has_norm))
        self.summary_scale = None
        if options["summary_scale"] == "learned" and any(intervals):
            self.summary_scale = nn.Parameter(torch.empty(d_state))

    def shapes(self) -> Shapes:
        """Of h, L and G."""
        return dict.fromkeys(("main", *_SUMMARIES), (self.d_state,))

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """o_BTD, and the state after the last token."""
        drive_BTS, state = wide(self.in_proj(x_BTD)), dict(state)
        if self.factored:
            drive_BTS = drive_BTS @ wide(self.input_influencer)
        gates = None if self.state_gate is None else wide(self.state_gate(x_BTD)).tanh()
        n_tokens, added_BS, outputs = x_BTD.shape[1], self._added(state), []
        due = {
            name: _due(position_B, n_tokens, interval)
            for name, interval in self.intervals.items()
            if interval
        }
        for t, drive_BS in enumerate(drive_BTS.unbind(1)):
            kept_BS = state["main"] if gates is None else gates[:, t] * state["main"]
            h = self._normed(self._controlled(kept_BS) + drive_BS + added_BS, self.norm)
            state["main"] = h
            outputs.append(h)
            for name, (due_BT, tokens) in due.items():
                if t in tokens:
                    state[name] = self._updated(name, state[name], h, due_BT[:, t])
                    added_BS = self._added(state)
        y_BTS = self._shaped(torch.stack(outputs, 1))
        return self.out_proj(y_BTS.to(x_BTD.dtype)), state

    def _added(self, state: TensorDict) -> Tensor:
        """What both summaries add to every step, until one of them changes."""
        summaries = state["local_summary"] + state["global_summary"]
        return summaries if self.summary_scale is None else self.summary_scale * summaries

    def _controlled(self, h_BS: Tensor) -> Tensor:
        """h state_controller, each head by its own block."""
        controller = wide(self.state_controller)
        if self.n_heads == 1:
            return h_BS @ controller
        by_head: Tensor = h_BS.unflatten(1, (self.n_heads, 1, -1)) @ controller
        return by_head.flatten(1)

    def _shaped(self, h: Tensor) -> Tensor:
        """y of h."""
        return h @ wide(self.output_shaper) if self.factored else h

    def _updated(self, name: str, old_BS: Tensor, h_BS: Tensor, due_B: Tensor) -> Tensor:
        """A summary after a token: a new one in the rows whose clock says so."""
        tier, y_BS = getattr(self, name), self._shaped(h_BS)
        pre = old_BS @ wide(tier.state_controller) + y_BS @ wide(tier.input_influencer)
        normed = self._normed(pre, self.norm if tier.norm is None else tier.norm)
        return torch.where(due_B[:, None], normed @ wide(tier.output_shaper), old_BS)

    def _normed(self, x_BS: Tensor, norm: nn.LayerNorm) -> Tensor:
        """LayerNorm with statistics over each head."""
        gain, bias = wide(norm.weight), wide(norm.bias)
        if self.n_heads == 1:
            return F.layer_norm(x_BS, x_BS.shape[1:], gain, bias, self.eps)
        by_head = x_BS.unflatten(1, (self.n_heads, -1))
        x_hat = F.layer_norm(by_head, by_head.shape[2:], eps=self.eps).flatten(1)
        return x_hat * gain + bias


def _due(position_B: Tensor, n_tokens: int, interval: int) -> tuple[Tensor, Container[int]]:
    """B x T, where an interval ends, and the tokens at which it does in any row."""
    clock_BT = position_B[:, None] + torch.arange(n_tokens, device=position_B.device)
    due_BT = clock_BT % interval == interval - 1
    if torch.compiler.is_compiling():  # a graph has the update at every token, in no row or some
        return due_BT, range(n_tokens)
    return due_BT, set(due_BT.any(0).nonzero().flatten().tolist())
