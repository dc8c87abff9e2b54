"""Experimental: the three-tier recurrence on a CUDA device, its kernel launches in CUDA graphs.

A step is little work, and launching its kernels from Python takes longer than the work itself. A
graph (`cuda_graph.py`) replays the launches of a whole pass: those of torch's operators
(`window_steps.py`) or of Triton's kernels (`triton_steps.py`). The equation is that of
`reference.py`. Tensors on other devices take `windowed`. There are no kernels for a
gated state, whose steps are torch's.

Tested on a CPU only: the kernels by Triton's interpreter, graphs by rerunning what was recorded.
"""

from functools import cache, partial

import torch
from torch import Tensor

from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.gemm import Gemm
from ys_llm.ops.three_tier.gpu.cuda_graph import GraphPass, Graphs, phase
from ys_llm.ops.three_tier.gpu.triton_steps import steps_for
from ys_llm.ops.three_tier.types import State, Weights, one_clock
from ys_llm.ops.three_tier.window_steps import Resets, TorchSteps
from ys_llm.ops.three_tier.windowed import Pass, WindowedPass, run_pass, windowed


def cuda_graph(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """Experimental. As `windowed`, as a CUDA graph from its second call on."""
    if not drive_TBS.is_cuda:
        return windowed(drive_TBS, weights, state, starts_TB=starts_TB, precision=precision)
    return _graphed(drive_TBS, weights, state, starts_TB, precision, by_triton=False)


def triton(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """Experimental. As `cuda_graph`, with Triton kernels for the steps inside windows."""
    if not drive_TBS.is_cuda:
        return windowed(drive_TBS, weights, state, starts_TB=starts_TB, precision=precision)
    return _graphed(drive_TBS, weights, state, starts_TB, precision, by_triton=True)


def resets_everywhere(starts_TB: Tensor | None, dtype: torch.dtype) -> Resets:
    """Masks at every step: finding the steps with a start would wait for the device."""
    if starts_TB is None:
        return Resets(None, [])
    return Resets((~starts_TB).to(dtype).contiguous(), [True] * len(starts_TB))


def _graphed(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    starts_TB: Tensor | None,
    precision: Precision,
    *,
    by_triton: bool,
) -> tuple[Tensor, State]:
    clock = phase(weights, one_clock(state))
    make = partial(make_pass, precision=precision, clock=clock, by_triton=by_triton)
    periods = tuple(summary.every if summary else 0 for summary in weights.summaries)
    key = (by_triton, precision, clock, periods)
    begin = partial(GraphPass, _graphs(drive_TBS.device), key, make)
    with torch.cuda.device_of(drive_TBS):
        return run_pass(begin, drive_TBS, weights, state, starts_TB)


def make_pass(
    weights: Weights,
    starts_TB: Tensor | None,
    *,
    precision: Precision,
    clock: int,
    by_triton: bool,
) -> Pass:
    """A pass that a graph can record: it never waits for the device."""
    gemm, resets = Gemm(precision), resets_everywhere(starts_TB, weights.gain.dtype)
    device = weights.gain.device
    by_triton = by_triton and weights.gate_bias is None
    steps = steps_for(weights, precision, device) if by_triton else TorchSteps(weights, gemm)
    return WindowedPass(weights, gemm, clock, resets, steps)


@cache
def _graphs(device: torch.device) -> Graphs:
    """The one owner of a device's captures, as the caching allocator is of its memory."""
    return Graphs()
