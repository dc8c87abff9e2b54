"""Attention by powers of q . k, or its exponential, with a decay: 2Mamba and its relatives.

    [q, k, v]_t = bias + sum_j w_j (x qkv_proj)_{t-j}      over 0 <= j < taps
    d_t = softplus(x_t step_proj + bias)
    A_t = 0; -softplus(x_t decay_proj + bias), "softplus"; or -exp(log_rate) d_t, "original"
    w_ts = f(q_t . k_s / sqrt(P)) exp(A_{s+1} + ... + A_t)      f(z) = z, z^2 or exp(z) by `power`
    m_t = sum_s w_ts v'_s, with norm sum over sum_s w_ts        v' = d v with value_step, else v
    y_t = RMSNorm((m_t + skip v_t) silu(x_t gate_proj + bias)) out_proj    RMSNorm with norm rms

State: the latest inputs of the convolution; for power linear and squared a matrix a head, for exp
keys, values and the decay since each.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.ops.exported import (
    Shapes,
    TensorDict,
    appended,
    convolved,
    heads,
    products,
    rms_normed,
    visible,
    wide,
)

_SMALLEST_SUM = 1e-12  # of weights; below, there is nothing to read


class Mixer(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, options: dict[str, Any], constants: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.d_model, self.eps = options, d_model, constants["norm_eps"]
        self.n_heads, self.d_head = options["n_heads"], d_model // options["n_heads"]
        n_heads, has_bias = self.n_heads, options["decay_bias"]
        original = options["decay"] == "original"
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        if options["value_step"] or original:
            self.step_proj = nn.Linear(d_model, n_heads, bias=has_bias and original)
        if options["decay"] == "softplus":
            self.decay_proj = nn.Linear(d_model, n_heads, bias=has_bias)
        if options["gate"]:
            self.gate_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        if options["taps"] > 1:
            self.conv_taps = nn.Parameter(torch.empty(options["taps"], 3 * d_model))
            self.conv_bias = nn.Parameter(torch.empty(3 * d_model))
        if original:
            self.log_rate = nn.Parameter(torch.empty(n_heads))
        if options["skip"]:
            self.skip = nn.Parameter(torch.empty(d_model))
        if options["norm"] == "rms":
            self.norm_gain = nn.Parameter(torch.empty(d_model))

    def shapes(self) -> Shapes:
        """Of the state before the first token."""
        options, shapes = self.options, dict[str, tuple[int, ...]]()
        if options["taps"] > 1:
            shapes["inputs"] = (options["taps"] - 1, 3 * self.d_model)
        if options["power"] == "exp":
            n_keys = max(0, options["window"] - 1)
            cached, ages = (n_keys, self.n_heads, self.d_head), (n_keys, self.n_heads)
            return shapes | {"keys": cached, "values": cached, "ages": ages, "document": (n_keys,)}
        width = self.d_head
        n_rows = width if options["power"] == "linear" else width * (width + 1) // 2
        return shapes | {"memory": (self.n_heads, n_rows, width + (options["norm"] == "sum"))}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """y_BTD, and the state after the last token."""
        options, after = self.options, dict[str, Tensor]()
        qkv = self.qkv_proj(x_BTD)
        if options["taps"] > 1:
            qkv, after["inputs"] = convolved(qkv, self.conv_taps, state["inputs"])
            qkv = qkv + self.conv_bias
        query, key, value = (heads(part, self.n_heads) for part in qkv.chunk(3, dim=2))
        query, key = self._active(query) * self.d_head**-0.5, self._active(key)
        step_BTH, log_decay_BTH = self._steps(x_BTD)
        stepped = step_BTH.unsqueeze(3) * value if options["value_step"] else value
        read_by = self._in_view if options["power"] == "exp" else self._read
        read, kept = read_by((query, key, stepped), log_decay_BTH, state)
        read_BTD = read.flatten(2)
        if options["skip"]:
            read_BTD = read_BTD + self.skip * value.flatten(2)
        if options["gate"]:
            read_BTD = read_BTD * F.silu(wide(self.gate_proj(x_BTD)))
        if options["norm"] == "rms":
            read_BTD = rms_normed(read_BTD, self.eps) * self.norm_gain
        return self.out_proj(read_BTD.to(x_BTD.dtype)), after | kept

    def _active(self, x: Tensor) -> Tensor:
        activation = self.options["activation"]
        return x if activation == "none" else F.relu(x) if activation == "relu" else F.silu(x)

    def _steps(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """d, which is 0 where nothing needs it, and A, both B x T x H."""
        step = torch.zeros_like(wide(x_BTD[..., : self.n_heads]))
        has_step = self.options["value_step"] or self.options["decay"] == "original"
        if has_step:
            step = F.softplus(wide(self.step_proj(x_BTD)))
        if self.options["decay"] == "softplus":
            return step, -F.softplus(wide(self.decay_proj(x_BTD)))
        if self.options["decay"] == "original":
            return step, -wide(self.log_rate).exp() * step
        return step, torch.zeros_like(step)

    def _read(
        self, qkv: tuple[Tensor, Tensor, Tensor], log_decay_BTH: Tensor, state: TensorDict
    ) -> tuple[Tensor, TensorDict]:
        """m by the matrices, whose last column is the sum of the keys under norm sum."""
        query, key, value = qkv
        if with_sum := self.options["norm"] == "sum":
            value = torch.cat([value, torch.ones_like(value[..., :1])], 3)
        if self.options["power"] == "squared":
            query, key = products(query), products(key)
        kept_BTH, memory, outputs = log_decay_BTH.exp(), state["memory"], []
        for t in range(query.shape[1]):
            q, k, v = (x[:, t, :, None] for x in (query, key, value))
            memory = kept_BTH[:, t, :, None, None] * memory + k.mT @ v
            outputs.append((q @ memory).squeeze(2))
        read = torch.stack(outputs, 1)
        if with_sum:
            read, total = read[..., :-1], read[..., -1:]
            is_read = total > _SMALLEST_SUM
            read = (read / torch.where(is_read, total, 1)).masked_fill(~is_read, 0)
        return read, {"memory": memory}

    def _in_view(
        self, qkv: tuple[Tensor, Tensor, Tensor], log_decay_BTH: Tensor, state: TensorDict
    ) -> tuple[Tensor, TensorDict]:
        """m of power exp; decays are summed in float64 and subtracted around the first query."""
        query, key, value = qkv
        n_tokens, window = query.shape[1], self.options["window"]
        since = log_decay_BTH.double().cumsum(1)
        new = {"keys": key, "values": value, "ages": -since}
        cache, after = appended(state, new, window)
        ages = cache.pop("ages")  # of past keys up to the first new token, less what came since
        after["ages"] = (ages + since[:, -1:])[:, n_tokens if window else 0 :].to(
            state["ages"].dtype
        )
        to_query, to_key = since.to(query.dtype).mT, ages.to(query.dtype).mT
        keys, values = (cache[name].transpose(1, 2) for name in ("keys", "values"))
        scores = query.transpose(1, 2) @ keys.mT + to_query.unsqueeze(3) + to_key.unsqueeze(2)
        seen = visible(cache["document"], n_tokens, window)[:, None]
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
        return mixed.transpose(1, 2), after
