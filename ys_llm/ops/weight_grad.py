"""The gradient of a matrix over very many rows.

    dW = x^T dy          x: N x K, dy: N x M, dW: K x M, for y = x W

For large matrices in bfloat16 on a CPU with AMX the compiled kernel takes 0.7 of the time of
torch's product, and its sums stay float32: torch rounds them to bfloat16.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from ys_llm.csrc import loader

KERNEL = "weight_grad"
_SIDE = 32  # of the kernel's blocks
_FEWEST_ROWS = 256
_SMALLEST = 1 << 18  # numbers in a matrix below which torch's product is as fast


def reference(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """x^T @ dy in float32 or wider."""
    return x_NK.t().to(_sum_dtype(x_NK)) @ dy_NM.to(_sum_dtype(x_NK))


def plain(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """As `reference`, by torch's product in the dtype of its operands."""
    return (x_NK.t() @ dy_NM).to(_sum_dtype(x_NK))


def cpp(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """As `reference`, by the kernel for matrices that it can have, else as `plain`."""
    library = _library() if _fits(x_NK, dy_NM) else None
    if library is None:
        return plain(x_NK, dy_NM)
    (rows, k), m = x_NK.shape, dy_NM.shape[1]
    packed = torch.empty(library.ys_weight_grad_room(*_sizes(k, m)), dtype=torch.bfloat16)
    sums, out = torch.empty(k, m), torch.empty(k, m)
    library.ys_weight_grad(
        *(ctypes.c_void_p(x_NK.data_ptr()), *_sizes(x_NK.stride(0))),
        *(ctypes.c_void_p(dy_NM.data_ptr()), *_sizes(dy_NM.stride(0))),
        *_sizes(rows, k, m),
        *(ctypes.c_void_p(room.data_ptr()) for room in (packed, sums, out)),
        torch.get_num_threads(),
    )
    return out


def weight_grad(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """The kernel where it is the faster one, else torch's product."""
    pays = x_NK.shape[1] * dy_NM.shape[1] >= _SMALLEST and len(x_NK) >= _FEWEST_ROWS
    return (cpp if pays else plain)(x_NK, dy_NM)


def _fits(x_NK: Tensor, dy_NM: Tensor) -> bool:
    return (
        x_NK.dtype == dy_NM.dtype == torch.bfloat16
        and x_NK.device.type == "cpu"
        and all(v.shape[1] % _SIDE == 0 and v.stride(1) == 1 for v in (x_NK, dy_NM))
    )


def _library() -> ctypes.CDLL | None:
    found = loader.ready(KERNEL)
    if found is None or not found.ys_can_weight_grad():
        return None
    found.ys_weight_grad_room.restype = ctypes.c_int64
    return found


def _sizes(*numbers: int) -> tuple[ctypes.c_int64, ...]:
    return tuple(map(ctypes.c_int64, numbers))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


BACKENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": reference,
    "plain": plain,
    "cpp": cpp,
}
