"""Causal softmax attention: the baseline that every other mixer is compared with.

With the trunk's RMSNorm and SwiGLU this is the block of Llama.

Source: attention, Vaswani et al. 2017; rotary positions, Su et al. 2021; grouped queries,
Ainslie et al. 2023; the assembly without biases, Touvron et al. 2023; the optional sliding
window, Beltagy et al. 2020.

Glossary (our name = the papers' symbol): `q_proj`, `k_proj`, `v_proj`, `out_proj` = W_Q, W_K, W_V,
W_O; `n_heads` = h; `n_kv_heads` = g; head width P = d_k = d_v; `position_B` = m; `rope_theta` =
theta. Two letters besides those of `language_model.py`: G key/value heads, N keys, past and
present.

Recurrence, row vectors, t the clock, head i of group j = i * G // H, R_t the rotation of channel
pair (c, c + P/2) by the angle t * rope_theta ** (-2c / P):

    q_t = (x_t q_proj)_i R_t      k_t = (x_t k_proj)_j R_t      v_t = (x_t v_proj)_j
    a_ts = softmax_s(q_t . k_s / sqrt(P))    over s <= t of t's own document, t - s < window
    y_t = concat_i(sum_s a_ts v_s) out_proj

State: every key and value in view, and the number of the document each belongs to, from 1. It
grows by one column a token unless `window` bounds it. Document 0 is padding: no query belongs to
it, so rows that have read texts of different lengths can be padded on the left and batched. The
clock continues across documents: only t - s enters q_t . k_s, so a packed row equals its documents
run separately.

Differs from the source: channel c is paired with c + P/2 (Su et al. pair neighbours), a fixed
permutation of the projections' columns; weights start at N(0, 0.02) at every depth.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.attention import attention, reference
from ys_llm.ops.kv_cache import append, documents, first_kept, kept, pairs
from ys_llm.ops.linear import fused_backward, is_plain, linear
from ys_llm.ops.precision import Precision
from ys_llm.ops.rotary import angles, rotate

INIT_STD = 0.02  # of GPT-2 and its descendants


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.softmax_attention`."""

    n_heads: int = setting(
        4, "query heads; 4 leaves 64 channels a head at the default d_model 256", minimum=1
    )
    n_kv_heads: int = setting(
        0, "key/value heads, a divisor of n_heads; 0 = n_heads, the most capable", minimum=0
    )
    rope_theta: float = setting(
        10_000.0, "longest rotary wavelength / 2 pi, in tokens; 10000 as Su et al. chose", above=0
    )
    window: int = setting(
        0,
        "tokens in view, the present one included; 0 = all, as in the source. Set it to the"
        " training seq_len where carried state would reach further than the model was trained for",
        minimum=0,
    )

    def __post_init__(self) -> None:
        """Raise ValueError unless every key/value head serves the same number of query heads."""
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} must divide n_heads {self.n_heads}")


CONTRACT_OPTIONS = (
    Options(n_kv_heads=2),
    Options(n_heads=2, n_kv_heads=1, rope_theta=500.0),
    Options(window=16),
)


class Mixer(nn.Module):
    """Multi-head causal attention over a growing (or windowed) cache of keys and values."""

    backends = ("reference", "sdpa")
    time_major = False

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        n_kv_heads = options.n_kv_heads or options.n_heads
        if d_model % (2 * options.n_heads):
            raise UserError(
                f"model.options.n_heads {options.n_heads} does not split d_model {d_model} into"
                " heads of even width, which rotary positions need",
                "Choose another n_heads or d_model",
                exit_code=EXIT_USAGE,
            )
        self.backend = backend_of("softmax_attention", backend, self.backends)
        self.n_heads = options.n_heads
        self.n_kv_heads = n_kv_heads
        self.d_head = d_model // options.n_heads
        self.window = options.window
        self.rope_theta = options.rope_theta
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * self.d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * self.d_head, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INIT_STD)

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mix `x_BTD` along time; `starts_BT` marks tokens that see nothing before themselves."""
        n_rotated = self.n_heads + self.n_kv_heads
        heads_BTHP = self._project(x_BTD).unflatten(-1, (-1, self.d_head))
        turned_BTHP, new_values = heads_BTHP.split([n_rotated, self.n_kv_heads], dim=2)
        clocks, n_tokens = tuple(position_B.tolist()), x_BTD.shape[1]
        table = angles(clocks, n_tokens, self.d_head, self.rope_theta, x_BTD)
        turned_BTHP = rotate(turned_BTHP, *table)
        query_BTHP, new_keys = turned_BTHP.split([self.n_heads, self.n_kv_heads], dim=2)
        keys_BNGP = append(state["keys"], new_keys)
        values_BNGP = append(state["values"], new_values)
        document_BN = documents(state["document"], starts_BT, n_tokens)
        attend = reference if self.backend == "reference" else attention
        mixed_BTHP = attend(query_BTHP, keys_BNGP, values_BNGP, document_BN, self.window)
        latest = kept(keys_BNGP.shape[1], n_tokens, position_B, self.window)
        return linear(self.out_proj, mixed_BTHP.flatten(2)), {
            "keys": keys_BNGP[:, latest],
            "values": values_BNGP[:, latest],
            "document": document_BN[:, latest],
        }

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """sdpa unless the configuration says otherwise: `ops/attention` picks the path inside."""
        return self.backend, "tiles of one document on a CPU, else torch's fused attention"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The empty cache."""
        weight, shape = self.k_proj.weight, (batch_size, 0, self.n_kv_heads, self.d_head)
        here: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        document = torch.zeros(batch_size, 0, dtype=torch.int32, device=weight.device)
        return {
            "keys": torch.zeros(shape, **here),
            "values": torch.zeros(shape, **here),
            "document": document,
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes after `seq_len` tokens: a key, a value and a document number for each in view."""
        n_keys = seq_len - first_kept(seq_len, self.window)
        channels = 2 * self.n_kv_heads * self.d_head
        per_token = channels * self.k_proj.weight.element_size() + torch.int32.itemsize
        return batch_size * n_keys * per_token

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs (multiply-add = 2), mean over the first `seq_len` tokens.

        Counts the matmuls that causality requires, (seq_len + 1) / 2 keys a token; a kernel that
        fills masked blocks does more, up to twice the attention part.
        """
        weights = sum(parameter.numel() for parameter in self.parameters())
        n_pairs = pairs(seq_len, self.window)
        return 2 * weights + 4 * self.n_heads * self.d_head * n_pairs // seq_len

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"n_heads={self.n_heads}, window={self.window}, rope_theta={self.rope_theta}"

    def _project(self, x_BTD: Tensor) -> Tensor:
        """Queries, keys and values side by side, by one matmul where the layers are plain ones."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        if all(is_plain(layer) for layer in layers):
            return fused_backward(x_BTD, torch.cat([layer.weight for layer in layers]))
        return torch.cat([layer(x_BTD) for layer in layers], dim=-1)
