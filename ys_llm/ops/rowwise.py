"""The compiled kernels that work row by row (`kernels/rows.cpp`), called with tensors.

A kernel goes through memory in its order. A stream that lies time-major, T x B x D in memory, may
come as a B x T x D view: what lies in one order is never copied into the other.
"""

import ctypes

import torch
from torch import Tensor

from ys_llm.csrc import loader

_LETTERS = {torch.bfloat16: "b", torch.float32: "f", torch.float64: "d"}


def is_available(x: Tensor) -> bool:
    """Whether there are compiled kernels for where x is."""
    return x.device.type == "cpu" and loader.ready("rows") is not None


def letters(*tensors: Tensor | torch.dtype) -> str:
    """What a kernel's name says of the types it is for; empty where there is none for them."""
    dtypes = [x.dtype if isinstance(x, Tensor) else x for x in tensors]
    known = all(dtype in _LETTERS for dtype in dtypes)
    return "".join(_LETTERS[dtype] for dtype in dtypes) if known else ""


def run(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel, with the threads that torch has."""
    kernels = loader.ready("rows")
    assert kernels is not None, f"{name} was called, and there are no compiled kernels"
    getattr(kernels, name)(*map(_as_c, arguments), ctypes.c_int64(torch.get_num_threads()))


def add_to(total: Tensor, x: Tensor) -> None:
    """total += x, in one pass also where x is bfloat16 and the total float32."""
    both_lie_alike = total.is_contiguous() and x.is_contiguous()
    if letters(total, x) == "fb" and both_lie_alike and is_available(x):
        run("add_to_fb", total, x, x.numel())
    else:
        total += x


def _as_c(value: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p(None)
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value)


def dense(x: Tensor) -> Tensor:
    """x itself where its rows lie one after the other in any order of the other dimensions."""
    return x if x.is_contiguous() or _is_swapped(x) else x.contiguous()


def match_layout(x: Tensor, like: Tensor) -> Tensor:
    """x with its rows in the order of `like`, which is dense."""
    if x.stride() == like.stride():
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def to_2d(x: Tensor) -> Tensor:
    """N x D, in the order of memory where that is B x T or T x B."""
    return (x.transpose(0, 1) if _is_swapped(x) else x).reshape(-1, x.shape[-1])


def from_2d(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_2d`: rows of any width in the shape and order of `like`."""
    if _is_swapped(like):
        return rows.view(like.shape[1], like.shape[0], -1).transpose(0, 1)
    return rows.view(*like.shape[:-1], -1)


def _is_swapped(x: Tensor) -> bool:
    return x.dim() == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
