"""The compiled row-wise kernels (`csrc/rowwise.cpp`), called with tensors.

A kernel reads rows in memory order. A time-major tensor, T x B x D in memory, may come as a
B x T x D view: `to_2d` takes rows in the order in which they are stored, without a copy. Functions
here allocate what they return; `supports` says for which dtypes there is a kernel.
"""

from typing import Literal

import torch
from torch import Tensor

from ys_llm.csrc import loader

Kernel = Literal["rms_norm", "swiglu_gate", "cross_entropy", "copied_mass", "convolution", "add_to"]
_SUFFIXES = {torch.bfloat16: "b", torch.float32: "f", torch.float64: "d"}
_SUPPORTED = {
    "rms_norm": {"ddd", "fff", "ffb", "fbf", "fbb"},  # x, delta, y
    "swiglu_gate": {"d", "f", "b"},
    "cross_entropy": {"dd", "ff", "bf"},  # logits, bias and losses
    "copied_mass": {"d", "f", "b"},
    "convolution": {"dd", "ff", "bf"},  # x, weight
    "add_to": {"fb"},  # total, x
}


def is_available(x: Tensor) -> bool:
    """Whether there are compiled kernels for x: a plain tensor on a CPU.

    A subclass, such as the DTensor of distributed training, has no memory that they could read.
    """
    is_plain = type(x) in (Tensor, torch.nn.Parameter)
    return is_plain and x.device.type == "cpu" and loader.load() is not None


def supports(kernel: Kernel, *dtypes: torch.dtype) -> bool:
    """Whether a kernel exists for these dtypes, in the order of `_SUPPORTED`."""
    return _suffix(dtypes) in _SUPPORTED[kernel]


def rms_norm_forward(
    x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, y_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, residual, r_rms) of y = residual r_rms gain, residual = x + delta, r_rms = 1 / rms.

    x and delta are dense and have the same layout; without delta the residual is x itself.
    """
    library = _library()
    y, r_rms = torch.empty_like(x, dtype=y_dtype), x.new_empty(x.shape[:-1].numel())
    residual = x if delta is None else torch.empty_like(x)
    suffix = _suffix((x.dtype, x.dtype if delta is None else delta.dtype, y_dtype))
    kernel = getattr(library.lib, f"ys_rms_norm_forward_{suffix}")
    pointers = map(library.pointer, (x, delta, gain, residual, y, r_rms))
    kernel(*pointers, len(r_rms), x.shape[-1], eps, torch.get_num_threads())
    return y, residual, r_rms


def rms_norm_backward(
    d_y: Tensor,
    d_out: Tensor | None,
    residual: Tensor,
    gain: Tensor,
    r_rms: Tensor,
    delta_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_residual, d_delta, d_gain); `d_out` is the gradient that reaches the residual directly.

    d_delta is d_residual in `delta_dtype`, the same tensor where the dtypes are equal.
    """
    library = _library()
    d_residual, d_gain = torch.empty_like(residual), torch.empty_like(gain)
    rounds = delta_dtype != residual.dtype
    d_delta = torch.empty_like(residual, dtype=delta_dtype) if rounds else None
    suffix = _suffix((residual.dtype, delta_dtype, d_y.dtype))
    kernel = getattr(library.lib, f"ys_rms_norm_backward_{suffix}")
    tensors = (d_y, d_out, residual, gain, r_rms, d_residual, d_delta, d_gain)
    sizes = (len(r_rms), residual.shape[-1], torch.get_num_threads())
    kernel(*map(library.pointer, tensors), *sizes)
    return d_residual, d_residual if d_delta is None else d_delta, d_gain


def swiglu_gate_forward(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; a row of `gate_up`, N x 2M, is gate, then up."""
    library = _library()
    y = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    kernel = getattr(library.lib, f"ys_swiglu_gate_forward_{_suffix((y.dtype,))}")
    kernel(library.pointer(gate_up), library.pointer(y), *y.shape, torch.get_num_threads())
    return y


def swiglu_gate_backward(gate_up: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
    """(d_gate_up, y); y is recomputed and overwrites d_y."""
    library = _library()
    d_gate_up = torch.empty_like(gate_up)
    kernel = getattr(library.lib, f"ys_swiglu_gate_backward_{_suffix((d_y.dtype,))}")
    pointers = map(library.pointer, (gate_up, d_y, d_gate_up, d_y))
    kernel(*pointers, *d_y.shape, torch.get_num_threads())
    return d_gate_up, d_y


def cross_entropy(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    d_bias: Tensor | None,
    weights: Tensor | None = None,
    mixture: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The loss of each row in nats, times its weight; the logits become their gradients.

    The sum of the gradients over the rows is added to `d_bias`. A row with weight 0 has loss and
    gradient 0 whatever its logits and target are. `mixture` is the head's share of the probability
    of each row and what the rest gives to its target; second: their gradients.
    """
    library = _library()
    dtype = torch.promote_types(logits.dtype, torch.float32)
    losses = torch.empty(len(logits), dtype=dtype)
    kernel = getattr(library.lib, f"ys_cross_entropy_{_suffix((logits.dtype,))}")
    d_mixture = None if mixture is None else (torch.empty_like(losses), torch.empty_like(losses))
    per_row = [
        None if x is None else x.to(dtype).contiguous()
        for x in (weights, *(mixture or (None,) * 2))
    ]
    tensors = (logits, bias, targets.contiguous(), *per_row)
    results = (losses, *(d_mixture or (None, None)), d_bias)
    pointers = map(library.pointer, (*tensors, *results))
    kernel(*pointers, *logits.shape, torch.get_num_threads())
    return losses, d_mixture


def copied_mass(
    scores: Tensor, sentinel: Tensor, first: Tensor, tokens: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """rest and mass (B x C) of `ops.copy_attention`; the scores, B x C x K, become a, with signs.

    Query c sees keys `first` (B x C) to K - C + c; `tokens` are those of the keys, B x K.
    """
    library, dtype = _library(), torch.promote_types(scores.dtype, torch.float32)
    rest, mass = torch.empty(2, *scores.shape[:2], dtype=dtype)
    kernel = getattr(library.lib, f"ys_copied_mass_{_suffix((scores.dtype,))}")
    ids = [x.to(torch.int32).contiguous() for x in (tokens, targets)]
    tensors = (scores, sentinel.contiguous(), first.contiguous(), *ids, rest, mass)
    kernel(*map(library.pointer, tensors), *scores.shape, torch.get_num_threads())
    return rest, mass


def copied_mass_backward(weights: Tensor, d_mass: Tensor, common: Tensor) -> Tensor:
    """The gradient of the scores; `weights` is what `copied_mass` left of them."""
    library, d_scores = _library(), torch.empty_like(weights)
    kernel = getattr(library.lib, f"ys_copied_mass_backward_{_suffix((weights.dtype,))}")
    tensors = (weights, d_mass.contiguous(), common.contiguous(), d_scores)
    rows, width = common.numel(), weights.shape[-1]
    kernel(*map(library.pointer, tensors), rows, width, torch.get_num_threads())
    return d_scores


def convolution_forward(
    x_BTD: Tensor, weight_KD: Tensor, past_BKD: Tensor, reach_BT: Tensor | None
) -> Tensor:
    """y of `ops.convolution`, in the layout of x, which is dense; the others are contiguous."""
    library, y_BTD = _library(), torch.empty_like(x_BTD)
    kernel = getattr(library.lib, f"ys_convolution_forward_{_suffix((x_BTD.dtype,))}")
    tensors = (x_BTD, weight_KD, past_BKD, reach_BT, y_BTD)
    sizes = (*x_BTD.shape, len(weight_KD), _is_swapped(x_BTD))
    kernel(*map(library.pointer, tensors), *sizes, torch.get_num_threads())
    return y_BTD


def convolution_backward(
    d_y: Tensor, x_BTD: Tensor, weight_KD: Tensor, past_BKD: Tensor, reach_BT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_x, d_weight, d_past); d_y is in the layout of x."""
    library = _library()
    made = (torch.empty_like(x_BTD), torch.empty_like(weight_KD), torch.empty_like(past_BKD))
    kernel = getattr(library.lib, f"ys_convolution_backward_{_suffix((x_BTD.dtype,))}")
    tensors = (d_y, x_BTD, weight_KD, past_BKD, reach_BT, *made)
    sizes = (*x_BTD.shape, len(weight_KD), _is_swapped(x_BTD))
    kernel(*map(library.pointer, tensors), *sizes, torch.get_num_threads())
    return made


def add_to(total: Tensor, x: Tensor) -> None:
    """total += x, in one pass also where x is bfloat16 and the total float32."""
    are_contiguous = total.is_contiguous() and x.is_contiguous()
    if supports("add_to", total.dtype, x.dtype) and are_contiguous and is_available(x):
        library = _library()
        pointers = map(library.pointer, (total, x))
        library.lib.ys_add_to_fb(*pointers, x.numel(), torch.get_num_threads())
    else:
        total += x


def dense(x: Tensor) -> Tensor:
    """x itself where its rows are stored one after the other, in any order of other dimensions."""
    return x if x.is_contiguous() or _is_swapped(x) else x.contiguous()


def match_layout(x: Tensor, like: Tensor) -> Tensor:
    """x with its rows stored in the order of `like`, which is dense."""
    if x.stride() == like.stride():
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def to_2d(x: Tensor) -> Tensor:
    """N x D, in memory order where that is B x T or T x B."""
    return (x.transpose(0, 1) if _is_swapped(x) else x).reshape(-1, x.shape[-1])


def from_2d(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_2d`: rows of any width in the shape and layout of `like`."""
    if _is_swapped(like):
        return rows.view(like.shape[1], like.shape[0], -1).transpose(0, 1)
    return rows.view(*like.shape[:-1], -1)


def _library() -> loader.Library:
    library = loader.load()
    assert library is not None, "a compiled kernel was called although `is_available` is false"
    return library


def _suffix(dtypes: tuple[torch.dtype, ...]) -> str:
    return "".join(_SUFFIXES.get(dtype, "?") for dtype in dtypes)


def _is_swapped(x: Tensor) -> bool:
    return x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
