"""The time mix of RWKV-7: a generalised delta rule whose decays and rates are vectors.

Source: Peng et al. 2025, "RWKV-7 Goose", section 4.

Glossary (our name = the paper's symbol): `shift` = mu; `r_proj`, `k_proj`, `v_proj`, `out_proj` =
W_r, W_k, W_v, W_o; `decay_in`, `decay_out`, `rate_in`, `rate_out`, `gate_in`, `gate_out` = the
loramlp of d, a and g; `removal_scale` = xi, `key_scale` = alpha, `bonus` = rho; the memory `M` =
the state S^T; H heads of P = d_model / H channels.

Recurrence, row vectors, t the clock, each head by itself after the first four lines:

    x^c_t = x_t + (x_{t-1} - x_t) shift_c              for c of r, w, k, v, a, g; x_0 is 0
    r_t, k_t, v_t = x^r_t r_proj, x^k_t k_proj, x^v_t v_proj
    w_t = exp(-sigmoid(tanh(x^w_t decay_in) decay_out + bias) / sqrt(e))
    a_t, g_t = sigmoid(x^a_t rate_in rate_out + bias), sigmoid(x^g_t gate_in) gate_out
    c_t = k_t removal_scale, over its norm;   l_t = k_t (1 + (a_t - 1) key_scale)
    M_t = diag(w_t) M_{t-1} - (a_t c_t)^T c_t M_{t-1} + l_t^T v_t
    y_t = (g_t (LayerNorm(r_t M_t) + (r_t . (bonus l_t)) v_t)) out_proj

State: M, B x H x P x P, and the last x, of constant size; both 0 before the first token of a
document.

Differs from the source: values of the first layer are not mixed into those of the others, since
mixers do not know each other; the three low ranks are one option; weights begin as torch's do. The
channel mix of the source is the trunk's MLP here.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.linear import linear
from ys_llm.ops.precision import Precision
from ys_llm.ops.vector_delta_rule import Writes, reference, vector_delta_rule

NORM_EPS = 64e-5
CONSTANTS = {"norm_eps": NORM_EPS}
_DECAYS = (-6.0, -1.0)  # biases of a new mixer's first and last channel: half-lives of 460 to 4
_REMOVAL_SCALE = 0.85  # of a new mixer
_FASTEST = math.exp(-0.5)  # of -log w
_LENGTH_EPS = 1e-6  # added to the squared norm of c


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.rwkv7`."""

    n_heads: int = setting(4, "heads H; they share d_model", minimum=1)
    rank: int = setting(32, "width between the two maps of decay, rate and gate", minimum=1)


CONTRACT_OPTIONS = (Options(n_heads=2, rank=5),)


class Mixer(nn.Module):
    """The time mix of RWKV-7: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "chunked")
    time_major = False
    no_weight_decay = ("shift",)  # six numbers a channel, as vectors are

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        if d_model % options.n_heads:
            raise UserError(
                f"model.options.rwkv7.n_heads {options.n_heads} does not divide model.d_model"
                f" {d_model}",
                "Choose another n_heads or d_model",
                exit_code=EXIT_USAGE,
            )
        self.backend = backend_of("rwkv7", backend, self.backends)
        self.options, self.d_model = options, d_model
        self.shift = nn.Parameter(torch.linspace(0, 1, d_model).repeat(6, 1))
        rank = options.rank
        self.r_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.decay_in = nn.Linear(d_model, rank, bias=False)
        self.decay_out = nn.Linear(rank, d_model)
        self.rate_in = nn.Linear(d_model, rank, bias=False)
        self.rate_out = nn.Linear(rank, d_model)
        self.gate_in = nn.Linear(d_model, rank, bias=False)
        self.gate_out = nn.Linear(rank, d_model, bias=False)
        self.removal_scale = nn.Parameter(torch.full((d_model,), _REMOVAL_SCALE))
        self.key_scale = nn.Parameter(torch.ones(d_model))
        self.bonus = nn.Parameter(torch.zeros(d_model))
        self.norm_gain = nn.Parameter(torch.ones(d_model))
        self.norm_bias = nn.Parameter(torch.zeros(d_model))
        with torch.no_grad():
            per_head = torch.linspace(*_DECAYS, d_model // options.n_heads)
            self.decay_out.bias.copy_(per_head.repeat(options.n_heads))
            self.rate_out.bias.zero_()

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which all is 0."""
        before_BTD = torch.cat([state["inputs"].to(x_BTD.dtype), x_BTD[:, :-1]], 1)
        if starts_BT is not None:
            before_BTD = before_BTD.masked_fill(starts_BT.unsqueeze(2), 0)
        r, w, k, v, a, g = (x_BTD + (before_BTD - x_BTD) * shift_D for shift_D in self.shift)
        gate_BTD = linear(self.gate_out, linear(self.gate_in, g).sigmoid())
        query, key, value = (
            self._heads(linear(layer, x))
            for layer, x in ((self.r_proj, r), (self.k_proj, k), (self.v_proj, v))
        )
        writes = self._writes(key, value, w, a)
        rule = reference if self.backend == "reference" else vector_delta_rule
        read_BTHP, memory = rule(query, writes, state["memory"], starts_BT)
        bonus_BTH1 = (query * writes.key_BTHK * self._heads(self.bonus)).sum(3, keepdim=True)
        read_BTD = self._normed(read_BTHP) + (bonus_BTH1 * value).flatten(2)
        y_BTD = linear(self.out_proj, gate_BTD * read_BTD.to(gate_BTD.dtype))
        inputs = x_BTD[:, -1:].to(state["inputs"].dtype)
        return y_BTD, {"inputs": inputs, "memory": memory.to(state["memory"].dtype)}

    def _heads(self, x: Tensor) -> Tensor:
        """... x H x P, in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        heads: Tensor = wide.unflatten(-1, (self.options.n_heads, -1))
        return heads

    def _writes(self, key_BTHP: Tensor, value_BTHP: Tensor, w_BTD: Tensor, a_BTD: Tensor) -> Writes:
        decay = linear(self.decay_out, linear(self.decay_in, w_BTD).tanh())
        rate_BTHP = self._heads(linear(self.rate_out, linear(self.rate_in, a_BTD))).sigmoid()
        removed = key_BTHP * self._heads(self.removal_scale)
        removed = removed * (removed.square().sum(3, keepdim=True) + _LENGTH_EPS).rsqrt()
        written = key_BTHP * (1 + (rate_BTHP - 1) * self._heads(self.key_scale))
        log_decay_BTHP = -_FASTEST * self._heads(decay).sigmoid()
        return Writes(-removed, rate_BTHP * removed, written, value_BTHP, log_decay_BTHP)

    def _normed(self, read_BTHP: Tensor) -> Tensor:
        """B x T x (H P), by LayerNorm of each head."""
        normed = F.layer_norm(read_BTHP, read_BTHP.shape[3:], eps=NORM_EPS).flatten(2)
        return normed * self.norm_gain + self.norm_bias

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """chunked unless the configuration says otherwise."""
        return self.backend, "matmuls over chunks of 16 tokens, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token: 0."""
        like, n_heads = self.shift, self.options.n_heads
        d_head = self.d_model // n_heads
        shapes = {"inputs": (1, self.d_model), "memory": (n_heads, d_head, d_head)}
        return {
            name: torch.zeros(batch_size, *shape, dtype=like.dtype, device=like.device)
            for name, shape in shapes.items()
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        numbers = self.d_model * (1 + self.d_model // self.options.n_heads)
        return batch_size * numbers * self.shift.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length.

        Those of the recurrence: reading where a key points, correcting, writing, reading. Chunks do
        more.
        """
        weights = self.d_model * (4 * self.d_model + 6 * self.options.rank)
        return 2 * weights + 8 * self.d_model * (self.d_model // self.options.n_heads)

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"n_heads={self.options.n_heads}"
