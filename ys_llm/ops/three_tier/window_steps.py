"""The steps inside a window of the recurrence, and their backward pass, by torch's operators.

A step is one matmul and one LayerNorm over each head; see `windowed.py` for the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ys_llm.ops.three_tier.gemm import Gemm, transposed
from ys_llm.ops.three_tier.types import EPS, Weights


class Norm(NamedTuple):
    """LayerNorm per head with its statistics, and its backward pass."""

    gain: Tensor
    bias: Tensor
    width: int

    def forward(self, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """LN(pre), with the mean and 1 / sqrt(variance + EPS) of every head of every row."""
        if pre.shape[-1] == self.width:
            return torch.native_layer_norm(pre, [self.width], self.gain, self.bias, EPS)
        rows = pre.reshape(-1, self.width)
        x_hat, mean, rstd = torch.native_layer_norm(rows, [self.width], None, None, EPS)
        return torch.addcmul(self.bias, x_hat.view_as(pre), self.gain), mean, rstd

    def backward(self, grad: Tensor, pre: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """The gradient of `pre`."""
        backward = torch.ops.aten.native_layer_norm_backward
        wanted = [True, False, False]
        if pre.shape[-1] == self.width:
            dense = backward(grad, pre, [self.width], mean, rstd, self.gain, self.bias, wanted)
            return cast(Tensor, dense[0])
        rows, grads = pre.reshape(-1, self.width), (grad * self.gain).view(-1, self.width)
        per_head = backward(grads, rows, [self.width], mean, rstd, None, None, wanted)
        return cast(Tensor, per_head[0]).view_as(pre)

    def parameter_grads(
        self, grad: Tensor, pre: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of gain and bias, reduced over all rows at once."""
        if pre.shape[-1] == self.width:
            wanted = [False, True, True]
            backward = torch.ops.aten.native_layer_norm_backward
            mean, rstd = (stat.view(*pre.shape[:-1], 1) for stat in (mean, rstd))
            shape = [self.width]
            _, *fused = backward(grad, pre, shape, mean, rstd, self.gain, self.bias, wanted)
            return fused[0], fused[1]
        rows = pre.reshape(-1, self.width)
        x_hat = ((rows - mean.reshape(-1, 1)) * rstd.reshape(-1, 1)).view(-1, self.gain.shape[0])
        grad = grad.reshape(-1, self.gain.shape[0])
        return (grad * x_hat).sum(0), grad.sum(0)


class Resets(NamedTuple):
    """Where documents start: the state before these steps is 0.

    keep_TB: 0 at the first token of a document, else 1; None where none starts. has_reset: whether
    any row starts a document at this step.
    """

    keep_TB: Tensor | None
    has_reset: list[bool]

    def window(self, begin: int, end: int) -> "Resets":
        """The same for the steps of one window."""
        if self.keep_TB is None:
            return self
        return Resets(self.keep_TB[begin:end], self.has_reset[begin:end])

    def masked(self, t: int, value_BS: Tensor) -> Tensor:
        """value_BS with 0 in the rows that start a document at step t."""
        if self.keep_TB is None or not self.has_reset[t]:
            return value_BS
        return value_BS * self.keep_TB[t].unsqueeze(1)


def find_resets(starts_TB: Tensor | None, dtype: torch.dtype) -> Resets:
    """Reads `starts_TB`, so that steps without a start cost nothing."""
    if starts_TB is None:
        return Resets(None, [])
    return Resets((~starts_TB).to(dtype), starts_TB.any(1).tolist())


class StepTrail(NamedTuple):
    """What the steps of a window save for the backward pass, by step."""

    pre_WBS: Tensor
    mean: Tensor
    rstd: Tensor


class Steps(Protocol):
    """The W steps of one window, forward and backward.

    `gate`, where the state is gated: W + 1 x B x S, f of each step and of the step after the last.
    """

    def forward(
        self, pre_WBS: Tensor, h_BS: Tensor, resets: Resets, gate: Tensor | None
    ) -> tuple[Sequence[Tensor] | Tensor, StepTrail]:
        """Every h; `pre_WBS` is the addend on entry and the input of LN on return."""

    def backward(
        self,
        d_h_WBS: Tensor,
        after_BS: Tensor,
        trail: StepTrail,
        resets: Resets,
        gate: Tensor | None,
    ) -> Tensor:
        """d_pre; `d_h_WBS` is the gradient from outside on entry and complete on return.

        `after_BS`: d_pre of the step after the window, masked where a document starts there.
        """


class TorchSteps:
    """`Steps` by torch's operators."""

    def __init__(self, weights: Weights, gemm: Gemm) -> None:
        self.gemm, self.controller = gemm, gemm.operand(weights.state_controller)
        self.norm = Norm(weights.gain, weights.bias, weights.state_controller.shape[-1])

    def forward(
        self, pre_WBS: Tensor, h_BS: Tensor, resets: Resets, gate: Tensor | None
    ) -> tuple[Sequence[Tensor] | Tensor, StepTrail]:
        """See `Steps`."""
        states, means, rstds = [], [], []
        for t, pre in enumerate(pre_WBS):
            h_BS = resets.masked(t, h_BS)
            h_BS = h_BS if gate is None else h_BS * gate[t]
            self.gemm.add_matmul(pre, h_BS, self.controller, out=pre)
            h_BS, mean, rstd = self.norm.forward(pre)
            states.append(h_BS)
            means.append(mean)
            rstds.append(rstd)
        return states, StepTrail(pre_WBS, torch.stack(means), torch.stack(rstds))

    def backward(
        self,
        d_h_WBS: Tensor,
        after_BS: Tensor,
        trail: StepTrail,
        resets: Resets,
        gate: Tensor | None,
    ) -> Tensor:
        """See `Steps`."""
        back, d_pre_WBS = transposed(self.controller), torch.empty_like(d_h_WBS)
        for t in reversed(range(len(d_h_WBS))):
            d_h = d_h_WBS[t]
            if gate is None:
                self.gemm.add_matmul(d_h, after_BS, back, out=d_h)
            else:
                d_h.addcmul_(self.gemm.matmul(after_BS, back), gate[t + 1])
            d_pre = self.norm.backward(d_h, trail.pre_WBS[t], trail.mean[t], trail.rstd[t])
            d_pre_WBS[t] = d_pre
            after_BS = resets.masked(t, d_pre)
        return d_pre_WBS
