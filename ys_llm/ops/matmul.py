"""Matmuls of very many rows with one matrix: linear layers, SwiGLU and the head over a vocabulary.

    y = x W          x: N x K, W: K x M, y: N x M

In float32 on an AMD processor the compiled kernel is used: torch's (MKL) reaches 0.8 of its speed
with AVX2, and 0.4 with AVX-512, which MKL does not use there (LOG.md, section 18). On other
processors torch's own is used, against which the kernel has not been measured.
"""

from functools import cache

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.ops import rowwise
from ys_llm.system.machine import inspect_machine

FEWEST_ROWS = 256  # for which packing the matrix pays
SMALLEST = 1 << 12  # numbers in a matrix
_F32 = 1  # `enum ys_operands` of csrc/api.h


def matmul(x_NK: Tensor, w_KM: Tensor) -> Tensor:
    """x @ W by the kernel where it is faster, else by torch."""
    return cpp(x_NK, w_KM) if kernel_pays(x_NK, w_KM, w_KM.numel()) else x_NK @ w_KM


def cpp(x_NK: Tensor, w_KM: Tensor) -> Tensor:
    """x @ W by the kernel: float32 on a CPU, rows of x contiguous; W in any layout."""
    return multiply(x_NK, pack(w_KM), torch.empty(len(x_NK), w_KM.shape[1]))


def pack(w_KM: Tensor) -> Tensor:
    """A float32 matrix in any layout as `multiply` reads it."""
    library, (k, m) = _library(), w_KM.shape
    packed = torch.empty(library.lib.ys_packed_size(_F32, k, m))
    source, to = library.pointer(w_KM), library.pointer(packed)
    library.lib.ys_pack(_F32, source, 1, 0, *w_KM.stride(), k, m, to)
    return packed


def multiply(x_NK: Tensor, packed: Tensor, out_NM: Tensor) -> Tensor:
    """out = x @ W by the kernel, for a W that `pack` packed; out is contiguous."""
    library, (rows, k) = _library(), x_NK.shape
    x, w, y = (library.pointer(tensor) for tensor in (x_NK, packed, out_NM))
    threads = torch.get_num_threads()
    library.lib.ys_matmul_f(x, x_NK.stride(0), w, rows, k, out_NM.shape[1], y, threads)
    return out_NM


def kernel_pays(x_NK: Tensor, other: Tensor, matrix_size: int) -> bool:
    """Whether the float32 kernels support these operands and are faster than torch."""
    return (
        x_NK.dtype == other.dtype == torch.float32
        and x_NK.stride(1) == 1
        and len(x_NK) >= FEWEST_ROWS
        and matrix_size >= SMALLEST
        and _is_amd()
        and rowwise.is_available(x_NK)
    )


def _library() -> loader.Library:
    library = loader.load()
    assert library is not None, "the kernel was called without a compiled library"
    return library


@cache
def _is_amd() -> bool:
    return "AMD" in inspect_machine().processor
