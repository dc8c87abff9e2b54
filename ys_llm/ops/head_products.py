"""The matmuls of a head over a vocabulary, for one chunk of rows after another.

    z = x W^T;   dx = dz W;   dW = sum of dz^T x        x: n x D, W: V x D, z: n x V

By torch, or by the float32 kernels where they are faster: these pack W once for all chunks, and the
sum stays in their layout until the last one.
"""

import torch
from torch import Tensor

from ys_llm.ops import rowwise
from ys_llm.ops.matmul import kernel_pays, multiply, pack
from ys_llm.ops.weight_grad import SumF32


class ByTorch:
    """In the dtype of x and W; gradients of W are summed in `sum_dtype`."""

    def __init__(self, weight_VD: Tensor, sum_dtype: torch.dtype) -> None:
        self._weight_VD, self._sum_dtype = weight_VD, sum_dtype
        self._d_weight_VD: Tensor | None = None

    def logits(self, x_ND: Tensor) -> Tensor:
        """The logits of a chunk."""
        return x_ND @ self._weight_VD.t()

    def d_x(self, d_logits_NV: Tensor, out_ND: Tensor) -> None:
        """Writes the gradient of a chunk."""
        torch.mm(d_logits_NV, self._weight_VD, out=out_ND)

    def add_d_weight(self, d_logits_NV: Tensor, x_ND: Tensor) -> None:
        """Adds what a chunk gives to the gradient of W."""
        rowwise.add_to(self.d_weight(), d_logits_NV.t() @ x_ND)

    def d_weight(self) -> Tensor:
        """The sum over all chunks so far."""
        if self._d_weight_VD is None:
            self._d_weight_VD = torch.zeros_like(self._weight_VD, dtype=self._sum_dtype)
        return self._d_weight_VD


class ByKernel:
    """As `ByTorch`, in float32."""

    def __init__(self, weight_VD: Tensor) -> None:
        self._weight_VD = weight_VD
        self._down: Tensor | None = None  # W^T and W as the kernel reads them
        self._up: Tensor | None = None
        self._sum: SumF32 | None = None

    def logits(self, x_ND: Tensor) -> Tensor:
        """The logits of a chunk."""
        if self._down is None:
            self._down = pack(self._weight_VD.t())
        return multiply(x_ND, self._down, x_ND.new_empty(len(x_ND), len(self._weight_VD)))

    def d_x(self, d_logits_NV: Tensor, out_ND: Tensor) -> None:
        """Writes the gradient of a chunk."""
        if self._up is None:
            self._up = pack(self._weight_VD)
        multiply(d_logits_NV, self._up, out_ND)

    def add_d_weight(self, d_logits_NV: Tensor, x_ND: Tensor) -> None:
        """Adds what a chunk gives to the gradient of W."""
        if self._sum is None:
            self._sum = SumF32(*self._weight_VD.shape)
        self._sum.add(d_logits_NV, x_ND)

    def d_weight(self) -> Tensor:
        """The sum over all chunks so far."""
        return (
            self._weight_VD.new_zeros(self._weight_VD.shape)
            if self._sum is None
            else self._sum.total()
        )


def products(
    x_ND: Tensor, weight_VD: Tensor, chunk: int, sum_dtype: torch.dtype
) -> ByTorch | ByKernel:
    """The faster one for chunks of this many rows of x, which is contiguous."""
    if kernel_pays(x_ND[:chunk], weight_VD, weight_VD.numel()) and sum_dtype == torch.float32:
        return ByKernel(weight_VD)
    return ByTorch(weight_VD, sum_dtype)
