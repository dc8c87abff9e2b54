"""The three-tier recurrence window by window, with a hand-written backward pass.

L and G change only at the end of a window, so inside one they are part of the drive. What remains
per step: forward, one matmul and one LayerNorm; backward, the LayerNorm's input gradient and one
matmul,

    dpre_t = LN'(dh_t);   dh_{t-1} = grad_{t-1} + dpre_t state_controller^T

The gradient of every weight is one matmul or reduction over all steps after the loop. The equation
is that of `reference.py`. Runs on any device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.gemm import Gemm, transposed
from ys_llm.ops.three_tier.reference import drive_and_gate
from ys_llm.ops.three_tier.types import (
    State,
    Summary,
    Weights,
    flat,
    one_clock,
    unflat,
)
from ys_llm.ops.three_tier.window_steps import (
    Norm,
    Resets,
    Steps,
    StepTrail,
    TorchSteps,
    find_resets,
)


def windowed(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """As `reference`.

    On a CPU matmuls inside the loop are float32 whatever the precision, because a bfloat16 matmul
    there rounds its sum as well; elsewhere their operands are bfloat16 if `precision` is "bf16".
    """

    def begin(own: Weights, starts_TB: Tensor | None) -> "WindowedPass":
        """The pass over these weights."""
        resets = find_resets(starts_TB, own.gain.dtype)
        steps = TorchSteps(own, Gemm(precision))
        return WindowedPass(own, Gemm(precision), one_clock(state), resets, steps)

    return run_pass(begin, drive_TBS, weights, state, starts_TB)


class _Update(NamedTuple):
    """What one update of a summary saves for its backward pass."""

    old: Tensor
    y: Tensor
    pre: Tensor
    normed: Tensor
    mean: Tensor
    rstd: Tensor


class _UpdateGrads(NamedTuple):
    """The gradients of one update from which those of its weights are formed."""

    new: Tensor
    normed: Tensor
    pre: Tensor


class _SummaryTier:
    """One summary's weights as operands, and its update forward and backward."""

    def __init__(self, summary: Summary, gemm: Gemm, n_heads: int) -> None:
        self.gemm, self.summary = gemm, summary
        self.norm = Norm(summary.gain, summary.bias, len(summary.gain) // n_heads)
        self.operands = [gemm.operand(matrix) for matrix in summary[:3]]

    def update(self, old_BS: Tensor, y_BS: Tensor) -> tuple[Tensor, _Update]:
        """LN(old A + y B) C."""
        controller, influencer, shaper = self.operands
        pre = self.gemm.matmul(old_BS, controller)
        pre = self.gemm.add_matmul(pre, y_BS, influencer, out=pre)
        normed, mean, rstd = self.norm.forward(pre)
        return self.gemm.matmul(normed, shaper), _Update(old_BS, y_BS, pre, normed, mean, rstd)

    def update_backward(
        self, d_new: Tensor, update: _Update
    ) -> tuple[Tensor, Tensor, _UpdateGrads]:
        """Gradients of the old summary and of y, and those needed for the weights' gradients."""
        controller, influencer, shaper = self.operands
        d_normed = self.gemm.matmul(d_new, transposed(shaper))
        d_pre = self.norm.backward(d_normed, update.pre, update.mean, update.rstd)
        d_old = self.gemm.matmul(d_pre, transposed(controller))
        d_y = self.gemm.matmul(d_pre, transposed(influencer))
        return d_old, d_y, _UpdateGrads(d_new, d_normed, d_pre)

    def weight_grads(self, trail: list[tuple[_Update, _UpdateGrads]]) -> tuple[Tensor, ...]:
        """Gradients of A, B, C, gain and bias: one matmul each over all updates."""
        if not trail:
            return tuple(torch.zeros_like(weight) for weight in self.summary[:5])
        updates, all_grads = zip(*trail, strict=True)
        old, y, pre, normed, mean, rstd = map(torch.cat, zip(*updates, strict=True))
        d_new, d_normed, d_pre = map(torch.cat, zip(*all_grads, strict=True))
        a, b, c = self.summary[:3]
        grad = self.gemm.weight_grad
        return (
            grad(old, d_pre, a),
            grad(y, d_pre, b),
            grad(normed, d_new, c),
            *self.norm.parameter_grads(d_normed, pre, mean, rstd),
        )


@dataclass
class _Window:
    """One window of a pass: steps begin to end, and what they save for the backward pass."""

    begin: int
    end: int
    reset_mask: Tensor | None  # W x B x 1: 0 from a document's start on; None: none starts
    summary_sum: Tensor
    trail: StepTrail
    updates: dict[int, _Update] = field(default_factory=dict)  # by tier


@dataclass(frozen=True)
class _Saved:
    """What the forward pass saves for the backward pass."""

    h0: Tensor
    pre: Tensor
    gate: Tensor | None  # T + 1 x B x S
    windows: list[_Window]


class Pass(Protocol):
    """A forward pass over T steps and its backward pass."""

    def forward(
        self, drive: Tensor, h: Tensor, summaries: list[Tensor], /
    ) -> tuple[Tensor, list[Tensor]]:
        """Every h, and L and G after the last step."""

    def backward(
        self, h: Tensor, grad_h: Tensor, grad_summaries: list[Tensor], /
    ) -> list[Tensor | None]:
        """Gradients of drive, h0, L0, G0 and every weight, in the order of `types.flat`."""


class WindowedPass:
    """A `Pass` window by window: `steps` inside windows, torch's operators between them."""

    def __init__(
        self, weights: Weights, gemm: Gemm, position: int, resets: Resets, steps: Steps
    ) -> None:
        self.weights, self.gemm, self.position = weights, gemm, position
        self.resets, self.steps = resets, steps
        self.shaper = None if weights.output_shaper is None else gemm.operand(weights.output_shaper)
        self.tiers = [s and _SummaryTier(s, gemm, weights.n_heads) for s in weights.summaries]

    def forward(
        self, drive: Tensor, h: Tensor, summaries: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Pass`."""
        drive, gate = drive_and_gate(drive, self.weights)
        gate = None if gate is None else torch.cat([gate, torch.ones_like(gate[:1])])
        pre = torch.empty_like(drive, memory_format=torch.contiguous_format)
        self._saved = _Saved(h, pre, gate, [])
        states = [h]
        for begin, end, due in self._windows(len(drive)):
            resets = self.resets.window(begin, end)
            mask, summary_sum = _reset_mask(resets), summaries[0] + summaries[1]
            pre_WBS = pre[begin:end]
            torch.add(drive[begin:end], self._addend(summary_sum, mask), out=pre_WBS)
            window_gate = None if gate is None else gate[begin : end + 1]
            window_states, trail = self.steps.forward(pre_WBS, states[-1], resets, window_gate)
            states += window_states
            window = _Window(begin, end, mask, summary_sum, trail)
            summaries = self._updated(window, summaries, states[-1], due)
            self._saved.windows.append(window)
        return torch.stack(states[1:]), summaries

    def _windows(self, length: int) -> list[tuple[int, int, list[int]]]:
        """(begin, end, tiers to update after step end - 1), in steps of this pass."""
        due = [
            [i for i, s in enumerate(self.weights.summaries) if s and (t + 1) % s.every == 0]
            for t in range(self.position, self.position + length)
        ]
        ends = [t + 1 for t in range(length) if due[t] or t == length - 1]
        return [(b, e, due[e - 1]) for b, e in zip([0, *ends[:-1]], ends, strict=True)]

    def _addend(self, summary_sum: Tensor, reset_mask: Tensor | None) -> Tensor:
        """drive_bias + summary_scale * (L + G) of a window; L + G is 0 once a document starts."""
        summary_scale, drive_bias = self.weights.summary_scale, self.weights.drive_bias
        addend = summary_sum if summary_scale is None else summary_scale * summary_sum
        addend = addend if reset_mask is None else reset_mask * addend
        return addend if drive_bias is None else addend + drive_bias

    def _updated(
        self, window: _Window, summaries: list[Tensor], h: Tensor, due: list[int]
    ) -> list[Tensor]:
        """L and G after a window; the trail of their updates goes into `window`."""
        mask = window.reset_mask
        summaries = [value if mask is None else value * mask[-1] for value in summaries]
        if due:
            y = h if self.shaper is None else self.gemm.matmul(h, self.shaper)
            for i in due:
                tier = cast(_SummaryTier, self.tiers[i])
                summaries[i], window.updates[i] = tier.update(summaries[i], y)
        return summaries

    def backward(
        self, h: Tensor, grad_h: Tensor, grad_summaries: list[Tensor]
    ) -> list[Tensor | None]:
        """See `Pass`."""
        grads = _Grads(
            grad_h.clone(memory_format=torch.contiguous_format),
            torch.empty_like(self._saved.pre),
            list(grad_summaries),
        )
        summary_scale, gate = self.weights.summary_scale, self._saved.gate
        d_summary_scale = None if summary_scale is None else torch.zeros_like(summary_scale)
        after = torch.zeros_like(self._saved.h0)
        for window in reversed(self._saved.windows):
            begin, end = window.begin, window.end
            self._updates_backward(window, grads)
            resets = self.resets.window(begin, end)
            window_gate = None if gate is None else gate[begin : end + 1]
            d_h_WBS, trail = grads.h[begin:end], window.trail
            d_pre = self.steps.backward(d_h_WBS, after, trail, resets, window_gate)
            grads.pre[begin:end] = d_pre
            after = resets.masked(0, d_pre[0])
            self._addend_backward(window, d_pre, grads, d_summary_scale)
        d_h0 = self.gemm.matmul(after, transposed(self.gemm.operand(self.weights.state_controller)))
        d_h0 = d_h0 if gate is None else d_h0 * gate[0]
        d_drive, *d_biases = self._drive_grads(h, grads)
        main = [*self._main_grads(h, grads), d_summary_scale, *d_biases]
        return [d_drive, d_h0, *grads.summaries, *main, *self._tier_grads(grads)]

    def _updates_backward(self, window: _Window, grads: "_Grads") -> None:
        """Through the updates at the end of a window."""
        d_ys = []
        for i, update in window.updates.items():
            tier = cast(_SummaryTier, self.tiers[i])
            grads.summaries[i], d_y, of_update = tier.update_backward(grads.summaries[i], update)
            grads.updates[i].append((update, of_update))
            d_ys.append(d_y)
        if d_ys:
            d_y = torch.stack(d_ys).sum(0)
            grads.y.append((window.end - 1, d_y))
            d_h = d_y if self.shaper is None else self.gemm.matmul(d_y, transposed(self.shaper))
            grads.h[window.end - 1] += d_h

    def _addend_backward(
        self, window: _Window, d_pre: Tensor, grads: "_Grads", d_summary_scale: Tensor | None
    ) -> None:
        """Through what L and G add to the steps of a window; adds to `d_summary_scale` in place."""
        mask, summary_scale = window.reset_mask, self.weights.summary_scale
        if mask is not None:
            grads.summaries = [grad * mask[-1] for grad in grads.summaries]
            d_pre = d_pre * mask
        d_sum = d_pre.sum(0)
        if d_summary_scale is not None and summary_scale is not None:
            d_summary_scale += (d_sum * window.summary_sum).sum(0)
            d_sum = d_sum * summary_scale
        grads.summaries = [grad + d_sum for grad in grads.summaries]

    def _drive_grads(self, h: Tensor, grads: "_Grads") -> list[Tensor | None]:
        """Gradients of the drive, with the gate's input beside it, and of both biases."""
        d_pre, gate = grads.pre, self._saved.gate
        d_bias = None if self.weights.drive_bias is None else d_pre.sum((0, 1))
        if gate is None:
            return [d_pre, d_bias, None]
        back = transposed(self.gemm.operand(self.weights.state_controller))
        d_kept = self.gemm.matmul(self._masked(d_pre).flatten(0, 1), back).view_as(h)
        f_TBS, before = gate[:-1], torch.cat([self._saved.h0.unsqueeze(0), h[:-1]])
        d_gate = d_kept * before * (1 - f_TBS.square())
        return [torch.cat([d_pre, d_gate], -1), d_bias, d_gate.sum((0, 1))]

    def _masked(self, d_pre: Tensor) -> Tensor:
        """0 where a document starts, whose first step reads no state."""
        keep_TB = self.resets.keep_TB
        return d_pre if keep_TB is None else d_pre * keep_TB.unsqueeze(2)

    def _main_grads(self, h: Tensor, grads: "_Grads") -> list[Tensor | None]:
        """Gradients of the state controller, gain, bias and output shaper."""
        masked, gate, read = self._masked(grads.pre), self._saved.gate, [self._saved.h0, h[:-1]]
        if gate is not None:
            read = [read[0] * gate[0], read[1] * gate[1:-1]]
        grad, controller = self.gemm.weight_grad, self.weights.state_controller
        d_controller = grad(read[0], masked[0], controller)
        d_controller += grad(read[1].flatten(0, 1), masked[1:].flatten(0, 1), controller)
        trails = [window.trail for window in self._saved.windows]
        mean, rstd = (torch.cat([trail[i] for trail in trails]) for i in (1, 2))
        norm = Norm(self.weights.gain, self.weights.bias, controller.shape[-1])
        d_gain, d_bias = norm.parameter_grads(grads.h, self._saved.pre, mean, rstd)
        shaper = self.weights.output_shaper
        d_shaper = None if shaper is None else torch.zeros_like(shaper)
        if d_shaper is not None and grads.y:
            steps, d_ys = zip(*grads.y, strict=True)
            d_shaper = grad(torch.cat([h[t] for t in steps]), torch.cat(d_ys), d_shaper)
        return [d_controller, d_gain, d_bias, d_shaper]

    def _tier_grads(self, grads: "_Grads") -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for tier, trail in zip(self.tiers, grads.updates, strict=True):
            found += [None] * 5 if tier is None else tier.weight_grads(trail)
        return found


@dataclass
class _Grads:
    """Gradients while the backward pass moves from the last window to the first."""

    h: Tensor
    pre: Tensor
    summaries: list[Tensor]
    y: list[tuple[int, Tensor]] = field(default_factory=list)  # by step
    updates: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))  # by tier


def _reset_mask(resets: Resets) -> Tensor | None:
    """W x B x 1: 0 from the first start of a document in this window on."""
    if resets.keep_TB is None or not any(resets.has_reset):
        return None
    return resets.keep_TB.cumprod(0).unsqueeze(2)


Begin = Callable[[Weights, Tensor | None], Pass]


class _Recurrence(torch.autograd.Function):
    """The bridge to autograd; the pass is kept between forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, begin: Begin, like: Weights, starts_TB: Tensor | None, *tensors: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Every h, and L and G after the last step."""
        drive, h0, local, glob, *weights = tensors
        ctx.run = begin(unflat(weights, like), starts_TB)
        h_TBS, summaries = ctx.run.forward(drive, h0, [local, glob])
        ctx.save_for_backward(h_TBS)  # through autograd: an output kept by ctx would be a cycle
        return h_TBS, summaries[0].clone(), summaries[1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of drive, h0, L0, G0 and every weight."""
        grad_h, grad_local, grad_global = grads
        (h_TBS,) = ctx.saved_tensors
        with torch.autocast(h_TBS.device.type, enabled=False):
            return None, None, None, *ctx.run.backward(h_TBS, grad_h, [grad_local, grad_global])


def run_pass(
    begin: Begin, drive_TBS: Tensor, weights: Weights, state: State, starts_TB: Tensor | None
) -> tuple[Tensor, State]:
    """The recurrence by the pass that `begin` returns; outside autocast, which would cast again."""
    with torch.autocast(drive_TBS.device.type, enabled=False):
        h_TBS, local, glob = _Recurrence.apply(  # type: ignore[no-untyped-call]
            begin, weights, starts_TB, drive_TBS.to(weights.gain.dtype), *state[:3], *flat(weights)
        )
    return h_TBS, State(h_TBS[-1], local, glob, one_clock(state) + len(drive_TBS))
