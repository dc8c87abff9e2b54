"""Attention by a kernel of q . k, with a denominator, gates and a norm to choose from.

Source: the 29 kinds of attention of "2Mamba2Furious" (arXiv 2602.17363, 2026), which its code has
and its text does not describe. `softmax` is that of Vaswani et al. 2017, `linear_elu` that of
Katharopoulos et al. 2020.

Glossary (our name = the source's): `kernel`, `clamp`, `denominator` = kappa and psi, the clamp and
den; `in_gate`, `out_gate` = the gates; P = the width of a head.

Equations, row vectors, t the clock, R_t the rotation of `ops/rotary`, each head by itself, over
s <= t of t's own document:

    q_t = (x_t q_proj) R_t     k_t = (x_t k_proj) R_t
    v_t = (x_t v_proj) sigmoid(x_t in_gate_proj + bias)
    z_ts = c psi(q_t) . psi(k_s)                         c = 1/sqrt(P) if scaled, else 1
    w_ts = kappa(min(z_ts, clamp))
    g_t  = sigmoid(x_t out_gate_proj + bias)
    y_t  = g_t Norm(g_t sum_s w_ts v_s / den_t) out_proj

    kernel      psi                     kappa
    exp         identity                exp
    taylor80    identity                the first 80 terms of exp's series, in float64
    relu        relu                    identity
    elu         elu + 1                 identity
    cosine      over its norm           identity; v_s is divided by n_s^sigmoid(exponent)

    denominator            den_t         S_t = sum_s w_ts, n_t = the tokens of the document so far
    none, count, sum       1, n_t, S_t
    sum_at_least_1, sum_at_least_1_detached     max(S_t, 1); without a gradient
    sum_plus_eps, sum_plus_eps_detached         S_t + 1e-8; S_t + 1e-4 without a gradient

`out_gate` says which of the two g_t there are: pre, the inner one; weights, the same on w; or both.

State: kernels without exp and clamp keep a matrix a head, P x P (and its column S), and n, of
constant size; the others keep all keys and values in `window` (`ops/kv_cache`). The clock goes on
across documents.

Presets: the 29 names. With `fidelity: meant` three mistakes of their code are mended; `paper` keeps
them: `softmax_taylor_80terms` is not divided by its sum, `linear_cosine` takes norms over the heads
instead of the width, and two names with `nodivS` are divided by n all the same.

Differs from the source: scores and sums are in float32 or wider under any precision; RMSNorm has
an epsilon of 1e-6; a sum of weights that is 0 gives 0; without a clamp, where a common factor of a
row of weights cancels, it is taken out of exp before it can overflow.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.presets import fill_from_preset
from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops import linear_attention as ops
from ys_llm.ops.kernel_sums import BLOCK, Kernel, Sums, counts, divided, sums_in_view
from ys_llm.ops.kv_cache import append, documents, first_kept, kept, pairs
from ys_llm.ops.linear import linear, side_by_side
from ys_llm.ops.precision import Precision
from ys_llm.ops.rotary import angles, rotate

State = dict[str, Tensor]

EPS = {"ln": 1e-5, "rms": 1e-6, "l2": 1e-12}
CONSTANTS = {"norm_eps": EPS, "taylor_terms": 80}
_EXPONENT = 0.5  # of a new mixer, before the sigmoid
_GROWING = ("exp", "taylor80")


def _preset(kernel: str, clamp: float, denominator: str, **changed: Any) -> dict[str, Any]:
    settings = {"kernel": kernel, "clamp": clamp, "denominator": denominator, "scaled": True}
    plain = {"in_gate": False, "out_gate": "none", "norm": "none", "cosine_axis": "width"}
    return settings | plain | changed


PRESETS: dict[str, dict[str, Any]] = {
    "softmax": _preset("exp", 0, "sum"),
    "softmax_clamp_denom": _preset("exp", 5, "sum_at_least_1"),
    "softmax_detach_denom": _preset("exp", 5, "sum_at_least_1_detached"),
    "softmax_detach_denom_gate": _preset("exp", 5, "sum_plus_eps_detached", out_gate="pre"),
    "softmax_divs": _preset("exp", 5, "count"),
    "softmax_gate": _preset("exp", 5, "none", out_gate="pre"),
    "softmax_divS_gate": _preset("exp", 5, "count", out_gate="pre"),
    "softmax_divS_gatev2": _preset("exp", 5, "count", out_gate="weights"),
    "softmax_divS_norm": _preset("exp", 5, "count", norm="rms"),
    "softmax_taylor_80terms": _preset("taylor80", 0, "sum"),
    "gated_softmax": _preset("exp", 5, "count", in_gate=True, out_gate="pre", norm="ln"),
    "gated_softmax_no_norm": _preset("exp", 5, "count", in_gate=True, out_gate="pre"),
    "gated_softmax_no_in_gate": _preset("exp", 5, "count", out_gate="pre", norm="ln"),
    "gated_softmax_no_out_gate": _preset("exp", 5, "count", in_gate=True, norm="ln"),
    "gated_softmax_no_out_gate_no_norm": _preset("exp", 5, "count", in_gate=True),
    "gated_softmax_no_in_gate_no_norm": _preset("exp", 5, "count", out_gate="pre"),
    "gated_relu_no_in_gate_no_norm": _preset("relu", 5, "count", out_gate="pre"),
    "gated_softmax_no_gate": _preset("exp", 5, "count", norm="ln"),
    "gated_softmax_no_gate_rmsnorm": _preset("exp", 5, "count", norm="rms"),
    "gated_softmax_no_gate_rmsnorm_nodivS": _preset("exp", 5, "none", norm="rms"),
    "gated_softmax_no_gate_L2norm_nodivS": _preset("exp", 5, "none", norm="l2"),
    "gated_softmax_no_gate_L2norm_nodivS_noclamp": _preset("exp", 0, "none", norm="l2"),
    "gated_ReLU_no_gate_L2norm_nodivS_noclamp": _preset("relu", 0, "none", norm="l2"),
    "gated_softmax_out_gate_L2norm_nodivS_noclamp": _preset(
        "exp", 0, "none", out_gate="pre", norm="l2"
    ),
    "gated_softmax_post_out_gate_L2norm_nodivS_noclamp": _preset(
        "exp", 0, "none", out_gate="both", norm="l2"
    ),
    "gated_softmax_no_gate_no_norm": _preset("exp", 5, "count"),
    "linear_elu": _preset("elu", 0, "sum", scaled=False),
    "linear_relu": _preset("relu", 0, "sum_plus_eps", scaled=False),
    "linear_cosine": _preset("cosine", 0, "none", scaled=False),
}
MISTAKES: dict[str, dict[str, Any]] = {  # what the source's code does instead of what it names
    "softmax_taylor_80terms": {"denominator": "none"},
    "gated_softmax_out_gate_L2norm_nodivS_noclamp": {"denominator": "count"},
    "gated_softmax_post_out_gate_L2norm_nodivS_noclamp": {"denominator": "count"},
    "linear_cosine": {"cosine_axis": "heads"},
}
AS_CODED = {name: settings | MISTAKES.get(name, {}) for name, settings in PRESETS.items()}


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.kernel_attention`.

    A setting that is left out is as the preset has it.
    """

    preset: str = setting("gated_softmax", "sets the others: a name of the source, as linear_elu")
    fidelity: Literal["meant", "paper"] = setting("meant", "paper: with the source's mistakes")
    n_heads: int = setting(4, "heads; they share d_model", minimum=1)
    kernel: Literal["exp", "taylor80", "relu", "elu", "cosine"] = setting(None, "psi and kappa")
    scaled: bool = setting(None, "whether q . k is divided by the root of a head's width")
    clamp: float = setting(None, "most that a score may be; 0 = no limit", minimum=0)
    denominator: Literal[
        "none",
        "count",
        "sum",
        "sum_at_least_1",
        "sum_at_least_1_detached",
        "sum_plus_eps",
        "sum_plus_eps_detached",
    ] = setting(None, "what a sum of values is divided by")
    in_gate: bool = setting(None, "whether values are gated")
    out_gate: Literal["none", "pre", "weights", "both"] = setting(None, "where outputs are gated")
    norm: Literal["none", "ln", "rms", "l2"] = setting(None, "over a head's width")
    cosine_axis: Literal["width", "heads"] = setting(None, "what the cosine's norms are over")
    rope_theta: float = setting(10_000.0, "of the rotary positions; 0 = none", minimum=0)
    window: int = setting(0, "tokens in view where the state grows; 0 = all", minimum=0)

    def __post_init__(self) -> None:
        """Fill in what the preset sets; raise ValueError where the whole has no meaning."""
        fill_from_preset(self, AS_CODED if self.fidelity == "paper" else PRESETS)
        free = self.kernel == "exp" and not self.clamp
        if free and not (self.denominator == "sum" or self.norm == "l2"):
            raise ValueError("kernel exp needs a clamp, denominator sum or norm l2: it overflows")
        if self.kernel == "cosine" and (self.clamp or self.denominator != "none"):
            raise ValueError("kernel cosine takes neither a clamp nor a denominator")
        if self.window and not self.grows:
            raise ValueError(f"window: kernel {self.kernel} reads a constant state")

    @property
    def grows(self) -> bool:
        """Whether the state does: no finite one is enough for exp, nor for a clamp."""
        return self.kernel in _GROWING or self.clamp > 0

    @property
    def needs_sum(self) -> bool:
        """Whether the denominator is made of the sum of the weights."""
        return self.denominator.startswith("sum")


CONTRACT_OPTIONS = (
    Options("linear_relu", n_heads=2, kernel="elu", in_gate=True, out_gate="both", norm="rms"),
)


class Mixer(nn.Module):
    """Attention by a kernel: x_BTD -> y_BTD; the state grows or not by the kernel."""

    backends = ("reference", "parallel", "chunked")
    time_major = False

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        _check(d_model, options)
        self.backend = backend_of("kernel_attention", backend, self.backends)
        self.options, self.d_head = options, d_model // options.n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        if options.in_gate:
            self.in_gate_proj = nn.Linear(d_model, options.n_heads)
        if options.out_gate != "none":
            self.out_gate_proj = nn.Linear(d_model, options.n_heads)
        if options.norm in ("ln", "rms"):
            self.norm_gain = nn.Parameter(torch.ones(self.d_head))
        if options.norm == "ln":
            self.norm_bias = nn.Parameter(torch.zeros(self.d_head))
        if options.kernel == "cosine":
            self.exponent = nn.Parameter(torch.full((options.n_heads,), _EXPONENT))

    def forward(
        self, x_BTD: Tensor, state: State, starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Tensor, State]:
        """Any T >= 1; `starts_BT` marks tokens that see nothing before themselves."""
        query, key, value, gates = self._project(x_BTD)
        if self.options.rope_theta:
            clocks = tuple(position_B.tolist())
            table = angles(clocks, x_BTD.shape[1], self.d_head, self.options.rope_theta, query)
            query, key = rotate(query, *table), rotate(key, *table)
        query, key = self._mapped(query) * self._scale, self._mapped(key)
        if "in" in gates:
            value = value * gates["in"]
        with torch.autocast(x_BTD.device.type, enabled=False):
            if self.options.grows:
                sums, after = self._attended((query, key, value), state, starts_BT, position_B)
            else:
                sums, after = self._read((query, key, value), state, starts_BT)
            read = self._output(sums, gates.get("out"))
        return linear(self.out_proj, read.flatten(2)), after

    @property
    def _scale(self) -> float:
        return self.d_head**-0.5 if self.options.scaled else 1.0

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """q, k and v, B x T x H x P, and gates, B x T x H x 1, by one matmul."""
        gates = [name for name in ("in", "out") if hasattr(self, f"{name}_gate_proj")]
        layers = [self.q_proj, self.k_proj, self.v_proj]
        layers += [getattr(self, f"{name}_gate_proj") for name in gates]
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        parts = [part.to(wide) for part in side_by_side(layers, x_BTD)]
        q, k, v = (part.unflatten(2, (self.options.n_heads, -1)) for part in parts[:3])
        opened = [part.sigmoid().unsqueeze(3) for part in parts[3:]]
        return q, k, v, dict(zip(gates, opened, strict=True))

    def _mapped(self, x_BTHP: Tensor) -> Tensor:
        """psi."""
        kernel = self.options.kernel
        if kernel == "relu":
            return F.relu(x_BTHP)
        if kernel == "elu":
            return F.elu(x_BTHP) + 1
        if kernel == "cosine":
            return F.normalize(x_BTHP, dim=3 if self.options.cosine_axis == "width" else 2)
        return x_BTHP

    def _read(
        self, qkv: tuple[Tensor, ...], state: State, starts_BT: Tensor | None
    ) -> tuple[Sums, State]:
        """By the matrices, where kappa is the identity."""
        query, key, value = qkv
        count_BT = counts(state["count"], starts_BT, query.shape[1])
        if self.options.kernel == "cosine":
            power_H1 = self.exponent.sigmoid().unsqueeze(1)
            value = value / count_BT[:, :, None, None] ** power_H1
        if self.options.needs_sum:
            value = torch.cat([value, torch.ones_like(value[..., :1])], 3)
        forms = {"reference": ops.reference, "parallel": ops.parallel}
        form = forms.get(self.backend, ops.linear_attention)
        writes = ops.Writes(key, value, value.new_zeros(value.shape[:3]))
        read, memory = form(query, writes, state["memory"], starts_BT, 1)
        after = {"memory": memory.to(state["memory"].dtype), "count": count_BT[:, -1:]}
        if self.options.needs_sum:
            return Sums(read[..., :-1], read[..., -1:], count_BT), after
        return Sums(read, None, count_BT), after

    def _attended(
        self,
        qkv: tuple[Tensor, ...],
        state: State,
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Sums, State]:
        """By all keys in view."""
        n_tokens, window = qkv[0].shape[1], self.options.window
        keys, values = append(state["keys"], qkv[1]), append(state["values"], qkv[2])
        document_BN = documents(state["document"], starts_BT, n_tokens)
        kernel = Kernel(self.options.kernel, self.options.clamp)
        block = {"reference": 1, "parallel": n_tokens}.get(self.backend, BLOCK)
        sums = sums_in_view((qkv[0], keys, values), kernel, document_BN, window, block)
        latest = kept(keys.shape[1], n_tokens, position_B, window)
        dtype = self.out_proj.weight.dtype
        cache = {"keys": keys.to(dtype), "values": values.to(dtype), "document": document_BN}
        after = {name: x[:, latest] for name, x in cache.items()}
        return sums, after

    def _output(self, sums: Sums, gate_BTH1: Tensor | None) -> Tensor:
        """The sums, divided, gated and normed."""
        gating, values, denominator = self.options.out_gate, *sums[:1], self.options.denominator
        if gate_BTH1 is None:
            return self._normed(divided(values, sums, denominator))
        if gating == "weights":
            return self._normed(divided(values * gate_BTH1, sums, denominator))
        read = self._normed(divided(values, sums, denominator) * gate_BTH1)
        return read * gate_BTH1 if gating == "both" else read

    def _normed(self, read_BTHP: Tensor) -> Tensor:
        norm, shape = self.options.norm, (self.d_head,)
        if norm == "ln":
            return F.layer_norm(read_BTHP, shape, self.norm_gain, self.norm_bias, EPS["ln"])
        if norm == "rms":
            return F.rms_norm(read_BTHP, shape, self.norm_gain, EPS["rms"])
        return F.normalize(read_BTHP, dim=3, eps=EPS["l2"]) if norm == "l2" else read_BTHP

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """chunked unless the configuration says otherwise."""
        return self.backend, "matmuls over chunks of tokens, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors of the state, without the batch, before the first token."""
        n_heads, d_head = self.options.n_heads, self.d_head
        if self.options.grows:
            return {"keys": (0, n_heads, d_head), "values": (0, n_heads, d_head), "document": (0,)}
        return {"memory": (n_heads, d_head, d_head + self.options.needs_sum), "count": (1,)}

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: 0, or the empty cache."""
        weight, whole = self.out_proj.weight, ("document", "count")
        return {
            name: torch.zeros(
                (batch_size, *shape),
                dtype=torch.int32 if name in whole else weight.dtype,
                device=weight.device,
            )
            for name, shape in self._shapes().items()
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens."""
        size, d_model = self.out_proj.weight.element_size(), self.options.n_heads * self.d_head
        if self.options.grows:
            n_keys = seq_len - first_kept(seq_len, self.options.window)
            return batch_size * n_keys * (2 * d_model * size + torch.int32.itemsize)
        return batch_size * (size * math.prod(self._shapes()["memory"]) + torch.int32.itemsize)

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2, mean over the first `seq_len` tokens.

        Those of the recurrence, which writes and reads once, or of all pairs in view; chunks and
        blocks do more.
        """
        d_model = self.options.n_heads * self.d_head
        gates = (self.options.in_gate + (self.options.out_gate != "none")) * self.options.n_heads
        weights = d_model * (4 * d_model + gates)
        if self.options.grows:
            return 2 * weights + 4 * d_model * pairs(seq_len, self.options.window) // seq_len
        return 2 * weights + 4 * math.prod(self._shapes()["memory"])

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        options = self.options
        return f"n_heads={options.n_heads}, kernel={options.kernel}, norm={options.norm}"


def _check(d_model: int, options: Options) -> None:
    """Raise UserError where the heads do not fit."""
    if d_model % (options.n_heads * (2 if options.rope_theta else 1)):
        raise UserError(
            f"model.options.kernel_attention.n_heads {options.n_heads} does not split model.d_model"
            f" {d_model} into heads of even width, which rotary positions need",
            "Choose another n_heads or d_model, or rope_theta 0 where the width is odd",
            exit_code=EXIT_USAGE,
        )
