"""Matmuls of the windowed recurrence: a small matrix times the same weights at every step."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ys_llm.ops.precision import Precision

ONEDNN_SMALLEST = 128 * 128  # numbers in a matrix; below it oneDNN's call costs more than it saves


class Gemm(NamedTuple):
    """How matmuls are computed, chosen by device, dtype and shape alone.

    On a CPU in float32, large matrices are multiplied by oneDNN's kernel, called directly: exact
    float32, and faster than torch's default on AMD Zen 5 (LOG.md, section 18). torch's own switch
    for it is global to the process and may also round operands to bfloat16; it stays as it is.
    """

    precision: Precision

    def operand(self, matrix: Tensor) -> Tensor:
        """A weight in the form in which the loop multiplies by it; computed once per pass."""
        return matrix.bfloat16() if self._casts(matrix) else matrix

    def matmul(self, x: Tensor, operand: Tensor) -> Tensor:
        """x @ operand in the dtype of x."""
        if operand.dim() == 3:
            x_heads = x.unflatten(-1, (len(operand), -1)).transpose(-3, -2).to(operand.dtype)
            blocks: Tensor = (x_heads @ operand).transpose(-3, -2).flatten(-2)
            return blocks.to(x.dtype)
        if _onednn_pays(x, operand):
            return _onednn_matmul(x, operand)
        return (x.to(operand.dtype) @ operand).to(x.dtype)

    def add_matmul(self, addend: Tensor, x: Tensor, operand: Tensor, *, out: Tensor) -> Tensor:
        """out = addend + x @ operand, accumulated in the addend's dtype."""
        is_plain = operand.dim() == 2 and operand.dtype == x.dtype
        if is_plain and not _onednn_pays(x, operand):
            return torch.addmm(addend, x, operand, out=out)
        return torch.add(addend, self.matmul(x, operand), out=out)

    def weight_grad(self, x_NS: Tensor, grad_NS: Tensor, like: Tensor) -> Tensor:
        """The gradient of `like` in x @ like: one matmul over all N = T B rows."""
        if self.precision == "bf16" and x_NS.dtype == torch.float32:
            x_NS, grad_NS = x_NS.bfloat16(), grad_NS.bfloat16()
        if like.dim() == 2:
            return (x_NS.t() @ grad_NS).to(like.dtype)
        heads = len(like)
        x_HNP, grad_HNP = (v.unflatten(-1, (heads, -1)).transpose(0, 1) for v in (x_NS, grad_NS))
        per_head: Tensor = x_HNP.transpose(1, 2) @ grad_HNP
        return per_head.to(like.dtype)

    def _casts(self, matrix: Tensor) -> bool:
        """Not on a CPU: a bfloat16 matmul there rounds its sum too, 7 % off after 130 steps."""
        on_cpu = matrix.device.type == "cpu"
        return self.precision == "bf16" and matrix.dtype == torch.float32 and not on_cpu


def transposed(operand: Tensor) -> Tensor:
    """The matrix, or each head's block of it, transposed."""
    return operand.transpose(-2, -1)


def _onednn_pays(x: Tensor, operand: Tensor) -> bool:
    return (
        operand.dim() == 2
        and operand.numel() >= ONEDNN_SMALLEST
        and x.dtype == operand.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous()
        and (operand.is_contiguous() or operand.t().is_contiguous())
        and torch.backends.mkldnn.is_available()
    )


def _onednn_matmul(x: Tensor, operand: Tensor) -> Tensor:
    """oneDNN's linear layer, which multiplies by the transposed weight."""
    linear = cast(Any, torch.ops.mkldnn)._linear_pointwise
    return cast(Tensor, linear(x, operand.t(), None, "none", [], ""))
