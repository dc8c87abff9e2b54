"""The three-tier recurrence, window by window, with its way back written by hand.

Forward, per step: one product and one LayerNorm; what L and G add is constant inside a window and
joins the drive beforehand. Backward, per step: the LayerNorm's input gradient and one product,

    dpre_t = LN'(dh_t);   dh_{t-1} = grad_{t-1} + dpre_t state_controller^T

and the gradient of every weight is one product or reduction over all steps after the loop.
Equation and semantics: `recurrence.py`, whose `reference` this is tied to.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ys_llm.ops.three_tier.gemm import Gemm, transposed
from ys_llm.ops.three_tier.types import EPS, State, Summary, Weights, flat, is_renewed, unflat


class Norm(NamedTuple):
    """LayerNorm per head with its statistics, and its backward with respect to the input."""

    gain: Tensor
    bias: Tensor
    width: int

    def forward(self, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """LN(pre), with the mean and 1 / sqrt(variance + EPS) of every row of a head."""
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
        return cast(
            Tensor, backward(grads, rows, [self.width], mean, rstd, None, None, wanted)[0]
        ).view_as(pre)

    def parameter_grads(
        self, grad: Tensor, pre: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of gain and bias, reduced once over all rows after the loop."""
        if pre.shape[-1] == self.width:
            wanted = [False, True, True]
            backward = torch.ops.aten.native_layer_norm_backward
            shape = [self.width]
            _, *fused = backward(grad, pre, shape, mean, rstd, self.gain, self.bias, wanted)
            return fused[0], fused[1]
        rows = pre.reshape(-1, self.width)
        x_hat = ((rows - mean.reshape(-1, 1)) * rstd.reshape(-1, 1)).view(-1, self.gain.shape[0])
        grad = grad.reshape(-1, self.gain.shape[0])
        return (grad * x_hat).sum(0), grad.sum(0)


class _Update(NamedTuple):
    """What one firing of a summary leaves for its backward; all B x S but the statistics."""

    held: Tensor
    y: Tensor
    pre: Tensor
    normed: Tensor
    mean: Tensor
    rstd: Tensor


class _Tier:
    """One summary during a pass: its weights as operands, and the trail of its updates."""

    def __init__(self, summary: Summary, gemm: Gemm, n_heads: int) -> None:
        self.gemm, self.summary = gemm, summary
        self.norm = Norm(summary.gain, summary.bias, len(summary.gain) // n_heads)
        self.operands = [gemm.operand(matrix) for matrix in summary[:3]]
        self.updates: list[_Update] = []
        self.grads: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, held_BS: Tensor, y_BS: Tensor) -> Tensor:
        """LN(held A + y B) C."""
        controller, influencer, shaper = self.operands
        pre = self.gemm.product(held_BS, controller)
        pre = self.gemm.add_product(pre, y_BS, influencer, out=pre)
        normed, mean, rstd = self.norm.forward(pre)
        self.updates.append(_Update(held_BS, y_BS, pre, normed, mean, rstd))
        return self.gemm.product(normed, shaper)

    def update_backward(self, grad_held: Tensor) -> tuple[Tensor, Tensor]:
        """The latest update not yet gone back through: gradients of the old held state and of y."""
        controller, influencer, shaper = self.operands
        trail = self.updates[-1 - len(self.grads)]
        d_normed = self.gemm.product(grad_held, transposed(shaper))
        d_pre = self.norm.backward(d_normed, trail.pre, trail.mean, trail.rstd)
        self.grads.append((grad_held, d_normed, d_pre))
        d_held = self.gemm.product(d_pre, transposed(controller))
        return d_held, self.gemm.product(d_pre, transposed(influencer))

    def weight_grads(self) -> tuple[Tensor, ...]:
        """Gradients of A, B, C, gain and bias: one product each over all updates."""
        if not self.updates:
            return tuple(torch.zeros_like(weight) for weight in self.summary[:5])
        held, y, pre, normed, mean, rstd = zip(*self.updates, strict=True)
        d_held, d_normed, d_pre = zip(*reversed(self.grads), strict=True)
        a, b, c = self.summary[:3]
        grad = self.gemm.weight_grad
        return (
            grad(torch.cat(held), torch.cat(d_pre), a),
            grad(torch.cat(y), torch.cat(d_pre), b),
            grad(torch.cat(normed), torch.cat(d_held), c),
            *self.norm.parameter_grads(*map(torch.cat, (d_normed, pre, mean, rstd))),
        )


class Pass:
    """One run over T steps and back; lives as long as autograd may ask for the way back."""

    def __init__(
        self, weights: Weights, gemm: Gemm, position: int, starts_TB: Tensor | None
    ) -> None:
        controller = weights.state_controller
        self.weights, self.gemm, self.position = weights, gemm, position
        self.controller = gemm.operand(controller)
        self.norm = Norm(weights.gain, weights.bias, controller.shape[-1])
        self.shaper = None if weights.output_shaper is None else gemm.operand(weights.output_shaper)
        summaries = (weights.local_summary, weights.global_summary)
        self.tiers = [s and _Tier(s, gemm, weights.n_heads) for s in summaries]
        self.keep_TB1 = (
            None if starts_TB is None else (~starts_TB).unsqueeze(2).to(controller.dtype)
        )
        self.cut = [] if starts_TB is None else starts_TB.any(1).tolist()
        self.held_sums: list[Tensor] = []
        self.alive: list[Tensor | None] = []

    def windows(self, length: int) -> list[tuple[int, int, list[int]]]:
        """(begin, end, tiers that fire after step end - 1), in steps of this pass."""
        fired = [
            [i for i, tier in enumerate(self.tiers) if tier and is_renewed(tier.summary, t)]
            for t in range(self.position, self.position + length)
        ]
        ends = [t + 1 for t in range(length) if fired[t] or t == length - 1]
        return [(b, e, fired[e - 1]) for b, e in zip([0, *ends[:-1]], ends, strict=True)]

    def forward(self, drive: Tensor, h: Tensor, held: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Every h, and L and G after the last step; leaves what `backward` needs in self."""
        self.h0, self.pre = h, torch.empty_like(drive)
        states, self.means, self.rstds = [h], list[Tensor](), list[Tensor]()
        for begin, end, fires in self.windows(len(drive)):
            self._add_held(drive, begin, end, held)
            states += self.walk(begin, end, states[-1])
            held = self._updated(held, states[-1], fires)
        return torch.stack(states[1:]), held

    def walk(self, begin: int, end: int, h: Tensor) -> list[Tensor]:
        """Every h of a window's steps, `h` being the one before; `pre` comes as what is added."""
        states = []
        for t in range(begin, end):
            if self.cut and self.cut[t]:
                h = h * cast(Tensor, self.keep_TB1)[t]
            pre = self.gemm.add_product(self.pre[t], h, self.controller, out=self.pre[t])
            h, mean, rstd = self.norm.forward(pre)
            states.append(h)
            self.means.append(mean)
            self.rstds.append(rstd)
        return states

    def _add_held(self, drive: Tensor, begin: int, end: int, held: list[Tensor]) -> None:
        """pre = drive + drive_bias + entry * (L + G) for a window.

        L + G is 0 from a document's start on.
        """
        held_sum, entry = held[0] + held[1], self.weights.entry
        alive = None
        if self.keep_TB1 is not None and any(self.cut[begin:end]):
            alive = self.keep_TB1[begin:end].cumprod(0)
        self.held_sums.append(held_sum)
        self.alive.append(alive)
        addend = held_sum if entry is None else entry * held_sum
        if alive is not None:
            addend = alive * addend
        if self.weights.drive_bias is not None:
            addend = addend + self.weights.drive_bias
        torch.add(drive[begin:end], addend, out=self.pre[begin:end])

    def _updated(self, held: list[Tensor], h: Tensor, fires: list[int]) -> list[Tensor]:
        alive = self.alive[-1]
        held = [value if alive is None else value * alive[-1] for value in held]
        if fires:
            y = h if self.shaper is None else self.gemm.product(h, self.shaper)
            for i in fires:
                held[i] = cast(_Tier, self.tiers[i]).update(held[i], y)
        return held

    def backward(self, h: Tensor, grad_h: Tensor, grad_held: list[Tensor]) -> list[Tensor | None]:
        """Gradients of drive, h0, L0, G0 and every weight, in the order of `flat`."""
        self.d_h, self.d_pre = grad_h.clone(), torch.empty_like(grad_h)
        self.y_grads: list[tuple[int, Tensor]] = []
        for tier in filter(None, self.tiers):
            tier.grads.clear()  # a graph kept by its owner may be gone back through twice
        entry = self.weights.entry
        d_entry = None if entry is None else torch.zeros_like(entry)
        for index, (begin, end, fires) in reversed(list(enumerate(self.windows(len(grad_h))))):
            self._updated_backward(end - 1, fires, grad_held)
            self.walk_back(begin, end)
            grad_held = self._held_backward(index, self.d_pre[begin:end], grad_held, d_entry)
        d_h0 = self.gemm.product(self.kept(0), transposed(self.controller))
        d_drive_bias = None if self.weights.drive_bias is None else self.d_pre.sum((0, 1))
        main = [*self._main_grads(h), d_entry, d_drive_bias]
        return [self.d_pre, d_h0, *grad_held, *main, *self._tier_grads()]

    def walk_back(self, begin: int, end: int) -> None:
        """A window's `d_pre`, and its `d_h` complete, from the last step to the first."""
        back = transposed(self.controller)
        for t in reversed(range(begin, end)):
            d_h = self.d_h[t]
            if t + 1 < len(self.d_h):
                self.gemm.add_product(d_h, self.kept(t + 1), back, out=d_h)
            self.d_pre[t] = self.norm.backward(d_h, self.pre[t], self.means[t], self.rstds[t])

    def kept(self, t: int) -> Tensor:
        """The gradient that passes from step t to the state before it: none over a start."""
        if self.cut and self.cut[t]:
            return self.d_pre[t] * cast(Tensor, self.keep_TB1)[t]
        return self.d_pre[t]

    def _updated_backward(self, t: int, fires: list[int], grad_held: list[Tensor]) -> None:
        d_ys = []
        for i in fires:
            grad_held[i], d_y = cast(_Tier, self.tiers[i]).update_backward(grad_held[i])
            d_ys.append(d_y)
        if d_ys:
            d_y = torch.stack(d_ys).sum(0)
            self.y_grads.append((t, d_y))
            shaper = self.shaper
            self.d_h[t] += d_y if shaper is None else self.gemm.product(d_y, transposed(shaper))

    def _held_backward(
        self, index: int, d_pre: Tensor, grad_held: list[Tensor], d_entry: Tensor | None
    ) -> list[Tensor]:
        alive, entry = self.alive[index], self.weights.entry
        if alive is not None:
            grad_held, d_pre = [grad * alive[-1] for grad in grad_held], d_pre * alive
        d_sum = d_pre.sum(0)
        if d_entry is not None and entry is not None:
            d_entry += (d_sum * self.held_sums[index]).sum(0)
            d_sum = d_sum * entry
        return [grad + d_sum for grad in grad_held]

    def _main_grads(self, h: Tensor) -> list[Tensor | None]:
        """Gradients of the state controller, gain, bias and output shaper."""
        d_pre = self.d_pre if self.keep_TB1 is None else self.d_pre * self.keep_TB1
        grad, controller = self.gemm.weight_grad, self.weights.state_controller
        d_controller = grad(self.h0, d_pre[0], controller)
        d_controller += grad(h[:-1].flatten(0, 1), d_pre[1:].flatten(0, 1), controller)
        rows = (*self.pre.shape[:2], -1) if self.norm.width == h.shape[-1] else (-1, 1)
        means, rstds = (torch.cat(stats).view(rows) for stats in (self.means, self.rstds))
        d_gain, d_bias = self.norm.parameter_grads(self.d_h, self.pre, means, rstds)
        shaper = self.weights.output_shaper
        d_shaper = None if shaper is None else torch.zeros_like(shaper)
        if d_shaper is not None and self.y_grads:
            steps, d_ys = zip(*self.y_grads, strict=True)
            d_shaper = grad(torch.cat([h[t] for t in steps]), torch.cat(d_ys), d_shaper)
        return [d_controller, d_gain, d_bias, d_shaper]

    def _tier_grads(self) -> list[Tensor | None]:
        grads: list[Tensor | None] = []
        for tier in self.tiers:
            grads += [None] * 5 if tier is None else tier.weight_grads()
        return grads


class _Recurrence(torch.autograd.Function):
    """The bridge to autograd: tensors in, tensors out, and the pass kept between."""

    @staticmethod
    def forward(ctx: Any, settings: Any, *tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
        like, gemm, position, starts_TB = settings
        drive, h0, local, glob, *flat = tensors
        ctx.run = Pass(unflat(flat, like), gemm, position, starts_TB)
        with gemm.context(drive):
            h_TBS, held = ctx.run.forward(drive, h0, [local, glob])
        ctx.save_for_backward(h_TBS)  # an output: kept through autograd, or it would own itself
        return h_TBS, held[0].clone(), held[1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_h, grad_local, grad_global = grads
        (h_TBS,) = ctx.saved_tensors
        with ctx.run.gemm.context(h_TBS):
            return None, *ctx.run.backward(h_TBS, grad_h, [grad_local, grad_global])


def windowed_pass(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    starts_TB: Tensor | None,
    gemm: Gemm,
) -> tuple[Tensor, State]:
    """Run `_Recurrence`; outside autocast, since the precision of every product is the gemm's."""
    settings = (weights, gemm, state.position, starts_TB)
    with torch.autocast(drive_TBS.device.type, enabled=False):
        h_TBS, local, glob = _Recurrence.apply(  # type: ignore[no-untyped-call]
            settings, drive_TBS.to(weights.gain.dtype), *state[:3], *flat(weights)
        )
    return h_TBS, State(h_TBS[-1], local, glob, state.position + len(drive_TBS))
