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

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.ops.precision import Precision

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
        self.backend = _resolve(backend)
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
        rotation = self._rotation(position_B, x_BTD)
        query_BTHP = _rotate(self._heads(self.q_proj(x_BTD)), rotation)
        new_keys = _rotate(self._heads(self.k_proj(x_BTD)), rotation)
        keys_BNGP = _append(state["keys"], new_keys)
        values_BNGP = _append(state["values"], self._heads(self.v_proj(x_BTD)))
        document_BN = _append(state["document"], _documents(x_BTD, state, starts_BT))
        plain = starts_BT is None and state["keys"].shape[1] == 0
        mixed_BTHP = self._attend(query_BTHP, keys_BNGP, values_BNGP, document_BN, plain=plain)
        n_keys, n_read = keys_BNGP.shape[1], int(position_B.max()) + x_BTD.shape[1]
        # Keys before the first token of the row that has read most are padding of every row.
        kept = slice(max(_first_kept(n_keys, self.window), n_keys - n_read), None)
        return self.out_proj(mixed_BTHP.flatten(2)), {
            "keys": keys_BNGP[:, kept],
            "values": values_BNGP[:, kept],
            "document": document_BN[:, kept],
        }

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """sdpa unless the configuration says otherwise: torch picks its own kernel inside."""
        return self.backend, "torch's scaled_dot_product_attention"

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
        n_keys = seq_len - _first_kept(seq_len, self.window)
        channels = 2 * self.n_kv_heads * self.d_head
        per_token = channels * self.k_proj.weight.element_size() + torch.int32.itemsize
        return batch_size * n_keys * per_token

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs (multiply-add = 2), mean over the first `seq_len` tokens.

        Counts the matmuls that causality requires, (seq_len + 1) / 2 keys a token; a kernel that
        fills masked blocks does more, up to twice the attention part.
        """
        weights = sum(parameter.numel() for parameter in self.parameters())
        window = min(self.window or seq_len, seq_len)
        pairs = window * (window + 1) // 2 + (seq_len - window) * window
        return 2 * weights + 4 * self.n_heads * self.d_head * pairs // seq_len

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"n_heads={self.n_heads}, window={self.window}, rope_theta={self.rope_theta}"

    def _heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.view(*x_BTC.shape[:2], -1, self.d_head)

    def _rotation(self, position_B: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every angle, B x T x 1 x P/2; B is 1 where all rows share a clock."""
        # float64: at clock 100,000 a float32 angle is already wrong by 0.004 rad.
        here: dict[str, Any] = {"dtype": torch.float64, "device": x_BTD.device}
        if len(set(position_B.tolist())) == 1:
            position_B = position_B[:1]
        pair = torch.arange(0, self.d_head, 2, **here) / self.d_head
        clock_BT = position_B.to(**here)[:, None] + torch.arange(x_BTD.shape[1], **here)
        angle = clock_BT[:, :, None, None] * self.rope_theta**-pair
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, document: Tensor, *, plain: bool
    ) -> Tensor:
        """B x T x H x P, from keys and values of B x N x G x P."""
        query, keys, values = (x.transpose(1, 2) for x in (query, keys, values))
        grouped = self.n_kv_heads != self.n_heads
        outgrown = 0 < self.window < keys.shape[2]
        if self.backend == "reference":
            share = self.n_heads // self.n_kv_heads
            keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
            mixed = attend_by_step(query, keys, values, document, window=self.window)
        elif plain and not outgrown:
            mixed = F.scaled_dot_product_attention(
                query, keys, values, is_causal=True, enable_gqa=grouped
            )
        else:
            visible = _visible(document, query.shape[2], self.window)
            mixed = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=visible[:, None], enable_gqa=grouped
            )
        return mixed.transpose(1, 2)


def attend_by_step(
    query_BHTP: Tensor, keys_BHNP: Tensor, values_BHNP: Tensor, document_BN: Tensor, *, window: int
) -> Tensor:
    """Attend one token at a time: the definition that the fused kernel is tested against."""
    past = keys_BHNP.shape[2] - query_BHTP.shape[2]
    mixed = []
    for t in range(query_BHTP.shape[2]):
        end = past + t + 1
        view = slice(max(0, end - window) if window else 0, end)
        scores_BHN = keys_BHNP[:, :, view] @ query_BHTP[:, :, t, :, None]
        foreign_BN = document_BN[:, view] != document_BN[:, end - 1, None]
        scores_BHN = scores_BHN[..., 0] / math.sqrt(query_BHTP.shape[3])
        weights_BHN = scores_BHN.masked_fill(foreign_BN[:, None], -math.inf).softmax(-1)
        mixed.append(weights_BHN[:, :, None] @ values_BHNP[:, :, view])
    return torch.cat(mixed, dim=2)


def _resolve(backend: str) -> str:
    if backend in ("auto", "sdpa"):
        return "sdpa"
    if backend == "reference":
        return "reference"
    raise UserError(
        f"backend {backend} is unknown to softmax_attention",
        "Choose auto, reference or sdpa",
        exit_code=EXIT_USAGE,
    )


def _append(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.to(new.dtype), new], dim=1) if past.shape[1] else new


def _first_kept(n_keys: int, window: int) -> int:
    # The next token is itself one of the window: window - 1 older ones remain in its view.
    return max(0, n_keys - (window - 1)) if window else 0


def _rotate(x_BTHP: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    left, right = x_BTHP.to(cos.dtype).chunk(2, dim=-1)
    turned = torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)
    return turned.to(x_BTHP.dtype)


def _documents(x_BTD: Tensor, state: dict[str, Tensor], starts_BT: Tensor | None) -> Tensor:
    past_BN = state["document"]
    last_B1 = past_BN[:, -1:] if past_BN.shape[1] else past_BN.new_zeros(x_BTD.shape[0], 1)
    last_B1 = last_B1.clamp_min(1)  # 0 where the row has read nothing: padding alone
    if starts_BT is None:
        return last_B1.repeat(1, x_BTD.shape[1])
    return last_B1 + starts_BT.cumsum(dim=1, dtype=torch.int32)


def _visible(document_BN: Tensor, n_queries: int, window: int) -> Tensor:
    n_keys = document_BN.shape[1]
    key_N = torch.arange(n_keys, device=document_BN.device)
    age_TN = key_N[n_keys - n_queries :, None] - key_N
    in_view_TN = (age_TN >= 0) & (age_TN < window) if window else age_TN >= 0
    own_BTN = document_BN[:, n_keys - n_queries :, None] == document_BN[:, None]
    return own_BTN & in_view_TN
