"""The gradient of a matrix over very many rows.

    dW = x^T dy          x: N x K, dy: N x M, dW: K x M, for y = x W

For large matrices in bfloat16 on a CPU with AMX the compiled kernel is faster than torch's matmul
(LOG.md, section 15), and its sums stay float32: torch rounds them to bfloat16. In float32 there is
a kernel for the processors that `ops/matmul.py` names.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.ops.matmul import kernel_pays

_SIDE = 32  # of the kernel's blocks
_FEWEST_ROWS = 256
_SMALLEST = 1 << 18  # numbers in a matrix below which torch's matmul is as fast


def reference(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """x^T @ dy in float32 or wider."""
    return x_NK.t().to(_sum_dtype(x_NK)) @ dy_NM.to(_sum_dtype(x_NK))


def plain(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """As `reference`, by torch's matmul in the dtype of its operands."""
    return (x_NK.t() @ dy_NM).to(_sum_dtype(x_NK))


def cpp(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """As `reference`, by the kernel where it supports the operands, else as `plain`."""
    library = _library() if _is_supported(x_NK, dy_NM) else None
    if library is None:
        return plain(x_NK, dy_NM)
    (rows, k), m = x_NK.shape, dy_NM.shape[1]
    packed = torch.empty(library.lib.ys_weight_grad_workspace(k, m), dtype=torch.bfloat16)
    sums, out = torch.empty(k, m), torch.empty(k, m)
    x, dy = (library.pointer(v) for v in (x_NK, dy_NM))
    workspace = (library.pointer(v) for v in (packed, sums, out))
    strides = (x_NK.stride(0), dy_NM.stride(0))
    library.lib.ys_weight_grad(
        x, strides[0], dy, strides[1], rows, k, m, *workspace, torch.get_num_threads()
    )
    return out


class SumF32:
    """The sum of x^T dy over pieces of the rows, by the float32 kernel: on a CPU, rows contiguous.

    The sum stays in the kernel's layout until all pieces are added.
    """

    def __init__(self, k: int, m: int) -> None:
        library = loader.load()
        assert library is not None, "the kernel was called without a compiled library"
        self._lib, self._pointer, self._size = library.lib, library.pointer, (k, m)
        self._packed = torch.empty(self._lib.ys_weight_grad_workspace_f(k))
        self._sums = torch.empty(self._lib.ys_packed_size(1, k, m))
        self._begins = True

    def add(self, x_NK: Tensor, dy_NM: Tensor) -> None:
        """Adds the product of one piece."""
        operands = (self._pointer(x_NK), x_NK.stride(0), self._pointer(dy_NM), dy_NM.stride(0))
        workspace = (self._pointer(self._packed), self._pointer(self._sums))
        sizes, threads = (len(x_NK), *self._size), torch.get_num_threads()
        self._lib.ys_add_weight_grad_f(*operands, *sizes, *workspace, self._begins, threads)
        self._begins = False

    def total(self) -> Tensor:
        """K x M; at least one piece was added."""
        out, threads = torch.empty(self._size), torch.get_num_threads()
        pointers = self._pointer(self._sums), self._pointer(out)
        self._lib.ys_unpack_f(pointers[0], *self._size, pointers[1], threads)
        return out


def cpp_f32(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """As `reference`, by the float32 kernel: on a CPU, rows contiguous."""
    total = SumF32(x_NK.shape[1], dy_NM.shape[1])
    total.add(x_NK, dy_NM)
    return total.total()


def weight_grad(x_NK: Tensor, dy_NM: Tensor) -> Tensor:
    """The kernel where it is faster, else torch's matmul."""
    if kernel_pays(x_NK, dy_NM, x_NK.shape[1] * dy_NM.shape[1]) and dy_NM.stride(1) == 1:
        return cpp_f32(x_NK, dy_NM)
    pays = x_NK.shape[1] * dy_NM.shape[1] >= _SMALLEST and len(x_NK) >= _FEWEST_ROWS
    return (cpp if pays else plain)(x_NK, dy_NM)


def _is_supported(x_NK: Tensor, dy_NM: Tensor) -> bool:
    return (
        x_NK.dtype == dy_NM.dtype == torch.bfloat16
        and x_NK.device.type == "cpu"
        and all(v.shape[1] % _SIDE == 0 and v.stride(1) == 1 for v in (x_NK, dy_NM))
    )


def is_available() -> bool:
    """Whether there is a compiled kernel that this processor can run."""
    return _library() is not None


def _library() -> loader.Library | None:
    found = loader.load()
    return found if found is not None and found.lib.ys_has_weight_grad() else None


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


BACKENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": reference,
    "plain": plain,
    "cpp": cpp,
}
