"""Mamba-3: heads of a matrix memory that turns and fades, written by the trapezoidal rule.

Source: Lahoti et al. 2026, "Mamba-3: Improved Sequence Modeling using State Space Principles"
(arXiv 2603.15569), and the authors' code of the block.

Glossary (our name = the paper's symbol): `n_groups` G; `d_state` N; `d_head` P; n heads; `rank` R;
`write_key` = B, `read_key` = C, with `key_gain`, `query_gain` of their norms and `key_bias`,
`query_bias`; `step` = Delta; `rate` = -A; `mix` = lambda; `turn` = theta; `skip` = D; the memory
M = the state h^T; I = expand d_model; `value_rows`, `gate_rows`, `out_rows` = the projections of
MIMO.

Recurrence, row vectors, t the clock, each head by itself, with the keys of its group:

    [gate_t, v_t, b_t, c_t, step_t, rate_t, mix_t, turn_t] = x_t in_proj
                         of I, I, G R N, G R N, n, n, n and A channels, 2 A = rope_fraction N
    s_t = softplus(step_t + step_bias);   r_t = max(softplus(rate_t), 1e-4);   l_t = sigmoid(mix_t)
    p_t = p_{t-1} + pi tanh(turn_t) s_t                                       A angles a head
    K_t = turned(RMSNorm(b_t) + key_bias, p_t);   Q_t = turned(RMSNorm(c_t) + query_bias, p_t)
    V_t = v_t * value_rows                                            R x P; K_t, Q_t are R x N
    M_t = exp(-r_t s_t) (M_{t-1} + (1 - l_t) s_t K_{t-1}^T V_{t-1}) + l_t s_t K_t^T V_t
    m_t = sum_R (Q_t M_t + skip V_t) * silu(gate_t * gate_rows) * out_rows
    y_t = m_t out_proj

`turned` rotates channel c with channel c + A by p_tc, for c < A, and leaves those from 2 A on: the
imaginary part of a complex transition exp(s_t (-r_t - i pi tanh(turn_t))), carried by the keys.

State: M, B x n x N x P, the latest K and v, and p, B x n x A, of constant size; all of it 0 before
the first token of a document, where the decay of M and the weight of p_{t-1} are 0.

All published parts are here: exponential-trapezoidal discretisation in place of the short
convolution, complex transitions by rotation (half of the channels, or all), norm and bias of B and
C, and MIMO of rank R (`rank`; 1, where the three projections are 1 and absent, is SISO). Of the
code's options one is not: a norm before the gate, which it has off.

Differs from the source: the channels that a rotation pairs (the code's are 2c and 2c + 1 in SISO,
c and c + N / 2 in MIMO); AdamW does not decay the biases of B and C and the projections of MIMO, as
it decays no vector here.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops import linear_scan, rotary
from ys_llm.ops.linear import linear
from ys_llm.ops.precision import Precision
from ys_llm.ops.rms_norm import rms_norm
from ys_llm.ops.trapezoid import Memory, Rows, Steps, parallel, reference, trapezoid

NORM_EPS = 1e-5
SLOWEST_RATE = 1e-4
CONSTANTS = {"norm_eps": NORM_EPS, "slowest_rate": SLOWEST_RATE}
_STEPS = (1e-3, 0.1)
_SHORTEST_STEP = 1e-4


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.mamba3`."""

    expand: int = setting(2, "inner channels for each of d_model", minimum=1)
    d_head: int = setting(64, "channels P of a head; all where there are fewer", minimum=1)
    d_state: int = setting(128, "numbers N of a key", minimum=2)
    n_groups: int = setting(1, "groups of heads with common keys", minimum=1)
    rank: int = setting(1, "rows R that a token writes and reads; above 1: MIMO", minimum=1)
    rope_fraction: float = setting(
        0.5, "share of a key's numbers that are rotated", above=0.0, maximum=1.0
    )


CONTRACT_OPTIONS = (
    Options(expand=1, d_head=8, d_state=6, n_groups=2, rank=2),
    Options(expand=1, d_head=16, d_state=8, rope_fraction=1.0),
)


class _Parts(NamedTuple):
    """What a token's input is projected to."""

    gate: Tensor
    value: Tensor
    write_key: Tensor
    read_key: Tensor
    step: Tensor
    rate: Tensor
    mix: Tensor
    turn: Tensor


class Mixer(nn.Module):
    """The block of Mamba-3: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "parallel", "chunked")
    time_major = False
    no_weight_decay = ("key_bias", "query_bias", "value_rows", "gate_rows", "out_rows")

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend_of("mamba3", backend, self.backends)
        self.options = options
        self.d_inner = options.expand * d_model
        self.d_head = min(options.d_head, self.d_inner)
        self.n_heads = self.d_inner // self.d_head
        self.n_angles = int(options.d_state * options.rope_fraction) // 2
        _check(self.d_inner, self.d_head, self.n_heads, self.n_angles, options)
        self.in_proj = nn.Linear(d_model, sum(self._widths), bias=False)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        key_shape = (self.n_heads, options.rank, options.d_state)
        self.key_bias = nn.Parameter(torch.ones(key_shape))
        self.query_bias = nn.Parameter(torch.ones(key_shape))
        self.key_gain = nn.Parameter(torch.ones(options.d_state))
        self.query_gain = nn.Parameter(torch.ones(options.d_state))
        self.step_bias = nn.Parameter(_new_step_bias(self.n_heads))
        self.skip = nn.Parameter(torch.ones(self.n_heads))
        if options.rank > 1:
            rows = torch.ones(self.n_heads, options.rank, self.d_head)
            self.value_rows = nn.Parameter(rows / options.rank)
            self.gate_rows = nn.Parameter(rows.clone())
            self.out_rows = nn.Parameter(rows / options.rank)

    @property
    def _widths(self) -> tuple[int, ...]:
        n_keys = self.options.n_groups * self.options.rank * self.options.d_state
        inner, heads = self.d_inner, self.n_heads
        return inner, inner, n_keys, n_keys, heads, heads, heads, self.n_angles

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which all is 0."""
        projected = linear(self.in_proj, x_BTD)
        wide = torch.promote_types(projected.dtype, torch.float32)
        parts = _Parts(*projected.to(wide).split(self._widths, dim=2))
        step_BTH = F.softplus(parts.step + self.step_bias)
        rate_BTH = F.softplus(parts.rate).clamp(min=SLOWEST_RATE)
        mix_BTH = parts.mix.sigmoid()
        angle_BTHA = self._angles(parts.turn, step_BTH, state["angle"], starts_BT)
        rows = self._rows(parts, angle_BTHA)
        steps = Steps(-rate_BTH * step_BTH, (1 - mix_BTH) * step_BTH, mix_BTH * step_BTH)
        before = Memory(state["memory"], state["key"], self._in_rows(state["value"]))
        scan = {"reference": reference, "parallel": parallel}.get(self.backend, trapezoid)
        read_BTHRP, after = scan(rows, steps, before, starts_BT)
        mixed_BTI = self._gated(read_BTHRP, rows.value_BTHRV, parts.gate)
        y_BTD = linear(self.out_proj, mixed_BTI.to(projected.dtype))
        angle_BHA = angle_BTHA[:, -1].remainder(2 * math.pi)
        value_BHP = self._by_head(parts.value)[:, -1]
        latest = {"memory": after[0], "key": after[1], "value": value_BHP, "angle": angle_BHA}
        return y_BTD, {name: x.to(state[name].dtype) for name, x in latest.items()}

    def _angles(
        self, turn_BTA: Tensor, step_BTH: Tensor, before_BHA: Tensor, starts_BT: Tensor | None
    ) -> Tensor:
        """p of the docstring, B x T x n x A: sums from a document's start on."""
        turn_BTHA = math.pi * turn_BTA.tanh().unsqueeze(2) * step_BTH.unsqueeze(3)
        turn_TBS = turn_BTHA.transpose(0, 1).flatten(2)
        kept_TBS = torch.ones_like(turn_TBS)
        if starts_BT is not None:
            kept_TBS = kept_TBS.masked_fill(starts_BT.t()[:, :, None], 0)
        before_BS = before_BHA.flatten(1).to(turn_TBS.dtype)
        scan = linear_scan.reference if self.backend == "reference" else linear_scan.linear_scan
        summed_TBS = scan(kept_TBS, turn_TBS, before_BS)
        return summed_TBS.transpose(0, 1).view(turn_BTHA.shape)

    def _rows(self, parts: _Parts, angle_BTHA: Tensor) -> Rows:
        """Q, K and V of the docstring."""
        table = angle_BTHA.cos().unsqueeze(3), angle_BTHA.sin().unsqueeze(3)
        query = self._turned(parts.read_key, self.query_gain, self.query_bias, table)
        key = self._turned(parts.write_key, self.key_gain, self.key_bias, table)
        return Rows(query, key, self._in_rows(self._by_head(parts.value)))

    def _turned(
        self, key: Tensor, gain: Tensor, bias_HRN: Tensor, table: tuple[Tensor, Tensor]
    ) -> Tensor:
        """B x T x n x R x N: normed, the group's for each of its heads, with its bias, turned."""
        options = self.options
        _, normed = rms_norm(key.reshape(-1, options.d_state), None, gain, NORM_EPS)
        grouped = normed.view(*key.shape[:2], options.n_groups, options.rank, -1)
        whole = grouped.repeat_interleave(self.n_heads // options.n_groups, 2) + bias_HRN
        rotated, plain = whole.tensor_split([2 * self.n_angles], dim=-1)
        return torch.cat([rotary.reference(rotated, *table), plain], dim=-1)

    def _by_head(self, x_BTI: Tensor) -> Tensor:
        by_head: Tensor = x_BTI.unflatten(-1, (self.n_heads, -1))
        return by_head

    def _in_rows(self, value_HP: Tensor) -> Tensor:
        """... x n x R x P."""
        rows = value_HP.unsqueeze(-2)
        return rows if self.options.rank == 1 else rows * self.value_rows

    def _gated(self, read_BTHRP: Tensor, value_BTHRP: Tensor, gate_BTI: Tensor) -> Tensor:
        """m of the docstring, the heads side by side."""
        read = read_BTHRP + self.skip[:, None, None] * value_BTHRP
        gate = self._by_head(gate_BTI).unsqueeze(3)
        if self.options.rank == 1:
            return (read * F.silu(gate)).flatten(2)
        return (read * F.silu(gate * self.gate_rows) * self.out_rows).sum(3).flatten(2)

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """chunked unless the configuration says otherwise."""
        return self.backend, "matmuls over chunks of tokens, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    @property
    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        options, heads = self.options, self.n_heads
        return {
            "memory": (heads, options.d_state, self.d_head),
            "key": (heads, options.rank, options.d_state),
            "value": (heads, self.d_head),
            "angle": (heads, self.n_angles),
        }

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token: 0."""
        like = self.out_proj.weight
        return {
            name: torch.zeros(batch_size, *shape, dtype=like.dtype, device=like.device)
            for name, shape in self._state_shapes.items()
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        numbers = sum(map(math.prod, self._state_shapes.values()))
        return batch_size * numbers * self.out_proj.weight.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length.

        Those of the recurrence, which writes twice and reads once; chunks do more.
        """
        weights = self.in_proj.weight.numel() + self.out_proj.weight.numel()
        return 2 * weights + 6 * self.d_inner * self.options.rank * self.options.d_state

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        options = self.options
        return f"n_heads={self.n_heads}, n_groups={options.n_groups}, rank={options.rank}"


def _new_step_bias(n_heads: int) -> Tensor:
    """Steps spread evenly by their logarithm, before softplus."""
    steps = torch.empty(n_heads).uniform_(*map(math.log, _STEPS)).exp_()
    return steps.clamp_(min=_SHORTEST_STEP).expm1().log()


def _check(d_inner: int, d_head: int, n_heads: int, n_angles: int, options: Options) -> None:
    """Raise UserError unless the heads fill the channels, the groups the heads; one pair turns."""
    where, problem = "model.options.mamba3", ""
    if d_inner % d_head:
        problem = f"{where}.d_head {d_head} does not divide {d_inner} channels"
    elif n_heads % options.n_groups:
        problem = f"{where}.n_groups {options.n_groups} does not divide {n_heads} heads"
    elif not n_angles:
        problem = f"{where}.d_state {options.d_state} leaves no pair of numbers to rotate"
    if problem:
        fix = f"Set it so, or change model.d_model, {where}.expand or {where}.d_state"
        raise UserError(problem, fix, exit_code=EXIT_USAGE)
