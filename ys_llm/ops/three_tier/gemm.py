"""How the products of a recurrence are computed: operand precision, and whose kernel.

A loop over time multiplies a small matrix by the same weights at every step, so the path is settled
once, by `choose`, and each pass prepares its weights once (`Gemm.operand`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ys_llm.ops.precision import Precision as Precision

BF16_ERROR = 1e-2  # of a product with bfloat16 operands; 2.4e-3 is what their 8 bits give
ONEDNN_GAIN = 1.05  # a smaller gain is noise of the probe


@contextmanager
def _onednn_products() -> Iterator[None]:
    settings = cast(Any, torch.backends.mkldnn).matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class Gemm(NamedTuple):
    """How a product is computed: operand precision, and whether oneDNN is asked to do it."""

    precision: Precision
    onednn: bool

    def context(self, x: Tensor) -> Any:
        """Everything that multiplies by this path happens inside this context."""
        return _onednn_products() if self.onednn and x.device.type == "cpu" else nullcontext()

    def operand(self, matrix: Tensor) -> Tensor:
        """A weight in the form in which the loop multiplies by it; made once per pass."""
        return matrix.bfloat16() if self._casts(matrix) else matrix

    def product(self, x: Tensor, operand: Tensor) -> Tensor:
        """x @ operand in the dtype of x."""
        if operand.dim() == 3:
            heads = operand.shape[0]
            x_heads = x.unflatten(-1, (heads, -1)).transpose(-3, -2).to(operand.dtype)
            blocks: Tensor = (x_heads @ operand).transpose(-3, -2).flatten(-2)
            return blocks.to(x.dtype)
        return (x.to(operand.dtype) @ operand).to(x.dtype)

    def add_product(self, addend: Tensor, x: Tensor, operand: Tensor, *, out: Tensor) -> Tensor:
        """out = addend + x @ operand, accumulated in the addend's dtype."""
        if operand.dim() == 2 and operand.dtype == x.dtype:
            return torch.addmm(addend, x, operand, out=out)
        return torch.add(addend, self.product(x, operand), out=out)

    def weight_grad(self, x_NS: Tensor, grad_NS: Tensor, like: Tensor) -> Tensor:
        """The gradient of `like` in x @ like, one product over all N = T B rows."""
        if self.precision == "bf16" and x_NS.dtype == torch.float32:
            x_NS, grad_NS = x_NS.bfloat16(), grad_NS.bfloat16()
        if like.dim() == 2:
            return (x_NS.t() @ grad_NS).to(like.dtype)
        heads = like.shape[0]
        x_HNP, grad_HNP = (v.unflatten(-1, (heads, -1)).transpose(0, 1) for v in (x_NS, grad_NS))
        per_head: Tensor = x_HNP.transpose(1, 2) @ grad_HNP
        return per_head.to(like.dtype)

    def _casts(self, matrix: Tensor) -> bool:
        """Not on CPU: a bfloat16 product there gives a bfloat16 sum, 7 % off after 130 steps."""
        on_cpu = matrix.device.type == "cpu"
        return self.precision == "bf16" and matrix.dtype == torch.float32 and not on_cpu


def transposed(operand: Tensor) -> Tensor:
    """The matrix, or each head's block of it, transposed."""
    return operand.transpose(-2, -1)


def choose(
    *, batch_size: int, d_state: int, precision: Precision, device: torch.device
) -> tuple[str, str]:
    """Whose products the windowed pass takes on this machine, and why, by a timed probe.

    oneDNN is taken where it is faster and errs, against float64, no more than the precision allows:
    three times as much as torch's default product in fp32. Its switch's name tells neither.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return "windowed", "no oneDNN products on this device"
    generator = torch.Generator().manual_seed(0)
    x_BS, a_SS = (torch.randn(n, d_state, generator=generator) for n in (batch_size, d_state))
    plain, onednn = Gemm(precision, onednn=False), Gemm(precision, onednn=True)
    plain_seconds, plain_error = _probe(plain, x_BS, a_SS)
    onednn_seconds, onednn_error = _probe(onednn, x_BS, a_SS)
    ratio = plain_seconds / onednn_seconds
    if onednn_error > (3 * plain_error if precision == "fp32" else BF16_ERROR):
        return "windowed", f"oneDNN rounds: error {onednn_error:.0e}, default {plain_error:.0e}"
    taken = "windowed_onednn" if ratio >= ONEDNN_GAIN else "windowed"
    return taken, f"oneDNN has {ratio:.2f} times the default product's speed"


def _probe(gemm: Gemm, x_BS: Tensor, a_SS: Tensor) -> tuple[float, float]:
    """Best seconds per product of five rounds of twenty, and its relative error."""
    out, rounds = torch.empty_like(x_BS), []
    with torch.inference_mode(), gemm.context(x_BS):
        operand = gemm.operand(a_SS)
        for _ in range(6):  # the first round creates oneDNN's kernels and is dropped
            begin = time.perf_counter()
            for _ in range(20):
                gemm.add_product(x_BS, x_BS, operand, out=out)
            rounds.append((time.perf_counter() - begin) / 20)
    exact = x_BS.double() + x_BS.double() @ a_SS.double()
    return min(rounds[1:]), float((out - exact).norm() / exact.norm())
