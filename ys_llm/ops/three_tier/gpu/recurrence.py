"""The three-tier recurrence on a CUDA device, its launches held by graphs.

A step is little work, and to launch its kernels from Python takes longer than that work. A graph
(`cuda_graph.py`) holds the launches of a whole pass: of `windowed.py` as it is, or of Triton's
kernels for the steps (`triton_recurrence.py`). Equation: `recurrence.py`.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ys_llm.ops.three_tier.gemm import Gemm, Precision
from ys_llm.ops.three_tier.gpu.cuda_graph import GraphPass, Graphs, Make, Pass, phase
from ys_llm.ops.three_tier.gpu.triton_recurrence import KernelPass, MaskedPass, kernels_for
from ys_llm.ops.three_tier.types import State, Weights, flat, unflat
from ys_llm.ops.three_tier.windowed import windowed_pass


def graphed_pass(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    starts_TB: Tensor | None,
    precision: Precision,
    *,
    by_triton: bool,
) -> tuple[Tensor, State]:
    """The recurrence by torch's kernels or Triton's, as a CUDA graph from its second call on.

    Tensors that lie elsewhere take `windowed_pass`.
    """
    if not drive_TBS.is_cuda:
        gemm = Gemm(precision, onednn=False)
        return windowed_pass(drive_TBS, weights, state, starts_TB, gemm)
    clock = phase(weights, state.position)
    maker = _make_kernel_pass if by_triton else _make_torch_pass
    make = partial(maker, precision=precision, clock=clock)
    compiler_version = (by_triton, precision, clock, _periods(weights))
    begin = partial(GraphPass, _graphs(drive_TBS.device), compiler_version, make)
    return run_pass(begin, drive_TBS, weights, state, starts_TB)


def run_pass(
    begin: Make, drive_TBS: Tensor, weights: Weights, state: State, starts_TB: Tensor | None
) -> tuple[Tensor, State]:
    """The recurrence by the pass that `begin` makes; outside autocast, as `windowed_pass`."""
    drive_TBS = drive_TBS.to(weights.gain.dtype)
    with torch.autocast(drive_TBS.device.type, enabled=False), torch.cuda.device_of(drive_TBS):
        h_TBS, local, glob = _Recurrence.apply(  # type: ignore[no-untyped-call]
            (begin, weights, starts_TB), drive_TBS, *state[:3], *flat(weights)
        )
    return h_TBS, State(h_TBS[-1], local, glob, state.position + len(drive_TBS))


class _Recurrence(torch.autograd.Function):
    """The bridge to autograd: tensors in, tensors out, and the pass kept between."""

    @staticmethod
    def forward(ctx: Any, settings: Any, *tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
        begin, like, starts_TB = settings
        drive, h0, local, glob, *weights = tensors
        ctx.run = begin(unflat(weights, like), starts_TB)
        h_TBS, held = ctx.run.forward(drive, h0, [local, glob])
        ctx.save_for_backward(h_TBS)  # an output: kept through autograd, or it would own itself
        return h_TBS, held[0].clone(), held[1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_h, grad_local, grad_global = grads
        (h_TBS,) = ctx.saved_tensors
        return None, *ctx.run.backward(h_TBS, grad_h, [grad_local, grad_global])


@cache
def _graphs(device: torch.device) -> Graphs:
    """The one owner of a device's captures, as the caching allocator is of its memory."""
    return Graphs()


def _periods(weights: Weights) -> tuple[int, ...]:
    tiers = (weights.local_summary, weights.global_summary)
    return tuple(tier.every if tier else 0 for tier in tiers)


def _make_torch_pass(
    weights: Weights, starts_TB: Tensor | None, *, precision: Precision, clock: int
) -> Pass:
    return MaskedPass(weights, Gemm(precision, onednn=False), clock, starts_TB)


def _make_kernel_pass(
    weights: Weights, starts_TB: Tensor | None, *, precision: Precision, clock: int
) -> Pass:
    kernels = kernels_for(weights, precision, weights.gain.device)
    return KernelPass(weights, Gemm(precision, onednn=False), clock, starts_TB, kernels)
