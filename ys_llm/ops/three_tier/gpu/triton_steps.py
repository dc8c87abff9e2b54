"""Experimental: the steps inside a window by Triton kernels; `windowed.py` does the rest.

Narrow heads: one program per head and tile of rows; programs are independent. Wide heads: a head's
columns are split over programs, with one barrier per step.

Tilings are set by hand, from the shape alone: nothing is tuned at run time, and neither a new batch
size nor a new length recompiles a kernel. Triton is imported when a pass begins.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.types import Weights
from ys_llm.ops.three_tier.window_steps import Norm, Resets, Steps, StepTrail

WIDEST_HEAD = {"bf16": 128, "fp32": 64}  # that one program holds; float32 spills registers at 128
NO_GATE = "the steps of a gated state are torch's"
_FEW_PROGRAMS = 132  # processors of an H100


class Operands(NamedTuple):
    """What both kinds of kernels multiply by, and its shape."""

    matrix_HPP: Tensor
    gain_S: Tensor
    bias_S: Tensor
    n_heads: int
    width: int

    def constants(self, keep_WB: Tensor | None) -> dict[str, Any]:
        """The constants that both kinds of kernels are compiled with."""
        # Only Triton's interpreter takes CPU tensors, and it has no bfloat16 matmul.
        matrix = self.matrix_HPP
        widen = matrix.dtype == torch.bfloat16 and matrix.device.type == "cpu"
        return {"MASKED": keep_WB is not None, "WIDEN": widen}


def operands_of(weights: Weights, precision: Precision) -> Operands:
    """The state controller, rounded where the precision asks for it, and the LayerNorm."""
    controller = weights.state_controller
    if precision == "bf16" and controller.dtype == torch.float32:
        controller = controller.bfloat16()
    matrix_HPP = controller.contiguous().view(-1, *controller.shape[-2:])
    n_heads, width = matrix_HPP.shape[:2]
    return Operands(
        matrix_HPP, weights.gain.contiguous(), weights.bias.contiguous(), n_heads, width
    )


class HeadSteps:
    """`Steps` of heads of width up to WIDEST_HEAD, each by programs of its own."""

    def __init__(self, operands: Operands) -> None:
        self.operands = operands

    def forward(
        self, pre_WBS: Tensor, h_BS: Tensor, resets: Resets, gate: Tensor | None = None
    ) -> tuple[Tensor, StepTrail]:
        """See `Steps`."""
        assert gate is None, NO_GATE
        from ys_llm.ops.three_tier.gpu import triton_heads

        operands, keep_WB = self.operands, resets.keep_TB
        matrix_HPP, gain_S, bias_S, n_heads, width = operands
        steps, batch_size, _ = pre_WBS.shape
        h_WBS = torch.empty_like(pre_WBS)
        mean, rstd = pre_WBS.new_empty(2, steps, batch_size, n_heads)
        grid, tiling = self.tiling(batch_size)
        triton_heads.forward[grid](
            *(pre_WBS, h_WBS, mean, rstd, h_BS.contiguous(), matrix_HPP, gain_S, bias_S),
            *(pre_WBS if keep_WB is None else keep_WB, steps, batch_size, width),
            **tiling,
            **operands.constants(keep_WB),
        )
        return h_WBS, StepTrail(pre_WBS, mean, rstd)

    def backward(
        self,
        d_h_WBS: Tensor,
        after_BS: Tensor,
        trail: StepTrail,
        resets: Resets,
        gate: Tensor | None = None,
    ) -> Tensor:
        """See `Steps`."""
        assert gate is None, NO_GATE
        from ys_llm.ops.three_tier.gpu import triton_heads

        operands, keep_WB = self.operands, resets.keep_TB
        steps, batch_size, _ = d_h_WBS.shape
        d_pre_WBS = torch.empty_like(d_h_WBS)
        grid, tiling = self.tiling(batch_size)
        triton_heads.backward[grid](
            *(d_h_WBS, d_pre_WBS, *trail, after_BS, operands.matrix_HPP, operands.gain_S),
            *(d_h_WBS if keep_WB is None else keep_WB, steps, batch_size, operands.width),
            **tiling,
            **operands.constants(keep_WB),
        )
        return d_pre_WBS

    def tiling(self, batch_size: int) -> tuple[tuple[int, int], dict[str, int]]:
        """The grid of programs, and the constants of its tiles."""
        n_heads, padded = self.operands.n_heads, _padded(self.operands.width)
        rows = 16 if n_heads * _tiles(batch_size, 16) <= _FEW_PROGRAMS else 32
        grid = (n_heads, _tiles(batch_size, rows))
        return grid, {"PADDED": padded, "ROWS": rows, "num_warps": 4 if padded <= 64 else 8}


class DenseSteps:
    """`Steps` of heads of any width, with their columns split over the device.

    All steps of a window are one launch if all of its programs can be resident at once and
    `together` allows it; otherwise each step is a launch.
    """

    def __init__(self, operands: Operands, *, n_processors: int, together: bool = True) -> None:
        self.operands = operands
        self.norm = Norm(operands.gain_S, operands.bias_S, operands.width)
        self.n_processors, self.together = n_processors, together

    def forward(
        self, pre_WBS: Tensor, h_BS: Tensor, resets: Resets, gate: Tensor | None = None
    ) -> tuple[Tensor, StepTrail]:
        """See `Steps`."""
        assert gate is None, NO_GATE
        from ys_llm.ops.three_tier.gpu import triton_dense

        exchange = self._exchange(pre_WBS, 1)
        arguments = (pre_WBS, h_BS.contiguous(), *exchange, *self.operands[:3])
        steps = range(len(pre_WBS))
        self._launch(triton_dense.forward, steps, arguments, pre_WBS, resets.keep_TB)
        h, mean, rstd = self.norm.forward(pre_WBS)
        return h, StepTrail(pre_WBS, mean, rstd)

    def backward(
        self,
        d_h_WBS: Tensor,
        after_BS: Tensor,
        trail: StepTrail,
        resets: Resets,
        gate: Tensor | None = None,
    ) -> Tensor:
        """See `Steps`."""
        assert gate is None, NO_GATE
        from ys_llm.ops.three_tier.gpu import triton_dense

        exchange = self._exchange(d_h_WBS, 2)
        arguments = (d_h_WBS, *trail, after_BS, *exchange, *self.operands[:2])
        steps = range(len(d_h_WBS))[::-1]
        self._launch(triton_dense.backward, steps, arguments, d_h_WBS, resets.keep_TB)
        return self.norm.backward(d_h_WBS, *trail)

    def _exchange(self, like_WBS: Tensor, n_published: int) -> tuple[Tensor, Tensor, Tensor]:
        """Buffers through which programs exchange what they publish: two slots, used in turn."""
        operands, (_, batch_size, state) = self.operands, like_WBS.shape
        n_tiles = operands.n_heads * _tiles(operands.width, self.tiling(batch_size)["COLUMNS"])
        published = operands.matrix_HPP.new_empty(n_published, 2, batch_size, state)
        means, sums = like_WBS.new_empty(2, 2, batch_size, n_tiles)
        return published, means, sums

    def _launch(
        self, kernel: Any, steps: range, arguments: tuple[Any, ...], like_WBS: Tensor,
        keep_WB: Tensor | None,
    ) -> None:  # fmt: skip
        """Run the kernel over these steps, in order."""
        operands, batch_size = self.operands, like_WBS.shape[1]
        tiling = self.tiling(batch_size)
        groups = operands.n_heads * _tiles(batch_size, tiling["ROWS"])
        programs = groups * _tiles(operands.width, tiling["COLUMNS"])
        counters = torch.zeros(groups, dtype=torch.int32, device=like_WBS.device).view(torch.uint32)
        rest = (*arguments, like_WBS if keep_WB is None else keep_WB, batch_size)
        constants = {**tiling, **operands.constants(keep_WB)}
        constants |= {"WIDTH": operands.width, "N_HEADS": operands.n_heads}
        if self.together and programs <= self.n_processors:
            together = {"launch_cooperative_grid": True}
            kernel[(programs,)](
                0, len(steps), counters, *rest, BEGINS=True, **constants, **together
            )
            return
        for t in steps:
            kernel[(programs,)](t, t + 1, counters, *rest, BEGINS=t == steps[0], **constants)

    def tiling(self, batch_size: int) -> dict[str, int]:
        """Constants of the smallest tiles whose programs are all resident, else the largest."""
        depth = 128 if self.operands.matrix_HPP.dtype == torch.bfloat16 else 64
        for rows, columns in ((16, 16), (16, 32), (32, 32), (64, 32), (64, 64)):
            tiles = _tiles(batch_size, rows) * _tiles(self.operands.width, columns)
            programs = self.operands.n_heads * tiles
            if programs <= self.n_processors:
                break
        deep = min(depth, _padded(self.operands.width))
        return {"ROWS": rows, "COLUMNS": columns, "DEPTH": deep, "num_warps": 8 if rows > 32 else 4}


def steps_for(weights: Weights, precision: Precision, device: torch.device) -> Steps:
    """The kernels that fit these heads on this device."""
    operands = operands_of(weights, precision)
    if operands.width <= WIDEST_HEAD[precision]:
        return HeadSteps(operands)
    n_processors = torch.cuda.get_device_properties(device).multi_processor_count
    return DenseSteps(operands, n_processors=n_processors)


def _tiles(length: int, of: int) -> int:
    return -(-length // of)


def _padded(width: int) -> int:
    """The power of two, 16 or more, that tl.dot takes."""
    return max(16, 1 << (width - 1).bit_length())
