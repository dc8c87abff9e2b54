"""Mamba-2: heads of a matrix memory with one decay each, by the step of a discretised system.

Source: Dao & Gu 2024, "Transformers are SSMs", sections 6 and 7 (SSD, the block of Mamba-2).

Glossary (our name = the paper's symbol): `n_groups` G; `d_state` N; `d_head` P; `d_ssm` = the
channels that are mixed over time, n heads of P; `write_key` = B, `read_key` = C; `step` = Delta;
`log_rate` = log(-A); `skip` = D; the memory `M` = the state h^T; I = expand d_model.

Recurrence, row vectors, t the clock, each head by itself, with the keys of its group:

    [skipped_t, plain_t, gate_t, u_t, step_t] = x_t in_proj     of I - d_ssm, I - d_ssm, d_ssm,
                                                                d_ssm + 2 G N and n channels
    [v_t, b_t, c_t] = silu(bias + sum_j w_j u_{t-j})            over 0 <= j < taps, in the document
    s_t = softplus(step_t + step_bias)
    M_t = exp(-exp(log_rate) s_t) M_{t-1} + b_t^T s_t v_t
    m_t = c_t M_t + skip v_t
    y_t = [silu(skipped_t) plain_t, RMSNorm_G(m_t silu(gate_t))] out_proj

State: M, B x n x N x P, and the taps - 1 latest u, of constant size; all of it 0 before the first
token of a document, where the decay is 0. With `d_ssm` below I, the other channels are a gated map
of the token alone (`skipped`, `plain`), as the authors' library has it.

Presets: `published`, the authors' defaults, all channels; `as_written`, `as_committed` and
`linear_mamba`, what "Mamba-2" stands for in the text of "2Mamba2Furious" (arXiv 2602.17363), in the
code of its tables and in older code of its authors. In `as_committed` one head of 64 channels is
mixed over time, whatever the width.

Differs from the source: `skip` is a number a channel, not one a head; steps have no limits but 0.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.presets import fill_from_preset
from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.convolution import short_convolution
from ys_llm.ops.linear import linear
from ys_llm.ops.linear_attention import Writes, linear_attention, parallel, reference
from ys_llm.ops.precision import Precision
from ys_llm.ops.rms_norm import rms_norm

NORM_EPS = 1e-5
CONSTANTS = {"norm_eps": NORM_EPS}
_RATES = (1.0, 16.0)  # of -A in a new mixer
_STEPS = (1e-3, 0.1)
_SHORTEST_STEP = 1e-4

_PUBLISHED: dict[str, Any] = {
    "expand": 2,
    "d_ssm": 0,
    "d_head": 64,
    "d_state": 128,
    "n_groups": 1,
    "taps": 4,
    "conv_bias": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "published": _PUBLISHED,
    "as_written": _PUBLISHED | {"expand": 1, "d_state": 64, "n_groups": 0},
    "as_committed": _PUBLISHED | {"expand": 1, "d_ssm": 64, "taps": 2, "conv_bias": False},
    "linear_mamba": _PUBLISHED | {"expand": 1, "d_state": 64, "taps": 2},
}


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.mamba2`; None is as the preset has it."""

    preset: str = setting("published", "sets the others: " + ", ".join(PRESETS))
    expand: int = setting(None, "inner channels for each of d_model", minimum=1)
    d_ssm: int = setting(None, "inner channels that are mixed over time; 0 = all", minimum=0)
    d_head: int = setting(None, "channels P of a head; all where there are fewer", minimum=1)
    d_state: int = setting(None, "numbers N of a key", minimum=1)
    n_groups: int = setting(None, "groups of heads with common keys; 0 = one a head", minimum=0)
    taps: int = setting(None, "taps of the convolution", minimum=1, maximum=4)
    conv_bias: bool = setting(None, "whether the convolution has a bias")

    def __post_init__(self) -> None:
        """Fill in what the preset sets."""
        fill_from_preset(self, PRESETS)


CONTRACT_OPTIONS = (
    Options(expand=1, d_ssm=24, d_head=6, d_state=5, n_groups=2, taps=2, conv_bias=False),
)


class Mixer(nn.Module):
    """The block of Mamba-2: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "parallel", "chunked")
    time_major = False
    no_weight_decay = ("conv_taps",)  # a few numbers a channel, as a vector is

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend_of("mamba2", backend, self.backends)
        self.options = options
        self.d_inner = options.expand * d_model
        self.d_ssm = options.d_ssm or self.d_inner
        self.d_head = min(options.d_head, self.d_ssm)
        self.n_heads = self.d_ssm // self.d_head
        self.n_groups = options.n_groups or self.n_heads
        _check(self.d_inner, self.d_ssm, self.n_heads, options)
        self.n_mixed = self.d_ssm + 2 * self.n_groups * options.d_state
        self.in_proj = nn.Linear(d_model, sum(self._widths), bias=False)
        self.conv_taps = nn.Parameter(torch.empty(options.taps, self.n_mixed))
        self.conv_bias = nn.Parameter(torch.empty(self.n_mixed)) if options.conv_bias else None
        self.step_bias = nn.Parameter(torch.empty(self.n_heads))
        self.log_rate = nn.Parameter(torch.empty(self.n_heads))
        self.skip = nn.Parameter(torch.ones(self.d_ssm))
        self.norm_gain = nn.Parameter(torch.ones(self.d_ssm))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self._initialise()

    @property
    def _widths(self) -> tuple[int, ...]:
        beside = self.d_inner - self.d_ssm
        return beside, beside, self.d_ssm, self.n_mixed, self.n_heads

    @torch.no_grad()
    def _initialise(self) -> None:
        bound = self.options.taps**-0.5
        nn.init.uniform_(self.conv_taps, -bound, bound)
        if self.conv_bias is not None:
            nn.init.uniform_(self.conv_bias, -bound, bound)
        self.log_rate.uniform_(*_RATES).log_()
        steps = self.step_bias.uniform_(*map(math.log, _STEPS)).exp_().clamp_(min=_SHORTEST_STEP)
        self.step_bias.copy_(steps.expm1().log())  # softplus gives the step back

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which all is 0."""
        parts = linear(self.in_proj, x_BTD).split(self._widths, dim=2)
        skipped, plain, gate, mixed, step = parts
        mixed, inputs = short_convolution(
            mixed, self.conv_taps, self.conv_bias, state["inputs"], starts_BT
        )
        wide = torch.promote_types(step.dtype, torch.float32)
        step_BTH = F.softplus(step.to(wide) + self.step_bias)
        read_BTC, memory = self._scanned(F.silu(mixed), step_BTH, state["memory"], starts_BT)
        normed = self._normed(read_BTC * F.silu(gate)).to(gate.dtype)
        y_BTD = linear(self.out_proj, torch.cat([F.silu(skipped) * plain, normed], dim=2))
        return y_BTD, {"inputs": inputs, "memory": memory.to(state["memory"].dtype)}

    def _scanned(
        self, mixed: Tensor, step_BTH: Tensor, memory: Tensor, starts_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """m of the docstring, the heads side by side, and the memory."""
        n_keys = self.n_groups * self.options.d_state
        v, b, c = mixed.to(step_BTH.dtype).split([self.d_ssm, n_keys, n_keys], dim=2)
        value_BTHP = v.unflatten(2, (self.n_heads, -1))
        write_BTGN, read_BTGN = (x.unflatten(2, (self.n_groups, -1)) for x in (b, c))
        log_decay_BTH = -self.log_rate.exp() * step_BTH
        writes = Writes(write_BTGN, step_BTH.unsqueeze(3) * value_BTHP, log_decay_BTH)
        scan = {"reference": reference, "parallel": parallel}.get(self.backend, linear_attention)
        read_BTHP, memory = scan(read_BTGN, writes, memory, starts_BT, 1)
        return read_BTHP.flatten(2) + self.skip * v, memory

    def _normed(self, read_BTC: Tensor) -> Tensor:
        """Each group's channels over their root mean square."""
        ones = self.norm_gain.new_ones(self.d_ssm // self.n_groups)
        rows = read_BTC.unflatten(2, (self.n_groups, -1)).flatten(0, 2)
        _, normed = rms_norm(rows, None, ones, NORM_EPS)
        return normed.view(read_BTC.shape) * self.norm_gain

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """chunked unless the configuration says otherwise."""
        return self.backend, "matmuls over chunks of 64 tokens, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token: 0."""
        like, options = self.out_proj.weight, self.options
        memory = (batch_size, self.n_heads, options.d_state, self.d_head)
        shapes = {"inputs": (batch_size, options.taps - 1, self.n_mixed), "memory": memory}
        return {
            name: torch.zeros(shape, dtype=like.dtype, device=like.device)
            for name, shape in shapes.items()
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        numbers = self.d_ssm * self.options.d_state + (self.options.taps - 1) * self.n_mixed
        return batch_size * numbers * self.out_proj.weight.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length.

        Those of the recurrence, which writes and reads once; chunks do more.
        """
        weights = self.in_proj.weight.numel() + self.out_proj.weight.numel()
        return 2 * weights + 4 * self.d_ssm * self.options.d_state

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"n_heads={self.n_heads}, n_groups={self.n_groups}, d_ssm={self.d_ssm}"


def _check(d_inner: int, d_ssm: int, n_heads: int, options: Options) -> None:
    """Raise UserError unless the heads fill the channels and the groups the heads."""
    where, problem = "model.options.mamba2", ""
    if d_ssm > d_inner:
        problem = f"{where}.d_ssm {d_ssm} is more than the {d_inner} inner channels"
    elif d_ssm > options.d_head and d_ssm % options.d_head:
        problem = f"{where}.d_head {options.d_head} does not divide {d_ssm} channels"
    elif options.n_groups and n_heads % options.n_groups:
        problem = f"{where}.n_groups {options.n_groups} does not divide {n_heads} heads"
    if problem:
        fix = f"Set it so, or change model.d_model, {where}.expand or {where}.d_head"
        raise UserError(problem, fix, exit_code=EXIT_USAGE)
