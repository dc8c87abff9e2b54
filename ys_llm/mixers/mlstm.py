"""mLSTM: heads of a matrix memory with an exponential input gate, read over their own sum of keys.

Source: Beck et al. 2024, "xLSTM", section 2.3, in the block of Beck et al. 2025, "xLSTM 7B".

Glossary (our name = the papers' symbol): `q_proj`, `k_proj`, `v_proj` = W_q, W_k, W_v;
`input_proj`, `forget_proj`, `gate_proj` = W_i, W_f, W_o; the memory `M` = C^T with n as its last
column; H heads, K = d_qk, V = d_hv.

Recurrence, row vectors, t the clock, each head by itself:

    q_t, k_t, v_t = x_t q_proj / sqrt(K), x_t k_proj, x_t v_proj
    i_t = exp(cap(x_t input_proj + bias))           cap(z) = 15 tanh(z / 15)
    f_t = sigmoid(cap(x_t forget_proj + bias))
    M_t = f_t M_{t-1} + i_t k_t^T [v_t, 1]
    [r_t, s_t] = q_t M_t
    y_t = (RMSNorm(r_t / max(|s_t|, 1)) * sigmoid(x_t gate_proj)) out_proj

State: M, B x H x K x (V + 1), of constant size; 0 before the first token of a document, where f_t
is 0.

Differs from the source: there is no second state that scales M, since in float32 and under the cap
i_t cannot overflow, and the scale cancels in r_t / max(|s_t|, 1); input gates begin at 1, where the
source's begin near 0 against spikes in training at 7 billion parameters.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.linear import linear, side_by_side
from ys_llm.ops.linear_attention import Writes, linear_attention, parallel, reference
from ys_llm.ops.precision import Precision
from ys_llm.ops.rms_norm import rms_norm

CAP = 15.0
NORM_EPS = 1e-6
CONSTANTS = {"norm_eps": NORM_EPS, "gate_cap": CAP}
_FORGET_BIASES = (3.0, 6.0)  # of the first and the last head of a new mixer


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.mlstm`."""

    n_heads: int = setting(4, "heads H, each with a memory of its own", minimum=1)
    d_key: int = setting(32, "numbers K of a query and of a key", minimum=1)
    d_value: int = setting(64, "numbers V of a value", minimum=1)


CONTRACT_OPTIONS = (Options(n_heads=3, d_key=5, d_value=8),)


class Mixer(nn.Module):
    """The mLSTM: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "parallel", "chunked")
    time_major = False

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend_of("mlstm", backend, self.backends)
        self.options = options
        n_keys, n_values = (options.n_heads * n for n in (options.d_key, options.d_value))
        self.q_proj = nn.Linear(d_model, n_keys, bias=False)
        self.k_proj = nn.Linear(d_model, n_keys, bias=False)
        self.v_proj = nn.Linear(d_model, n_values, bias=False)
        self.gate_proj = nn.Linear(d_model, n_values, bias=False)
        self.input_proj = nn.Linear(d_model, options.n_heads)
        self.forget_proj = nn.Linear(d_model, options.n_heads)
        self.out_proj = nn.Linear(n_values, d_model, bias=False)
        self.norm_gain = nn.Parameter(torch.ones(n_values))
        nn.init.zeros_(self.input_proj.bias)
        with torch.no_grad():
            self.forget_proj.bias.copy_(torch.linspace(*_FORGET_BIASES, options.n_heads))

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which M is 0."""
        layers = (self.q_proj, self.k_proj, self.v_proj, self.input_proj, self.forget_proj)
        *qkv, into, forget, gate = side_by_side((*layers, self.gate_proj), x_BTD)
        wide = torch.promote_types(into.dtype, torch.float32)
        query, key, value = (x.to(wide).unflatten(2, (self.options.n_heads, -1)) for x in qkv)
        input_BTH1 = _capped(into.to(wide)).exp().unsqueeze(3)
        log_decay_BTH = F.logsigmoid(_capped(forget.to(wide)))
        values = torch.cat([input_BTH1 * value, input_BTH1], 3)
        writes = Writes(key, values, log_decay_BTH)
        form = {"reference": reference, "parallel": parallel}.get(self.backend, linear_attention)
        scaled = query * self.options.d_key**-0.5
        read, memory = form(scaled, writes, state["memory"], starts_BT, 1)
        read_BTHV = read[..., :-1] / read[..., -1:].abs().clamp(min=1)
        gated_BTN = self._normed(read_BTHV).to(gate.dtype) * gate.sigmoid()
        return linear(self.out_proj, gated_BTN), {"memory": memory.to(state["memory"].dtype)}

    def _normed(self, read_BTHV: Tensor) -> Tensor:
        """B x T x (H V), each head's V numbers over their root mean square."""
        ones = self.norm_gain.new_ones(self.options.d_value)
        _, normed = rms_norm(read_BTHV.flatten(0, 2), None, ones, NORM_EPS)
        return normed.view(read_BTHV.shape).flatten(2) * self.norm_gain

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
        shape = (batch_size, options.n_heads, options.d_key, options.d_value + 1)
        return {"memory": torch.zeros(shape, dtype=like.dtype, device=like.device)}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        options = self.options
        numbers = options.n_heads * options.d_key * (options.d_value + 1)
        return batch_size * numbers * self.out_proj.weight.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length.

        Those of the recurrence, which writes and reads once; chunks do more.
        """
        options = self.options
        weights = sum(weight.numel() for weight in self.parameters() if weight.dim() > 1)
        return 2 * weights + 4 * options.n_heads * options.d_key * (options.d_value + 1)

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"n_heads={self.options.n_heads}"


def _capped(x: Tensor) -> Tensor:
    return CAP * (x / CAP).tanh()
