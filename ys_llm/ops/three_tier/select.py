"""The backends of the three-tier recurrence: which run here, and which one `auto` chooses."""

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.ops.accuracy import TOLERANCES, largest_error
from ys_llm.ops.choices import CHOSEN_BEFORE, NOT_KEPT, Answer, Question, recorded, time_in_turn
from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.cpp import cpp, library, unavailable_reason, units
from ys_llm.ops.three_tier.gpu.recurrence import cuda_graph, triton
from ys_llm.ops.three_tier.reference import reference
from ys_llm.ops.three_tier.types import State, Weights, flat
from ys_llm.ops.three_tier.windowed import windowed

Backend = Callable[..., tuple[Tensor, State]]
BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "windowed": windowed,
    "cpp": cpp,
    "cuda_graph": cuda_graph,
    "triton": triton,
}
EXPERIMENTAL = ("cuda_graph", "triton")  # no GPU has been measured with them; never `auto`
FEWEST_STEPS = 16  # of a pass for which `cpp` gains more than packing its weights costs

PROBE_STEPS = 32  # two windows
CLEARLY_SLOWER = 0.8  # cpp also needs less memory; smaller differences are noise of so short a run


class Choice(NamedTuple):
    """A backend's name, and why it was chosen."""

    backend: str
    reason: str


def missing_requirement(name: str, device_type: str = "") -> tuple[str, str] | None:
    """What a backend needs and this machine lacks, and what to do about it; None if it can run.

    `device_type`: where its tensors will be; by default the best device for this backend.
    """
    device = device_type or ("cuda" if torch.cuda.is_available() and name != "cpp" else "cpu")
    if name == "cpp" and device != "cpu":
        return f"it runs on a CPU, not on {device}", "Set train.device: cpu"
    if name == "cpp" and library() is None:
        return loader.unavailable()
    if name in EXPERIMENTAL and device != "cuda":
        return f"it runs on a CUDA device, not on {device}", "Set train.device: cuda"
    if name == "triton" and find_spec("triton") is None:
        return "Triton is not installed", "Install it: pip install triton (Linux)"
    if name == "triton" and torch.cuda.get_device_capability() < (8, 0):
        return "it needs a device of compute capability 8.0", "Use cuda_graph"
    return None


def is_available(name: str, device_type: str = "") -> bool:
    """Whether this backend can run here; `device_type` as in `missing_requirement`."""
    if name == "cpp" and library() is None:  # without the reason: finding it may compile
        return False
    return name in BACKENDS and missing_requirement(name, device_type) is None


def default_backend(*, device_type: str, steps: int = FEWEST_STEPS) -> str:
    """What `auto` chooses without timing anything, for passes of this many steps."""
    return "cpp" if steps >= FEWEST_STEPS and is_available("cpp", device_type) else "windowed"


def select(
    weights: Weights,
    *,
    batch_size: int,
    precision: Precision,
    previous: str = "",
    timed: bool = True,
) -> Choice:
    """The backend that `auto` chooses on this machine.

    `previous`, the backend that a run has used so far, stays where it can run, so that the run
    continues with the same rounding. Otherwise the compiled code is chosen where it is accurate and
    not clearly slower, as this machine's record says; `timed=False` checks accuracy alone and reads
    no record, so that the choice is the same on every machine of this kind.
    """
    device_type = weights.gain.device.type
    if is_available(previous, device_type):
        return Choice(previous, CHOSEN_BEFORE)
    if device_type == "cuda":
        return Choice("windowed", "cuda_graph and triton are experimental: set them by name")
    if not is_available("cpp", device_type):
        reason = unavailable_reason() if device_type == "cpu" else f"none for {device_type}"
        return Choice("windowed", f"no compiled code: {reason}")
    if timed:
        question = _question(weights, batch_size, precision)
        measure = partial(_measure, weights, batch_size, precision)
        if record := recorded(question, measure):
            return Choice(record.choice, record.explanation)
    drive_TBS = _drive(weights, batch_size)
    if problem := _inaccuracy(drive_TBS, weights, precision):
        return Choice("windowed", problem)
    return Choice("cpp", f"{units()}, {NOT_KEPT}" if timed else units())


def _question(weights: Weights, batch_size: int, precision: Precision) -> Question:
    """What the speeds of the backends depend on, besides the machine."""
    shapes = ["-" if w is None else "x".join(map(str, w.shape)) for w in flat(weights)]
    every = [str(summary.every) for summary in weights.summaries if summary]
    details = {
        "precision": str(precision),
        "dtype": str(weights.gain.dtype).removeprefix("torch."),
        "batch": str(batch_size),
        "state": "x".join(map(str, weights.state_controller.shape)),
        "weights": " ".join(shapes),
        "summaries": " ".join(every),
    }
    return Question("backend of three_tier", ("cpp", "windowed"), details)


def _measure(weights: Weights, batch_size: int, precision: Precision) -> Answer:
    """`cpp` or `windowed`: outputs and gradients compared, then timed."""
    drive_TBS = _drive(weights, batch_size)
    if problem := _inaccuracy(drive_TBS, weights, precision):
        return Answer("windowed", problem, {})
    timings = time_in_turn(
        {
            name: partial(_seconds, name, drive_TBS, weights, precision)
            for name in ("cpp", "windowed")
        }
    )
    if timings.disturbance:
        reason = f"{units()}, the default: {timings.disturbance}"
        return Answer("cpp", reason, timings.seconds, timings.disturbance)
    gain = timings.gain("cpp", over="windowed")
    if gain < CLEARLY_SLOWER:
        reason = f"the compiled code has {gain:.1f} times its speed"
        return Answer("windowed", reason, timings.seconds)
    return Answer("cpp", f"{units()}, {gain:.1f} times the speed of windowed", timings.seconds)


def _drive(weights: Weights, batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (PROBE_STEPS, batch_size, len(weights.gain))
    return torch.randn(shape, generator=generator).to(weights.gain.dtype).requires_grad_()


def _inaccuracy(drive_TBS: Tensor, weights: Weights, precision: Precision) -> str:
    """How far the compiled code is from windowed on this machine; "" where it is close enough."""
    compiled, torch_own = (
        _forward_backward(name, drive_TBS, weights, precision) for name in ("cpp", "windowed")
    )
    error = largest_error(compiled, torch_own)
    kind = "float32" if precision == "fp32" else "bf16 in the loop"
    good = error <= TOLERANCES[kind]
    return "" if good else f"the compiled code differs by {error:.0e} on this machine"


def _seconds(name: str, drive_TBS: Tensor, weights: Weights, precision: Precision) -> float:
    began = time.perf_counter()
    _forward_backward(name, drive_TBS, weights, precision)
    return time.perf_counter() - began


def _forward_backward(
    name: str, drive_TBS: Tensor, weights: Weights, precision: Precision
) -> list[Tensor]:
    """Every h, and the gradient of the drive; those of the weights are computed and discarded."""
    zeros = torch.zeros_like(drive_TBS[0])
    state = State(zeros, zeros, zeros)
    with torch.enable_grad():
        h_TBS, _ = BACKENDS[name](drive_TBS, weights, state, precision=precision)
        leaves = [drive_TBS, *(w for w in flat(weights) if w is not None and w.requires_grad)]
        grad_TBS = torch.randn(h_TBS.shape, generator=torch.Generator().manual_seed(1))
        loss = (h_TBS.float() * grad_TBS).sum()
        d_drive_TBS, *_ = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [h_TBS.detach().float(), d_drive_TBS.float()]
