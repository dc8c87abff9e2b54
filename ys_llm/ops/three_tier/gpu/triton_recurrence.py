"""The three-tier recurrence with Triton kernels for its steps, and torch for all between windows.

Narrow heads: a program per head and tile of rows, which need not wait for each other. Wide ones: a
head's columns are shared out, with one barrier a step. Summaries, and the gradient of every weight
as one product over all steps after the loop, are those of `windowed.py`. Equation: `recurrence.py`.

Tilings are set by hand, by shape alone: nothing is tuned at run time, and neither batch nor length
compiles a kernel anew. Triton is imported when a pass begins.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ys_llm.ops.three_tier.gemm import Gemm, Precision
from ys_llm.ops.three_tier.types import Weights
from ys_llm.ops.three_tier.windowed import Norm, Pass

WIDEST_HEAD = {"bf16": 128, "fp32": 64}  # that one program holds; float32 spills registers at 128
_FEW_PROGRAMS = 132  # processors of an H100


class Trail(NamedTuple):
    """What the steps of a window leave for the way back."""

    pre_WBS: Tensor
    mean_WBH: Tensor
    rstd_WBH: Tensor


class Kernels(Protocol):
    """The steps of one window, forward and back, by some kernel. W steps; the rest as ever."""

    def forward(
        self, pre_WBS: Tensor, h_BS: Tensor, keep_WB: Tensor | None
    ) -> tuple[Tensor, Trail]:
        """Every h of the window; `pre` comes as the addend and becomes what LN took."""

    def backward(
        self, d_h_WBS: Tensor, after_BS: Tensor, trail: Trail, keep_WB: Tensor | None
    ) -> Tensor:
        """d_pre; `d_h` comes as the gradient from outside and becomes the whole one."""


class MaskedPass(Pass):
    """A pass that masks at every step instead of asking where: to ask would wait for the device."""

    def __init__(
        self, weights: Weights, gemm: Gemm, position: int, starts_TB: Tensor | None
    ) -> None:
        super().__init__(weights, gemm, position, None)
        if starts_TB is not None:
            self.keep_TB1 = (~starts_TB).unsqueeze(2).to(weights.gain.dtype)
            self.cut = [True] * len(starts_TB)


class KernelPass(MaskedPass):
    """One run over T steps and back: kernels inside windows, torch between them."""

    def __init__(
        self,
        weights: Weights,
        gemm: Gemm,
        position: int,
        starts_TB: Tensor | None,
        kernels: Kernels,
    ) -> None:
        super().__init__(weights, gemm, position, starts_TB)
        self.kernels, self.trails = kernels, dict[int, Trail]()
        self.keep_TB = None if self.keep_TB1 is None else self.keep_TB1.squeeze(2).contiguous()

    def forward(self, drive: Tensor, h: Tensor, held: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """As `Pass.forward`; kernels find their place in contiguous memory alone."""
        return super().forward(drive.contiguous(), h.contiguous(), held)

    def backward(self, h: Tensor, grad_h: Tensor, grad_held: list[Tensor]) -> list[Tensor | None]:
        """As `Pass.backward`."""
        return super().backward(h, grad_h.contiguous(), grad_held)

    def walk(self, begin: int, end: int, h: Tensor) -> list[Tensor]:
        """As `Pass.walk`."""
        h_WBS, trail = self.kernels.forward(self.pre[begin:end], h, self._kept_rows(begin, end))
        self.trails[begin] = trail
        self.means.append(trail.mean_WBH)
        self.rstds.append(trail.rstd_WBH)
        return list(h_WBS)

    def walk_back(self, begin: int, end: int) -> None:
        """As `Pass.walk_back`."""
        after_BS = self.kept(end) if end < len(self.d_h) else torch.zeros_like(self.h0)
        self.d_pre[begin:end] = self.kernels.backward(
            self.d_h[begin:end], after_BS, self.trails[begin], self._kept_rows(begin, end)
        )

    def _kept_rows(self, begin: int, end: int) -> Tensor | None:
        return None if self.keep_TB is None else self.keep_TB[begin:end]


class _Operands:
    """What both kinds of kernels multiply by, and the shape of it."""

    def __init__(self, weights: Weights, precision: Precision) -> None:
        controller = weights.state_controller
        if precision == "bf16" and controller.dtype == torch.float32:
            controller = controller.bfloat16()
        self.matrix_HPP = controller.contiguous().view(-1, *controller.shape[-2:])
        self.gain_S, self.bias_S = weights.gain.contiguous(), weights.bias.contiguous()
        self.n_heads, self.width = self.matrix_HPP.shape[:2]
        # Only the interpreter takes tensors of the CPU, and has no bfloat16 product.
        self.widen = controller.dtype == torch.bfloat16 and controller.device.type == "cpu"

    def switches(self, keep: Tensor | None) -> dict[str, Any]:
        """The constants that both kinds of kernels are compiled with."""
        return {"MASKED": keep is not None, "WIDEN": self.widen}


class HeadKernels(_Operands):
    """Steps of heads of width up to WIDEST_HEAD, each by programs of its own."""

    def forward(
        self, pre_WBS: Tensor, h_BS: Tensor, keep_WB: Tensor | None
    ) -> tuple[Tensor, Trail]:
        """See `Kernels`."""
        from ys_llm.ops.three_tier.gpu import triton_heads

        steps, batch_size, _ = pre_WBS.shape
        h_WBS = torch.empty_like(pre_WBS)
        mean, rstd = pre_WBS.new_empty(2, steps, batch_size, self.n_heads)
        grid, tiling = self._tiling(batch_size)
        triton_heads.forward[grid](
            *(pre_WBS, h_WBS, mean, rstd, h_BS, self.matrix_HPP, self.gain_S, self.bias_S),
            *(pre_WBS if keep_WB is None else keep_WB, steps, batch_size, self.width),
            **tiling,
            **self.switches(keep_WB),
        )
        return h_WBS, Trail(pre_WBS, mean, rstd)

    def backward(
        self, d_h_WBS: Tensor, after_BS: Tensor, trail: Trail, keep_WB: Tensor | None
    ) -> Tensor:
        """See `Kernels`."""
        from ys_llm.ops.three_tier.gpu import triton_heads

        steps, batch_size, _ = d_h_WBS.shape
        d_pre_WBS = torch.empty_like(d_h_WBS)
        grid, tiling = self._tiling(batch_size)
        triton_heads.backward[grid](
            *(d_h_WBS, d_pre_WBS, *trail, after_BS, self.matrix_HPP, self.gain_S),
            *(d_h_WBS if keep_WB is None else keep_WB, steps, batch_size, self.width),
            **tiling,
            **self.switches(keep_WB),
        )
        return d_pre_WBS

    def _tiling(self, batch_size: int) -> tuple[tuple[int, int], dict[str, int]]:
        rows = 16 if self.n_heads * _tiles(batch_size, 16) <= _FEW_PROGRAMS else 32
        padded = _padded(self.width)
        grid = (self.n_heads, _tiles(batch_size, rows))
        return grid, {"PADDED": padded, "ROWS": rows, "num_warps": 4 if padded <= 64 else 8}


class DenseKernels(_Operands):
    """Steps of heads of any width, with their columns shared out over the device.

    All steps of a window are one launch where every program of it can be resident, and `together`
    is not refused; else each step is one.
    """

    def __init__(
        self, weights: Weights, precision: Precision, *, n_processors: int, together: bool = True
    ) -> None:
        super().__init__(weights, precision)
        self.norm = Norm(self.gain_S, self.bias_S, self.width)
        self.n_processors, self.together = n_processors, together

    def forward(
        self, pre_WBS: Tensor, h_BS: Tensor, keep_WB: Tensor | None
    ) -> tuple[Tensor, Trail]:
        """See `Kernels`."""
        from ys_llm.ops.three_tier.gpu import triton_dense

        operands = (self.matrix_HPP, self.gain_S, self.bias_S)
        arguments = (pre_WBS, h_BS, *self._exchange(pre_WBS, 1), *operands)
        steps = range(len(pre_WBS))
        self._launch(triton_dense.forward, steps, arguments, pre_WBS, keep_WB)
        h, mean, rstd = self.norm.forward(pre_WBS)
        return h, Trail(pre_WBS, mean, rstd)

    def backward(
        self, d_h_WBS: Tensor, after_BS: Tensor, trail: Trail, keep_WB: Tensor | None
    ) -> Tensor:
        """See `Kernels`."""
        from ys_llm.ops.three_tier.gpu import triton_dense

        exchange = self._exchange(d_h_WBS, 2)
        arguments = (d_h_WBS, *trail, after_BS, *exchange, self.matrix_HPP, self.gain_S)
        steps = range(len(d_h_WBS))[::-1]
        self._launch(triton_dense.backward, steps, arguments, d_h_WBS, keep_WB)
        return self.norm.backward(d_h_WBS, *trail)

    def _exchange(self, like_WBS: Tensor, n_published: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where programs leave for each other what they publish, in two slots that take turns."""
        _, batch_size, state = like_WBS.shape
        n_tiles = self.n_heads * _tiles(self.width, self._tiling(batch_size)["COLUMNS"])
        published = self.matrix_HPP.new_empty(n_published, 2, batch_size, state)
        means, sums = like_WBS.new_empty(2, 2, batch_size, n_tiles)
        return published, means, sums

    def _launch(
        self, kernel: Any, steps: range, arguments: tuple[Any, ...], like_WBS: Tensor,
        keep_WB: Tensor | None,
    ) -> None:  # fmt: skip
        """The kernel over these steps, in their order."""
        batch_size, tiling = like_WBS.shape[1], self._tiling(like_WBS.shape[1])
        groups = self.n_heads * _tiles(batch_size, tiling["ROWS"])
        programs = groups * _tiles(self.width, tiling["COLUMNS"])
        counters = torch.zeros(groups, dtype=torch.int32, device=like_WBS.device).view(torch.uint32)
        rest = (*arguments, like_WBS if keep_WB is None else keep_WB, batch_size)
        constants = {**tiling, **self.switches(keep_WB)}
        constants |= {"WIDTH": self.width, "N_HEADS": self.n_heads}
        if self.together and programs <= self.n_processors:
            together = {"launch_cooperative_grid": True}
            kernel[(programs,)](
                0, len(steps), counters, *rest, BEGINS=True, **constants, **together
            )
            return
        for t in steps:
            kernel[(programs,)](t, t + 1, counters, *rest, BEGINS=t == steps[0], **constants)

    def _tiling(self, batch_size: int) -> dict[str, int]:
        """The smallest tiles whose programs are all resident, else those that share most."""
        depth = 128 if self.matrix_HPP.dtype == torch.bfloat16 else 64
        for rows, columns in ((16, 16), (16, 32), (32, 32), (64, 32), (64, 64)):
            programs = self.n_heads * _tiles(batch_size, rows) * _tiles(self.width, columns)
            if programs <= self.n_processors:
                break
        deep = min(depth, _padded(self.width))
        return {"ROWS": rows, "COLUMNS": columns, "DEPTH": deep, "num_warps": 8 if rows > 32 else 4}


def kernels_for(weights: Weights, precision: Precision, device: torch.device) -> Kernels:
    """The kernels that fit these heads on this device."""
    if weights.state_controller.shape[-1] <= WIDEST_HEAD[precision]:
        return HeadKernels(weights, precision)
    n_processors = torch.cuda.get_device_properties(device).multi_processor_count
    return DenseKernels(weights, precision, n_processors=n_processors)


def _tiles(length: int, of: int) -> int:
    return -(-length // of)


def _padded(width: int) -> int:
    """The power of two, 16 or more, that a product takes."""
    return max(16, 1 << (width - 1).bit_length())
