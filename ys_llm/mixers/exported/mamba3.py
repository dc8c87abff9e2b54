"""Mamba-3: heads of a matrix memory that turns and fades, written by the trapezoidal rule.

    [gate_t, v_t, b_t, c_t, step_t, rate_t, mix_t, turn_t] = x_t in_proj
    s_t = softplus(step_t + step_bias);   r_t = max(softplus(rate_t), 1e-4);   l_t = sigmoid(mix_t)
    p_t = p_{t-1} + pi tanh(turn_t) s_t
    K_t = turned(RMSNorm(b_t) + key_bias, p_t);   Q_t = turned(RMSNorm(c_t) + query_bias, p_t)
    V_t = v_t * value_rows                                            R x P; K_t, Q_t are R x N
    M_t = exp(-r_t s_t) (M_{t-1} + (1 - l_t) s_t K_{t-1}^T V_{t-1}) + l_t s_t K_t^T V_t
    m_t = sum_R (Q_t M_t + skip V_t) * silu(gate_t * gate_rows) * out_rows
    y_t = m_t out_proj

`turned` rotates channel c with channel c + A by p_tc, for c < A, and leaves those from 2 A on.

State: M, B x n x N x P, the latest K and v, and p, 0 before the first token.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, heads, rms_normed, wide


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        d_inner, self.d_state = options["expand"] * d_model, options["d_state"]
        self.eps, self.slowest = constants["norm_eps"], constants["slowest_rate"]
        self.d_head, self.rank = min(options["d_head"], d_inner), options["rank"]
        self.n_heads, self.n_groups = d_inner // self.d_head, options["n_groups"]
        self.n_angles = int(self.d_state * options["rope_fraction"]) // 2
        n, n_keys = self.n_heads, self.n_groups * self.rank * self.d_state
        self.widths = [d_inner, d_inner, n_keys, n_keys, n, n, n, self.n_angles]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.key_bias = nn.Parameter(torch.empty(n, self.rank, self.d_state))
        self.query_bias = nn.Parameter(torch.empty(n, self.rank, self.d_state))
        self.key_gain = nn.Parameter(torch.empty(self.d_state))
        self.query_gain = nn.Parameter(torch.empty(self.d_state))
        self.step_bias = nn.Parameter(torch.empty(n))
        self.skip = nn.Parameter(torch.empty(n))
        if self.rank > 1:
            self.value_rows = nn.Parameter(torch.empty(n, self.rank, self.d_head))
            self.gate_rows = nn.Parameter(torch.empty(n, self.rank, self.d_head))
            self.out_rows = nn.Parameter(torch.empty(n, self.rank, self.d_head))

    def shapes(self) -> Shapes:
        """Of M, the latest K and v, and p."""
        return {
            "memory": (self.n_heads, self.d_state, self.d_head),
            "key": (self.n_heads, self.rank, self.d_state),
            "value": (self.n_heads, self.d_head),
            "angle": (self.n_heads, self.n_angles),
        }

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        parts = wide(self.in_proj(x_BTD)).split(self.widths, dim=2)
        gate, v, b, c, step, rate, mix, turn = parts
        step_BTH, mix_BTH = F.softplus(step + self.step_bias), mix.sigmoid()
        kept_BTH = (-F.softplus(rate).clamp(min=self.slowest) * step_BTH).exp()
        turned = math.pi * turn.tanh().unsqueeze(2) * step_BTH.unsqueeze(3)
        angle = state["angle"].unsqueeze(1) + turned.cumsum(1)
        key = self._turned(b, self.key_gain, self.key_bias, angle)
        query = self._turned(c, self.query_gain, self.query_bias, angle)
        value = heads(v, self.n_heads)
        rows = (query, key, self._in_rows(value))
        steps = (kept_BTH, (1 - mix_BTH) * step_BTH, mix_BTH * step_BTH)
        before = (state["memory"], state["key"], self._in_rows(state["value"]))
        read, memory = _scanned(rows, steps, before)
        y_BTD = self.out_proj(self._gated(read, rows[2], gate).to(x_BTD.dtype))
        after = {"memory": memory, "key": key[:, -1], "value": value[:, -1]}
        return y_BTD, {**after, "angle": angle[:, -1].remainder(2 * math.pi)}

    def _turned(self, x: Tensor, gain: Tensor, bias_HRN: Tensor, angle: Tensor) -> Tensor:
        """B x T x n x R x N: normed, the group's for each of its heads, with its bias, turned."""
        grouped = x.unflatten(2, (self.n_groups, self.rank, -1))
        normed = rms_normed(grouped, self.eps) * gain
        whole = normed.repeat_interleave(self.n_heads // self.n_groups, 2) + bias_HRN
        left, right, plain = whole.tensor_split([self.n_angles, 2 * self.n_angles], dim=-1)
        cos, sin = angle.cos().unsqueeze(3), angle.sin().unsqueeze(3)
        return torch.cat([left * cos - right * sin, right * cos + left * sin, plain], dim=-1)

    def _in_rows(self, value_HP: Tensor) -> Tensor:
        """... x n x R x P."""
        rows = value_HP.unsqueeze(-2)
        return rows if self.rank == 1 else rows * self.value_rows

    def _gated(self, read: Tensor, value: Tensor, gate_BTI: Tensor) -> Tensor:
        """m, the heads side by side."""
        read = read + self.skip[:, None, None] * value
        gate = heads(gate_BTI, self.n_heads).unsqueeze(3)
        if self.rank == 1:
            return (read * F.silu(gate)).flatten(2)
        return (read * F.silu(gate * self.gate_rows) * self.out_rows).sum(3).flatten(2)


def _scanned(
    rows: tuple[Tensor, ...], steps: tuple[Tensor, ...], before: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """What each token reads, B x T x n x R x P, and M after the last."""
    (memory, key, value), outputs = before, []
    for t in range(rows[0].shape[1]):
        kept, earlier, own = (x[:, t, :, None, None] for x in steps)
        memory = kept * (memory + key.mT @ (earlier * value))
        query, key, value = (x[:, t] for x in rows)
        memory = memory + key.mT @ (own * value)
        outputs.append(query @ memory)
    return torch.stack(outputs, 1), memory
