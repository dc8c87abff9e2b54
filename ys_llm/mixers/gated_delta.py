"""Gated DeltaNet: heads of a matrix memory, written by the gated delta rule.

Source: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule".

Glossary (our name = the paper's symbol): `q_proj`, `k_proj`, `v_proj` = W_Q, W_K, W_V; `decay` =
alpha; `rate` = beta; the memory `M` = S^T; H heads, K = d_k, V = d_v.

Recurrence, row vectors, t the clock, each head by itself:

    q_t, k_t = silu(x_t q_proj), silu(x_t k_proj), each over its norm;   v_t = silu(x_t v_proj)
    a_t = exp(-softplus(x_t decay_proj + bias))      b_t = sigmoid(x_t rate_proj + bias)
    M_t = a_t (M_{t-1} - b_t k_t^T k_t M_{t-1}) + b_t k_t^T v_t
    y_t = (RMSNorm(q_t M_t) * silu(x_t gate_proj)) out_proj

State: M, B x H x K x V, of constant size; 0 before the first token of a document, where a_t is 0.

Differs from the source: one bias takes the place of its A and dt, and begins at half-lives that are
spread over the heads; a convolution before q, k and v is that of the model (`model.convolution`),
over the mixer's input; b_t has a bias.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.delta_rule import Writes, delta_rule, reference
from ys_llm.ops.linear import fused_backward, is_plain, linear
from ys_llm.ops.precision import Precision
from ys_llm.ops.rms_norm import rms_norm

HALF_LIVES = (8.0, 512.0)  # tokens, of the first and the last head of a new mixer
NORM_EPS = 1e-5
CONSTANTS = {"norm_eps": NORM_EPS}
_LENGTH_EPS = 1e-6  # added to the squared norm of q and k


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.gated_delta`."""

    n_heads: int = setting(4, "heads H, each with a memory of its own", minimum=1)
    d_key: int = setting(32, "numbers K of a query and of a key", minimum=1)
    d_value: int = setting(64, "numbers V of a value", minimum=1)


CONTRACT_OPTIONS = (Options(n_heads=1, d_key=5, d_value=24), Options(n_heads=3, d_key=8, d_value=8))


class Mixer(nn.Module):
    """The gated delta rule: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "chunked")
    time_major = True  # so that a hybrid with a recurrence is; it copies what it reads anyway

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend_of("gated_delta", backend, self.backends)
        self.options = options
        n_keys, n_values = (options.n_heads * n for n in (options.d_key, options.d_value))
        self.q_proj = nn.Linear(d_model, n_keys, bias=False)
        self.k_proj = nn.Linear(d_model, n_keys, bias=False)
        self.v_proj = nn.Linear(d_model, n_values, bias=False)
        self.gate_proj = nn.Linear(d_model, n_values, bias=False)
        self.decay_proj = nn.Linear(d_model, options.n_heads)
        self.rate_proj = nn.Linear(d_model, options.n_heads)
        self.out_proj = nn.Linear(n_values, d_model, bias=False)
        self.norm_gain = nn.Parameter(torch.ones(options.d_value))
        self._initialise()

    def _initialise(self) -> None:
        for layer in self._projections:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.rate_proj.bias)
        first, last = map(math.log, HALF_LIVES)
        half_lives_H = torch.linspace(first, last, self.options.n_heads).exp()
        with torch.no_grad():  # softplus of the bias is ln 2 / half-life
            self.decay_proj.bias.copy_((math.log(2) / half_lives_H).expm1().log())

    @property
    def _projections(self) -> tuple[nn.Linear, ...]:
        own = (self.q_proj, self.k_proj, self.v_proj, self.gate_proj)
        return (*own, self.decay_proj, self.rate_proj)

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which M is 0."""
        q, k, v, gate, decay, rate = self._project(x_BTD.transpose(0, 1))
        query_BTHK, key_BTHK, value_BTHV = (
            F.silu(x_TBN).unflatten(2, (self.options.n_heads, -1)).transpose(0, 1)
            for x_TBN in (q, k, v)
        )
        wide = torch.promote_types(decay.dtype, torch.float32)
        log_decay_BTH = -F.softplus(decay.to(wide)).transpose(0, 1)
        rate_BTH = rate.to(wide).sigmoid().transpose(0, 1)
        writes = Writes(_of_length_1(key_BTHK), value_BTHV, log_decay_BTH, rate_BTH)
        rule = reference if self.backend == "reference" else delta_rule
        read_BTHV, memory = rule(_of_length_1(query_BTHK), writes, state["memory"], starts_BT)
        read_TBN = self._normed(read_BTHV.transpose(0, 1)).to(gate.dtype) * F.silu(gate)
        y_BTD = linear(self.out_proj, read_TBN).transpose(0, 1)
        return y_BTD, {"memory": memory.to(state["memory"].dtype)}

    def _project(self, x_TBD: Tensor) -> tuple[Tensor, ...]:
        """All projections of x, by one matmul where the layers are plain ones."""
        layers = self._projections
        if not all(is_plain(layer) for layer in layers):
            return tuple(layer(x_TBD) for layer in layers)
        together = fused_backward(x_TBD, torch.cat([layer.weight for layer in layers]))
        *others, decay, rate = together.split([len(layer.weight) for layer in layers], dim=2)
        return *others, decay + self.decay_proj.bias, rate + self.rate_proj.bias

    def _normed(self, read_TBHV: Tensor) -> Tensor:
        """T x B x (H V), each head's V numbers over their root mean square."""
        rows = read_TBHV.flatten(0, 2)
        _, normed = rms_norm(rows, None, self.norm_gain, NORM_EPS)
        return normed.view(read_TBHV.shape).flatten(2)

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
        shape = (batch_size, options.n_heads, options.d_key, options.d_value)
        return {"memory": torch.zeros(shape, dtype=like.dtype, device=like.device)}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        options = self.options
        numbers = options.n_heads * options.d_key * options.d_value
        return batch_size * numbers * self.out_proj.weight.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length.

        Those of the recurrence: reading by the key, writing, reading by the query. Chunks do about
        twice as many.
        """
        options = self.options
        weights = sum(weight.numel() for weight in self.parameters() if weight.dim() > 1)
        return 2 * weights + 6 * options.n_heads * options.d_key * options.d_value

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"n_heads={self.options.n_heads}"


def _of_length_1(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * (wide.square().sum(-1, keepdim=True) + _LENGTH_EPS).rsqrt()
