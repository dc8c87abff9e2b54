"""Attention by powers of q . k, or its exponential, with a decay: 2Mamba and what it was made from.

Source: "2Mamba2Furious", arXiv 2602.17363, 2026, algorithms 4 to 6 and the tables of its ablation.

Glossary (our name = the paper's symbol): `qkv_proj` = W_qkv; `conv_taps` = the input convolution;
`decay` A = the A mask; `step_proj` = W_dt; `skip` = the D residual; `gate_proj` = W_Z; norm sum =
SM norm, norm rms = output norm; P = the head width; H heads.

Equations, row vectors, t the clock, s <= t of t's own document, each head by itself:

    [q, k, v]_t = bias + sum_j w_j (x qkv_proj)_{t-j}      over 0 <= j < taps
    q_t, k_t    = activation of each
    d_t = softplus(x_t step_proj + bias)
    A_t = 0; -softplus(x_t decay_proj + bias), "softplus"; or -exp(log_rate) d_t, "original"
    v'_t = d_t v_t with value_step, else v_t
    w_ts = f(q_t . k_s / sqrt(P)) exp(A_{s+1} + ... + A_t)      f(z) = z, z^2 or exp(z) by `power`
    m_t = sum_s w_ts v'_s, with norm sum over sum_s w_ts
    y_t = RMSNorm((m_t + skip v_t) silu(x_t gate_proj + bias)) out_proj    RMSNorm with norm rms

State: the taps - 1 latest inputs of the convolution, and for power linear and squared a matrix a
head, of P or P (P + 1) / 2 rows (`ops/linear_attention`), with a column for the sum of the weights
where the norm asks for it: at P = 64, 2Mamba keeps 135,392 numbers a head. Power exp has no finite
state: all keys and values in `window` are kept, with the decay since each (`ops/kv_cache`). There
are no positions in the equations but the decay and the convolution.

Presets: the rows of the source's tables by their names there, and `2mamba`, `2mamba-e`, `mamba-2s`.

Differs from the source: there is a chunked form, of linear cost; a sum of weights that is 0 gives
0, where the source puts in the plain sum of the values; `decay_bias` (with `original`, that of
Mamba) is an addition.
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
from ys_llm.ops.convolution import short_convolution
from ys_llm.ops.forgetting_attention import BLOCK, decay_sums, forgetting_attention
from ys_llm.ops.kv_cache import append, documents, first_kept, kept, pairs
from ys_llm.ops.linear import linear, side_by_side
from ys_llm.ops.precision import Precision
from ys_llm.ops.rms_norm import rms_norm

State = dict[str, Tensor]

NORM_EPS = torch.finfo(torch.float32).eps  # as the source's RMSNorm has it
CONSTANTS = {"norm_eps": NORM_EPS}
_SMALLEST_SUM = 1e-12  # of weights; below, there is nothing to read
_RATES = (1.0, 16.0)  # exp(log_rate) of a new mixer
_KEPT = (0.9, 0.999)  # exp(A) of a new mixer with decay_bias, of the first and the last head
_STEPS = (1e-3, 0.1)  # d of a new mixer with decay_bias
_EXPONENT = {"linear": 1, "squared": 2}

_PLAIN = {
    "power": "linear",
    "activation": "none",
    "taps": 1,
    "decay": "none",
    "value_step": False,
    "skip": False,
    "gate": False,
    "norm": "rms",
}
_PARTS: dict[str, dict[str, Any]] = {
    "linear": {"power": "linear"},
    "squared": {"power": "squared"},
    "exp": {"power": "exp"},
    "output_norm": {"norm": "rms"},
    "out_norm": {"norm": "rms"},
    "sm_norm": {"norm": "sum"},
    "ReLU": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "in_conv_k_2": {"taps": 2},
    "in_conv_k_3": {"taps": 3},
    "in_conv_k_4": {"taps": 4},
    "D_res": {"skip": True},
    "Z_out_gate": {"gate": True},
    "dt_on_values": {"value_step": True},
    "A_mask_type_discretize": {"decay": "original"},
    "A_mask_type_neg_softplus": {"decay": "softplus"},
}
_BEST = "A_mask_type_neg_softplus__in_conv_k_2"
_PUBLISHED = (
    "linear__output_norm",
    "linear__output_norm__ReLU",
    *(f"linear__output_norm__in_conv_k_{w}" for w in (2, 3, 4)),
    *(f"linear__output_norm__in_conv_k_{w}__silu" for w in (2, 3, 4)),
    "linear__output_norm__D_res",
    "linear__output_norm__Z_out_gate",
    "linear__output_norm__dt_on_values",
    "linear__output_norm__A_mask_type_discretize",
    "linear__output_norm__A_mask_type_neg_softplus",
    "linear__output_norm__A_mask_type_discretize__in_conv_k_2",
    f"linear__output_norm__{_BEST}",
    f"linear__out_norm__{_BEST}",
    f"linear__output_norm__{_BEST}__dt_on_values",
    *(f"linear__output_norm__{_BEST}__dt_on_values__{x}" for x in ("silu", "D_res", "Z_out_gate")),
    f"squared__sm_norm__{_BEST}__dt_on_values",
    f"squared__output_norm__{_BEST}__dt_on_values",
    f"squared__sm_norm__{_BEST}",
    f"exp__sm_norm__{_BEST}",
)


def _settings(name: str) -> dict[str, Any]:
    """What a name of the source stands for."""
    settings = dict(_PLAIN)
    for part in name.split("__"):
        settings |= _PARTS[part]
    return settings


PRESETS: dict[str, dict[str, Any]] = {
    "2mamba": _settings(f"squared__sm_norm__{_BEST}"),
    "2mamba-e": _settings(f"exp__sm_norm__{_BEST}"),
    "mamba-2s": _settings(f"linear__output_norm__{_BEST}__dt_on_values"),
    "linear": _settings("linear__sm_norm__ReLU"),
    **{name: _settings(name) for name in _PUBLISHED},
}


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.decay_attention`.

    A setting that is left out is as the preset has it.
    """

    preset: str = setting("2mamba", "sets the others: " + ", ".join([*PRESETS][:4]) + ", ...")
    n_heads: int = setting(4, "heads H; they share d_model", minimum=1)
    power: Literal["linear", "squared", "exp"] = setting(
        None, "weights: linear = q . k, squared = its square, exp"
    )
    activation: Literal["none", "relu", "silu"] = setting(None, "of queries and keys")
    taps: int = setting(None, "taps of the convolution; 1 = none", minimum=1, maximum=4)
    decay: Literal["none", "original", "softplus"] = setting(
        None, "none, of its own (softplus), or rate times step (original)"
    )
    value_step: bool = setting(None, "whether values are multiplied by the step")
    skip: bool = setting(None, "whether values are added to the output")
    gate: bool = setting(None, "whether the output is gated")
    norm: Literal["sum", "rms"] = setting(
        None, "sum: over the sum of weights; rms: RMSNorm of the output"
    )
    decay_bias: bool = setting(False, "whether the decay has a bias, and begins near 1")
    window: int = setting(0, "tokens in view of power exp; 0 = all", minimum=0)

    def __post_init__(self) -> None:
        """Fill in what the preset sets; raise ValueError where the whole has no meaning."""
        fill_from_preset(self, PRESETS)
        if (self.power, self.norm) == ("linear", "sum") and self.activation != "relu":
            raise ValueError("power linear with norm sum needs activation relu: sums may be 0 else")
        if (self.power, self.norm) == ("exp", "rms"):
            raise ValueError("power exp needs norm sum: exponentials grow without bound else")
        if self.window and self.power != "exp":
            raise ValueError("window is for power exp alone; the others read a constant state")
        if self.decay_bias and self.decay == "none":
            raise ValueError("decay_bias needs a decay: softplus or original")


CONTRACT_OPTIONS = (
    Options("2mamba-e", n_heads=2, window=16),
    Options(
        "mamba-2s", n_heads=2, decay="original", activation="silu", skip=True, gate=True, taps=4
    ),
)


class Mixer(nn.Module):
    """Attention with a decay: x_BTD -> y_BTD with a carried state, of constant size unless exp."""

    backends = ("reference", "parallel", "chunked")
    time_major = False
    no_weight_decay = ("conv_taps",)  # a few numbers a channel, as a vector is

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        _check(d_model, options)
        self.backend = backend_of("decay_attention", backend, self.backends)
        self.options, self.d_model = options, d_model
        n_heads, bias = options.n_heads, options.decay_bias
        self.d_head = d_model // n_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        original = options.decay == "original"
        if options.value_step or original:
            self.step_proj = nn.Linear(d_model, n_heads, bias=bias and original)
        if options.decay == "softplus":
            self.decay_proj = nn.Linear(d_model, n_heads, bias=bias)
        if options.gate:
            self.gate_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        if options.taps > 1:
            self.conv_taps = nn.Parameter(torch.empty(options.taps, 3 * d_model))
            self.conv_bias = nn.Parameter(torch.empty(3 * d_model))
        if original:
            self.log_rate = nn.Parameter(torch.empty(n_heads))
        if options.skip:
            self.skip = nn.Parameter(torch.ones(d_model))
        if options.norm == "rms":
            self.norm_gain = nn.Parameter(torch.ones(d_model))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Linear layers begin as torch's do, which is how the source's began."""
        options = self.options
        if options.taps > 1:
            bound = options.taps**-0.5
            nn.init.uniform_(self.conv_taps, -bound, bound)
            nn.init.uniform_(self.conv_bias, -bound, bound)
        if options.decay == "original":
            self.log_rate.uniform_(*_RATES).log_()
        if options.decay_bias and options.decay == "original":
            steps = self.step_proj.bias.uniform_(*map(math.log, _STEPS)).exp_()
            self.step_proj.bias.copy_(steps.expm1().log())
        elif options.decay_bias:
            first, last = (math.log10(1 - kept) for kept in _KEPT)
            kept_H = 1 - torch.logspace(first, last, options.n_heads)
            self.decay_proj.bias.copy_((1 / kept_H - 1).log())

    def forward(
        self, x_BTD: Tensor, state: State, starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Tensor, State]:
        """Any T >= 1; `starts_BT` marks tokens that see nothing before themselves."""
        qkv, step_BTH, log_decay_BTH, gate = self._project(x_BTD)
        after: State = {}
        if self.options.taps > 1:
            taps, bias = self.conv_taps, self.conv_bias
            qkv, after["inputs"] = short_convolution(qkv, taps, bias, state["inputs"], starts_BT)
        query, key, value = (
            part.to(log_decay_BTH.dtype).unflatten(2, (self.options.n_heads, -1))
            for part in qkv.chunk(3, dim=2)
        )
        query, key = self._active(query) * self.d_head**-0.5, self._active(key)
        stepped = value if step_BTH is None else step_BTH.unsqueeze(3) * value
        writes = ops.Writes(key, stepped, log_decay_BTH)
        if self.options.power == "exp":
            read, kept_state = self._attended(query, writes, state, (starts_BT, position_B))
        else:
            read, kept_state = self._read(query, writes, state["memory"], starts_BT)
        y_BTD = linear(self.out_proj, self._output(read.flatten(2), value.flatten(2), gate))
        return y_BTD, after | kept_state

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """qkv, the step of the values, A and the gate, by one matmul."""
        options = self.options
        names = [n for n in ("qkv", "step", "decay", "gate") if hasattr(self, f"{n}_proj")]
        layers = [getattr(self, f"{name}_proj") for name in names]
        parts = dict(zip(names, side_by_side(layers, x_BTD), strict=True))
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        step = F.softplus(parts["step"].to(wide)) if "step" in parts else None
        if options.decay == "softplus":
            log_decay = -F.softplus(parts["decay"].to(wide))
        elif options.decay == "original":
            assert step is not None
            log_decay = -self.log_rate.exp() * step
        else:
            log_decay = x_BTD.new_zeros(*x_BTD.shape[:2], options.n_heads, dtype=wide)
        return parts["qkv"], step if options.value_step else None, log_decay, parts.get("gate")

    def _active(self, x: Tensor) -> Tensor:
        activation = self.options.activation
        return x if activation == "none" else F.relu(x) if activation == "relu" else F.silu(x)

    def _read(
        self, query: Tensor, writes: ops.Writes, memory: Tensor, starts_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        """m, and the memory, whose last column is the sum of the keys under norm sum."""
        with_sum = self.options.norm == "sum"
        if with_sum:
            values = torch.cat([writes.value_BTHV, torch.ones_like(query[..., :1])], -1)
            writes = writes._replace(value_BTHV=values)
        forms = {"reference": ops.reference, "parallel": ops.parallel}
        form = forms.get(self.backend, ops.linear_attention)
        power = _EXPONENT[self.options.power]
        read, after = form(query, writes, memory, starts_BT, power)
        if with_sum:
            read, total = read[..., :-1], read[..., -1:]
            is_read = total > _SMALLEST_SUM
            read = (read / total.where(is_read, 1)).masked_fill(~is_read, 0)
        return read, {"memory": after.to(memory.dtype)}

    def _attended(
        self,
        query: Tensor,
        writes: ops.Writes,
        state: State,
        place: tuple[Tensor | None, Tensor],
    ) -> tuple[Tensor, State]:
        """m of power exp, and the cache."""
        (starts_BT, position_B), n_tokens = place, query.shape[1]
        keys = append(state["keys"], writes.key_BTGK)
        values = append(state["values"], writes.value_BTHV)
        document_BN = documents(state["document"], starts_BT, n_tokens)
        sums_BNH = decay_sums(writes.log_decay_BTH, state["ages"], starts_BT)
        block = {"reference": 1, "parallel": n_tokens}.get(self.backend, BLOCK)
        window, dtype = self.options.window, self.out_proj.weight.dtype
        read = forgetting_attention(query, (keys, values), sums_BNH, document_BN, window, block)
        latest = kept(keys.shape[1], n_tokens, position_B, window)
        foreign = (document_BN != document_BN[:, -1:]).unsqueeze(2)
        ages_BNH = (sums_BNH[:, -1:] - sums_BNH).masked_fill(foreign, 0)
        cache = {"keys": keys.to(dtype), "values": values.to(dtype), "ages": ages_BNH.to(dtype)}
        return read, {name: x[:, latest] for name, x in (cache | {"document": document_BN}).items()}

    def _output(self, read_BTD: Tensor, value_BTD: Tensor, gate_BTD: Tensor | None) -> Tensor:
        if self.options.skip:
            read_BTD = read_BTD + self.skip * value_BTD
        if gate_BTD is not None:
            read_BTD = read_BTD * F.silu(gate_BTD)
        if self.options.norm == "rms":
            _, read_BTD = rms_norm(read_BTD, None, self.norm_gain, NORM_EPS)
        return read_BTD

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
        options, shapes = self.options, dict[str, tuple[int, ...]]()
        n_heads, d_head = options.n_heads, self.d_head
        if options.taps > 1:
            shapes["inputs"] = (options.taps - 1, 3 * self.d_model)
        if options.power == "exp":
            heads = (0, n_heads, d_head)
            return shapes | {"keys": heads, "values": heads, "ages": (0, n_heads), "document": (0,)}
        n_rows = ops.n_features(d_head, _EXPONENT[options.power])
        return shapes | {"memory": (n_heads, n_rows, d_head + (options.norm == "sum"))}

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: 0, or the empty cache."""
        like = self.out_proj.weight
        return {
            name: torch.zeros(
                (batch_size, *shape),
                dtype=torch.int32 if name == "document" else like.dtype,
                device=like.device,
            )
            for name, shape in self._shapes().items()
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens; only that of power exp grows."""
        size, options = self.out_proj.weight.element_size(), self.options
        per_row = size * sum(math.prod(shape) for shape in self._shapes().values())
        if options.power == "exp":
            n_keys = seq_len - first_kept(seq_len, options.window)
            per_key = size * (2 * self.d_model + options.n_heads) + torch.int32.itemsize
            per_row += n_keys * per_key
        return batch_size * per_row

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2, mean over the first `seq_len` tokens.

        Those of the recurrence, which writes and reads once, or of power exp of all pairs in view;
        chunks and blocks do more.
        """
        layers = ("qkv", "step", "decay", "gate", "out")
        found = [getattr(self, f"{name}_proj", None) for name in layers]
        weights: int = sum(layer.weight.numel() for layer in found if layer is not None)
        if self.options.power == "exp":
            return 2 * weights + 4 * self.d_model * pairs(seq_len, self.options.window) // seq_len
        return 2 * weights + 4 * math.prod(self._shapes()["memory"])

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        options = self.options
        return f"n_heads={options.n_heads}, power={options.power}, norm={options.norm}"


def _check(d_model: int, options: Options) -> None:
    """Raise UserError where the heads do not fit."""
    if d_model % options.n_heads:
        raise UserError(
            f"model.options.decay_attention.n_heads {options.n_heads} does not divide"
            f" model.d_model {d_model}",
            "Choose another n_heads or d_model",
            exit_code=EXIT_USAGE,
        )
