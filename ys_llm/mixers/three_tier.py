"""The three-tier state-space mixer: a main state at every token and two slower summaries.

Source: Erik Hyrkas, "Why Snakes" v0.3 (2024), github.com/erikhyrkas/snakes, README and the program
at commit e00c8ae; the parameter names are the author's. Symbols, row vectors:

    x  the input at t, D wide           h  main state           y  output of the state
    L  local summary, every 16 steps    G  global summary, every 64 steps    all S = d_state wide

    u_t = x_t in_proj + b                                          D -> S        (factored)
    f_t = tanh(x_t state_gate + b)                                 D -> S        (if gated, else 1)
    h_t = LN((f_t * h_{t-1}) state_controller + u_t input_influencer + scale * (G + L))
    y_t = h_t output_shaper                                        S -> S        (factored)
    o_t = y_t out_proj + b                                         S -> D
    if t mod 64 == 63:  G <- LN(G G.state_controller + y_t G.input_influencer) G.output_shaper
    if t mod 16 == 15:  L <- LN(L L.state_controller + y_t L.input_influencer) L.output_shaper

`PRESET_V0_3` is the source exactly (scale 1, one LN for all tiers, factored). The defaults differ,
each for a measured reason given in LOG.md: the chains in_proj input_influencer and output_shaper
out_proj are one matrix each (y = h), each tier has its own LayerNorm, and the summaries start
small: their output shapers at 0, and the scale, `summary_scale`, learned per channel, at 0.1.

State: h, L and G as `main`, `local_summary` and `global_summary`, each B x S.
"""

from dataclasses import dataclass, field
from math import lcm
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import Chain, DecodeSpec, Matrix
from ys_llm.ops.linear import joined_without_bias, linear
from ys_llm.ops.precision import Precision, compute_precision
from ys_llm.ops.three_tier.reference import reference
from ys_llm.ops.three_tier.select import (
    BACKENDS,
    EXPERIMENTAL,
    default_backend,
    missing_requirement,
    select,
)
from ys_llm.ops.three_tier.types import EPS, State, Summary, Weights

CONSTANTS = {"norm_eps": EPS}
INITIAL_GATE = 1.5  # tanh of it is 0.91: at first nearly all of the state is kept
INITIAL_SUMMARY_SCALE = 0.1  # from here stacks at T 256 lose nothing to their summaries; LOG.md


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.three_tier`."""

    d_state: int = field(
        default=256,
        metadata={"help": "width S of the main state", "minimum": 1, "maximum": 1 << 20},
    )
    d_summary: int = field(
        default=64,
        metadata={
            "help": "width R of a summary's update; 0 = d_state",
            "minimum": 0,
            "maximum": 1 << 20,
        },
    )
    n_heads: int = field(
        default=1,
        metadata={
            "help": "blocks of the state controller, each with its own LN statistics; 1 = dense",
            "minimum": 1,
        },
    )
    factored: bool = field(
        default=False,
        metadata={"help": "two linear maps in and two out, as in the source; false: one each"},
    )
    shared_norm: bool = field(
        default=False, metadata={"help": "one LayerNorm for all tiers, as in the source"}
    )
    summary_scale: Literal["fixed", "learned"] = field(
        default="learned",
        metadata={"help": "scale of G + L: fixed at 1 as in the source, or learned from 0.1"},
    )
    state_gate: bool = field(
        default=False,
        metadata={
            "help": "the input scales each channel of the state, by -1 to 1, before each step"
        },
    )
    local_interval: int = field(
        default=16,
        metadata={"help": "steps between local summaries; 0 = no such tier", "minimum": 0},
    )
    global_interval: int = field(
        default=64,
        metadata={"help": "steps between global summaries; 0 = no such tier", "minimum": 0},
    )


PRESET_V0_3 = Options(
    d_state=2048, d_summary=0, factored=True, shared_norm=True, summary_scale="fixed"
)
CONTRACT_OPTIONS = (
    Options(d_state=32, d_summary=0, factored=True, shared_norm=True, summary_scale="fixed"),
    Options(d_state=32, d_summary=0, n_heads=4),
    Options(d_state=24, d_summary=8, local_interval=0),
    Options(d_state=24, d_summary=6, n_heads=3, factored=True),
    Options(d_state=24, d_summary=8, state_gate=True),
    Options(d_state=24, d_summary=0, local_interval=5, global_interval=0),
)


class SummaryTier(nn.Module):
    """Parameters of one summary; `ops/three_tier` computes with them."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        d_state, width = options.d_state, options.d_summary or options.d_state
        self.state_controller = _matrix(d_state, width)
        self.input_influencer = _matrix(d_state, width)
        self.output_shaper = _matrix(width, d_state)
        if options.summary_scale == "learned":
            nn.init.zeros_(self.output_shaper)
        if not options.shared_norm:
            self.norm = nn.LayerNorm(width, eps=EPS)

    def weights(self, shared_norm: nn.LayerNorm, every: int) -> Summary:
        """The op's argument; with `shared_norm` where the summary has no norm of its own."""
        matrices = (self.state_controller, self.input_influencer, self.output_shaper)
        norm = getattr(self, "norm", shared_norm)
        return Summary(*matrices, norm.weight, norm.bias, every)


class Mixer(nn.Module):
    """The three-tier mixer: x_BTD -> o_BTD with a carried state of constant size."""

    backends = tuple(BACKENDS)
    time_major = True  # it reads x_BTD step by step

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        _check(options, backend)
        self.options, self.backend, self.d_model = options, backend, d_model
        d_state, heads = options.d_state, options.n_heads
        self.in_proj = _linear(d_model, d_state, bias=True)
        self.out_proj = _linear(d_state, d_model, bias=options.factored)
        if options.state_gate:
            self.state_gate = _linear(d_model, d_state, bias=True)
            nn.init.constant_(self.state_gate.bias, INITIAL_GATE)
        if options.factored:
            self.input_influencer = _matrix(d_state, d_state)
            self.output_shaper = _matrix(d_state, d_state)
        shape = (d_state, d_state) if heads == 1 else (heads, d_state // heads, d_state // heads)
        self.state_controller = _matrix(*shape)
        self.norm = nn.LayerNorm(d_state, eps=EPS)
        if options.local_interval:
            self.local_summary = SummaryTier(options)
        if options.global_interval:
            self.global_summary = SummaryTier(options)
        if options.summary_scale == "learned" and self._intervals:
            scale = torch.full((d_state,), INITIAL_SUMMARY_SCALE)
            self.summary_scale = nn.Parameter(scale)

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """Resolve `backend: auto` by a probe, or keep the `previous` one."""
        if lacking := missing_requirement(self.backend, self.state_controller.device.type):
            problem, remedy = lacking
            raise UserError(
                f"train.backend.three_tier: {self.backend}: {problem}",
                f"{remedy}, or set it to auto" if remedy else "Set it to auto",
            )
        if self.backend != "auto":
            untried = ", experimental: no GPU has been measured with it"
            return self.backend, "as configured" + untried * (self.backend in EXPERIMENTAL)
        self.backend, why = select(
            self.recurrence_weights(),
            batch_size=batch_size,
            precision=precision,
            previous=previous,
            timed=timed,
        )
        return self.backend, why

    def _recurrence(self, steps: int, device_type: str) -> Any:
        """The selected backend; before one is selected, the default for this device and length."""
        if self.backend not in ("auto", "cpp"):
            return BACKENDS[self.backend]
        return BACKENDS[default_backend(device_type=device_type, steps=steps)]

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which all tiers are 0."""
        x_TBD = x_BTD.transpose(0, 1)
        drive_TBS, biases = self._drive(x_TBD)
        clock = self._clock(position_B)
        if isinstance(clock, int):
            recurrence = self._recurrence(len(drive_TBS), x_BTD.device.type)
        else:  # rows of a batch of generated texts: one token at a time, in one matmul
            recurrence = reference
        h_TBS, after = recurrence(
            drive_TBS,
            self.recurrence_weights(*biases),
            State(state["main"], state["local_summary"], state["global_summary"], clock),
            starts_TB=None if starts_BT is None else starts_BT.t(),
            precision=compute_precision(x_BTD),
        )
        new_state = after._asdict()
        del new_state["position"]
        read_TBS = h_TBS @ self.output_shaper if self.options.factored else h_TBS
        return linear(self.out_proj, read_TBS).transpose(0, 1), new_state

    def _drive(self, x_TBD: Tensor) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
        """What the input adds to each step, with the gate's input beside it.

        And the biases of both, which the recurrence adds in passing; without a gate it has none.
        """
        options = self.options
        layers = [self.in_proj, self.state_gate] if options.state_gate else [self.in_proj]
        drive_TBI, biases = joined_without_bias(layers, x_TBD)
        drive_bias, gate_bias = biases if options.state_gate else (*biases, None)
        if options.factored:
            drive_TBI, drive_bias = self._influenced(drive_TBI, drive_bias), None
        if options.state_gate and gate_bias is None:  # a wrapped layer has added its own
            gate_bias = torch.zeros_like(self.norm.bias)
        return drive_TBI, (drive_bias, gate_bias)

    def _influenced(self, drive_TBI: Tensor, bias: Tensor | None) -> Tensor:
        """The drive times the input influencer; what stands beside it stays."""
        drive_TBS, gate_TBS = drive_TBI.tensor_split([self.options.d_state], -1)
        drive_TBS = drive_TBS if bias is None else drive_TBS + bias
        return torch.cat([drive_TBS @ self.input_influencer, gate_TBS], -1)

    def _clock(self, position_B: Tensor) -> int | Tensor:
        """One clock if all rows update their summaries at the same steps, else one per row."""
        cycle = lcm(*self._intervals.values())
        phases = {position % cycle for position in position_B.tolist()}
        return phases.pop() if len(phases) == 1 else position_B

    @property
    def _intervals(self) -> dict[str, int]:
        """Steps between the updates of each summary that this mixer has."""
        options = self.options
        both = {"local_summary": options.local_interval, "global_summary": options.global_interval}
        return {name: interval for name, interval in both.items() if interval}

    def decode_spec(self) -> DecodeSpec:
        """The weights of the compiled step; the factored chains are folded into one map each."""
        options, in_proj, out_proj = self.options, self.in_proj, self.out_proj
        intervals = [n for n in (options.local_interval, options.global_interval) if n]
        chains: dict[str, Any] = {"in_proj": in_proj, "out_proj": out_proj}
        if options.state_gate:
            chains["gate"] = self.state_gate
        if options.factored:
            chains["in_proj"] = Chain(in_proj, self.input_influencer)
            chains["out_proj"] = Chain(self.output_shaper, out_proj)
            if intervals:
                chains["shaper"] = Matrix(self.output_shaper, min(intervals))
        weights = self.recurrence_weights()
        fields = {
            **chains,
            "controller": Matrix(weights.state_controller),
            "norm": {"gain": weights.gain, "bias": weights.bias},
            "summary_scale": weights.summary_scale,
            "summaries": [
                _summary_fields(weights.local_summary),
                _summary_fields(weights.global_summary),
            ],
            "d_state": options.d_state,
            "n_heads": options.n_heads,
            "norm_eps": EPS,
        }
        return DecodeSpec("three_tier", fields, ("main", "local_summary", "global_summary"))

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token: zeros."""
        like, shape = self.state_controller, (batch_size, self.options.d_state)
        return {  # not `new_zeros`: the controller of a sharded model is a DTensor
            name: torch.zeros(shape, dtype=like.dtype, device=like.device)
            for name in ("main", "local_summary", "global_summary")
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of a streamed state after `seq_len` tokens: the same for every length."""
        return 3 * batch_size * self.options.d_state * self.state_controller.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length."""
        options = self.options
        s, d = options.d_state, self.d_model
        every = self._intervals.values()
        flops = (6 if options.state_gate else 4) * d * s + 2 * s * s // options.n_heads
        flops += 4 * s * s if options.factored else 0
        fold = 2 * s * s if options.factored and every else 0
        width = options.d_summary or s
        return flops + sum(6 * s * width // e for e in every) + (fold // min(every) if every else 0)

    def recurrence_weights(
        self, drive_bias: Tensor | None = None, gate_bias: Tensor | None = None
    ) -> Weights:
        """The op's argument: the parameters, read now, so that wrapped ones take effect."""
        options = self.options
        summaries = {
            name: getattr(self, name).weights(self.norm, interval)
            for name, interval in self._intervals.items()
        }
        return Weights(
            self.state_controller,
            self.norm.weight,
            self.norm.bias,
            self.output_shaper if options.factored else None,
            getattr(self, "summary_scale", None),
            drive_bias,
            gate_bias,
            **summaries,
        )


def _summary_fields(summary: Summary | None) -> dict[str, Any] | None:
    """A `struct ys_three_tier_summary_weights`; None: there is no such summary."""
    if summary is None:
        return None
    return {
        "controller": Matrix(summary.state_controller, summary.every),
        "influencer": Matrix(summary.input_influencer, summary.every),
        "shaper": Matrix(summary.output_shaper, summary.every),
        "norm": {"gain": summary.gain, "bias": summary.bias},
        "interval": summary.every,
        "width": len(summary.gain),
    }


def _matrix(*shape: int) -> nn.Parameter:
    """Xavier-uniform over the last two dimensions (each head's block separately)."""
    bound = (6.0 / (shape[-2] + shape[-1])) ** 0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def _linear(d_in: int, d_out: int, *, bias: bool) -> nn.Linear:
    linear = nn.Linear(d_in, d_out, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def _check(options: Options, backend: str) -> None:
    for name in ("d_state", "d_summary"):
        width = getattr(options, name)
        if width % options.n_heads:
            raise UserError(
                f"model.options.three_tier: {name} {width} is not a multiple of "
                f"n_heads {options.n_heads}",
                f"Set n_heads to a divisor of {width}.",
                exit_code=EXIT_USAGE,
            )
    if options.shared_norm and options.d_summary not in (0, options.d_state):
        raise UserError(
            "model.options.three_tier: shared_norm needs one width, found d_state "
            f"{options.d_state} and d_summary {options.d_summary}",
            "Set shared_norm: false, or d_summary: 0.",
            exit_code=EXIT_USAGE,
        )
    if backend not in ("auto", *BACKENDS):
        raise UserError(
            f"train.backend.three_tier: there is no backend {backend!r}",
            "Choose auto, "
            + ", ".join(f"{b} (experimental)" if b in EXPERIMENTAL else b for b in BACKENDS)
            + ".",
            exit_code=EXIT_USAGE,
        )
