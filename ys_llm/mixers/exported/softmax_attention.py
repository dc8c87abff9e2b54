"""Causal softmax attention with rotary positions, over a cache of keys and values.

    q_t = (x_t q_proj)_i R_t      k_t = (x_t k_proj)_j R_t      v_t = (x_t v_proj)_j
    a_ts = softmax_s(q_t . k_s / sqrt(P))    over s <= t, t - s < window
    y_t = concat_i(sum_s a_ts v_s) out_proj

State: keys and values, B x N x G x P, and which of them are tokens, not padding: all of them, or
the latest window - 1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, appended, heads, rotated, visible


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads = options["n_heads"]
        self.n_kv_heads = options["n_kv_heads"] or self.n_heads
        self.d_head = d_model // self.n_heads
        self.window, self.theta = options["window"], options["rope_theta"]
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, self.n_kv_heads * self.d_head, bias=False)
        self.v_proj = nn.Linear(d_model, self.n_kv_heads * self.d_head, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def shapes(self) -> Shapes:
        """Of the cache before the first token."""
        n_keys = max(0, self.window - 1)
        cached = (n_keys, self.n_kv_heads, self.d_head)
        return {"keys": cached, "values": cached, "document": (n_keys,)}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        query = rotated(heads(self.q_proj(x_BTD), self.n_heads), position_B, self.theta)
        key = rotated(heads(self.k_proj(x_BTD), self.n_kv_heads), position_B, self.theta)
        value = heads(self.v_proj(x_BTD), self.n_kv_heads)
        cache, after = appended(state, {"keys": key, "values": value}, self.window)
        share = self.n_heads // self.n_kv_heads
        keys, values = (
            cache[name].repeat_interleave(share, dim=2).transpose(1, 2)
            for name in ("keys", "values")
        )
        scores = query.transpose(1, 2) @ keys.mT * self.d_head**-0.5
        seen = visible(cache["document"], x_BTD.shape[1], self.window)[:, None]
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
        return self.out_proj(mixed.transpose(1, 2).flatten(2).to(x_BTD.dtype)), after
