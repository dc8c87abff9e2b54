"""Matmuls of very many rows with one matrix, as linear layers need them.

    y = x W          x: N x K, W: K x M, y: N x M

In float32 on an AMD processor the compiled kernel is used: torch's (MKL) reaches 0.8 of its speed
with AVX2, and 0.4 with AVX-512, which MKL does not use there. On other processors torch's own is
used, against which the kernel has not been measured.
"""

from functools import cache

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.system.machine import inspect_machine

FEWEST_ROWS = 256  # for which packing the matrix pays
SMALLEST = 1 << 12  # numbers in a matrix
_F32 = 1  # `enum ys_operands` of csrc/api.h


def cpp(x_NK: Tensor, w_KM: Tensor) -> Tensor:
    """x @ W by the kernel: float32 on a CPU, rows of x contiguous; W in any layout."""
    library = loader.load()
    assert library is not None, "the kernel was called without a compiled library"
    lib, pointer, (k, m) = library.lib, library.pointer, w_KM.shape
    packed = torch.empty(lib.ys_packed_size(_F32, k, m))
    lib.ys_pack(_F32, pointer(w_KM), 1, 0, *w_KM.stride(), k, m, pointer(packed))
    y_NM = torch.empty(len(x_NK), m)
    threads = torch.get_num_threads()
    lib.ys_matmul_f(
        pointer(x_NK), x_NK.stride(0), pointer(packed), len(x_NK), k, m, pointer(y_NM), threads
    )
    return y_NM


def matmul(x_NK: Tensor, w_KM: Tensor) -> Tensor:
    """x @ W by the kernel where it is faster, else by torch."""
    return cpp(x_NK, w_KM) if kernel_pays(x_NK, w_KM, w_KM.numel()) else x_NK @ w_KM


def kernel_pays(x_NK: Tensor, other: Tensor, matrix_size: int) -> bool:
    """Whether the float32 kernels support these operands and are faster than torch."""
    return (
        x_NK.dtype == other.dtype == torch.float32
        and x_NK.device.type == "cpu"
        and x_NK.stride(1) == 1
        and len(x_NK) >= FEWEST_ROWS
        and matrix_size >= SMALLEST
        and _is_amd()
        and loader.load() is not None
    )


@cache
def _is_amd() -> bool:
    return "AMD" in inspect_machine().processor
