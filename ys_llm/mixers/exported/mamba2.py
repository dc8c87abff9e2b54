"""Mamba-2: heads of a matrix memory with one decay each, by the step of a discretised system.

    [skipped_t, plain_t, gate_t, u_t, step_t] = x_t in_proj
    [v_t, b_t, c_t] = silu(bias + sum_j w_j u_{t-j})            over 0 <= j < taps
    s_t = softplus(step_t + step_bias)
    M_t = exp(-exp(log_rate) s_t) M_{t-1} + b_t^T s_t v_t       with the keys b, c of its group
    m_t = c_t M_t + skip v_t
    y_t = [silu(skipped_t) plain_t, RMSNorm_G(m_t silu(gate_t))] out_proj

State: M, B x n x N x P, and the taps - 1 latest u, 0 before the first token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, convolved, rms_normed, wide


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        d_inner, self.eps = options["expand"] * d_model, constants["norm_eps"]
        self.d_ssm, self.d_state = options["d_ssm"] or d_inner, options["d_state"]
        self.d_head = min(options["d_head"], self.d_ssm)
        self.n_heads = self.d_ssm // self.d_head
        self.n_groups = options["n_groups"] or self.n_heads
        self.n_keys = self.n_groups * self.d_state
        n_mixed, beside = self.d_ssm + 2 * self.n_keys, d_inner - self.d_ssm
        self.widths = [beside, beside, self.d_ssm, n_mixed, self.n_heads]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.conv_taps = nn.Parameter(torch.empty(options["taps"], n_mixed))
        self.conv_bias = nn.Parameter(torch.empty(n_mixed)) if options["conv_bias"] else None
        self.step_bias = nn.Parameter(torch.empty(self.n_heads))
        self.log_rate = nn.Parameter(torch.empty(self.n_heads))
        self.skip = nn.Parameter(torch.empty(self.d_ssm))
        self.norm_gain = nn.Parameter(torch.empty(self.d_ssm))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def shapes(self) -> Shapes:
        """Of the latest u and of M."""
        n_earlier, n_mixed = len(self.conv_taps) - 1, self.conv_taps.shape[1]
        memory = (self.n_heads, self.d_state, self.d_head)
        return {"inputs": (n_earlier, n_mixed), "memory": memory}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        skipped, plain, gate, mixed, step = self.in_proj(x_BTD).split(self.widths, dim=2)
        mixed, inputs = convolved(mixed, self.conv_taps, state["inputs"])
        if self.conv_bias is not None:
            mixed = mixed + self.conv_bias
        step_BTH = F.softplus(wide(step) + self.step_bias)
        read, memory = self._scanned(wide(F.silu(mixed)), step_BTH, state["memory"])
        by_group = (read * F.silu(gate)).unflatten(2, (self.n_groups, -1))
        normed = (rms_normed(by_group, self.eps).flatten(2) * self.norm_gain).to(gate.dtype)
        y_BTD = self.out_proj(torch.cat([F.silu(skipped) * plain, normed], 2))
        return y_BTD, {"inputs": inputs, "memory": memory}

    def _scanned(self, mixed: Tensor, step_BTH: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """m, the heads side by side, and M after the last token."""
        v, b, c = mixed.split([self.d_ssm, self.n_keys, self.n_keys], dim=2)
        values = step_BTH.unsqueeze(3) * v.unflatten(2, (self.n_heads, -1))
        kept_BTH = (-wide(self.log_rate).exp() * step_BTH).exp()
        key, query = (self._of_heads(x) for x in (b, c))
        outputs = []
        for t in range(mixed.shape[1]):
            written = key[:, t, :, :, None] * values[:, t, :, None]
            memory = kept_BTH[:, t, :, None, None] * memory + written
            outputs.append((query[:, t, :, None] @ memory).flatten(1))
        return torch.stack(outputs, 1) + self.skip * v, memory

    def _of_heads(self, x: Tensor) -> Tensor:
        """B x T x n x N, each group's keys once for each of its heads."""
        by_group: Tensor = x.unflatten(2, (self.n_groups, -1))
        return by_group.repeat_interleave(self.n_heads // self.n_groups, dim=2)
