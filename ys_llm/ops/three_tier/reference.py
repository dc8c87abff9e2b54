"""The three-tier recurrence over the states, for a drive that was formed beforehand.

    h_t = LN(h_{t-1} state_controller + drive_t + drive_bias + entry * (L + G))
    y_t = h_t output_shaper                                         (y_t = h_t where there is none)
    if t mod E_G == E_G - 1:  G <- LN(G A_G + y_t B_G) C_G          A, B, C of the global summary
    if t mod E_L == E_L - 1:  L <- LN(L A_L + y_t B_L) C_L          A, B, C of the local summary

Row vectors; h, L, G start at 0; an update fires after output t and acts from t + 1 on. LN takes
its statistics over each head. Where `starts_TB` marks a document's first token, h, L and G are 0
before it and the clock t goes on. LN makes the recurrence non-linear in h and thus sequential in
time: the work is to leave one small product and one normalisation per step and to move all else
out of the loop. L and G only change at the end of a window, hence the name `windowed`.

Source: Hyrkas, "Why Snakes" v0.3 (2024); here the products around the loop are the mixer's.
"""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from ys_llm.ops.three_tier import gemm
from ys_llm.ops.three_tier.cpp import cpp_pass, library, unavailable_reason, units
from ys_llm.ops.three_tier.gemm import Gemm, Precision
from ys_llm.ops.three_tier.gpu.recurrence import graphed_pass
from ys_llm.ops.three_tier.types import EPS, State, Summary, Weights, flat
from ys_llm.ops.three_tier.windowed import windowed_pass

__all__ = [
    "BACKENDS",
    "EPS",
    "State",
    "Summary",
    "Weights",
    "choose",
    "lack",
    "reference",
    "unavailable_reason",
    "usable",
]

PROBE_STEPS = 32  # two windows
PROBE_GAIN = 0.8  # compiled code also takes less memory; a fifth of so short a time is noise
# How far apart two backends may be after them: operands of bfloat16 keep 8 bits, and one of
# the two may round them where the other does not.
PROBE_ERROR = {"fp32": 1e-4, "bf16": 5e-2}


def reference(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
    position_B: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The literal loop over t; returns every h (T x B x S) and the state after the last token.

    Rows at different clocks: `position_B` (int64, on the CPU) instead of `state.position`.
    `precision="bf16"` rounds the products' operands to bfloat16; sums, state and LN stay exact.
    """
    h, local, glob, position = state
    states = []
    for step, drive_BS in enumerate(drive_TBS):
        t = step + (position if position_B is None else position_B)
        if starts_TB is not None:
            keep_B1 = (~starts_TB[step]).unsqueeze(1).to(h.dtype)
            h, local, glob = h * keep_B1, local * keep_B1, glob * keep_B1
        held = local + glob if weights.entry is None else weights.entry * (local + glob)
        pre = _product(h, weights.state_controller, precision) + drive_BS + held
        pre = pre if weights.drive_bias is None else pre + weights.drive_bias
        h = _layer_norm(pre, weights.gain, weights.bias, weights.n_heads)
        y = h if weights.output_shaper is None else _product(h, weights.output_shaper, precision)
        glob = _updated(glob, y, weights.global_summary, t, weights.n_heads, precision)
        local = _updated(local, y, weights.local_summary, t, weights.n_heads, precision)
        states.append(h)
    return torch.stack(states), State(h, local, glob, position + len(states))


def _updated(
    held_BS: Tensor,
    y_BS: Tensor,
    summary: Summary | None,
    t: int | Tensor,
    n_heads: int,
    precision: Precision,
) -> Tensor:
    """The summary after step t: renewed in the rows whose clock ends one of its periods."""
    if summary is None:
        return held_BS
    renewed = t % summary.every == summary.every - 1
    if not (renewed.any() if isinstance(renewed, Tensor) else renewed):
        return held_BS
    pre = _product(held_BS, summary.state_controller, precision)
    pre = pre + _product(y_BS, summary.input_influencer, precision)
    normed = _layer_norm(pre, summary.gain, summary.bias, n_heads)
    new_BS = _product(normed, summary.output_shaper, precision)
    if isinstance(renewed, Tensor):
        return torch.where(renewed.to(new_BS.device).unsqueeze(1), new_BS, held_BS)
    return new_BS


def _product(x_BS: Tensor, matrix: Tensor, precision: Precision) -> Tensor:
    """x @ matrix, block-diagonal where the matrix has three dimensions (heads)."""
    if precision == "bf16":
        x_BS, matrix = x_BS.bfloat16().float(), matrix.bfloat16().float()
    if matrix.dim() == 2:
        return x_BS @ matrix
    x_heads = x_BS.unflatten(-1, (len(matrix), -1)).transpose(-3, -2)
    return cast(Tensor, (x_heads @ matrix).transpose(-3, -2).flatten(-2))


def _layer_norm(x_BS: Tensor, gain_S: Tensor, bias_S: Tensor, n_heads: int) -> Tensor:
    """LN with statistics over each head's share of the width."""
    width = x_BS.shape[-1] // n_heads
    x_hat = torch.nn.functional.layer_norm(x_BS.unflatten(-1, (n_heads, width)), [width], eps=EPS)
    return x_hat.flatten(-2) * gain_S + bias_S


def windowed(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """As `reference`, with a hand-written backward: only dh is carried through the loop.

    The products are torch's own: on CPU in float32 whatever the precision asked for, because a
    bfloat16 product would round its sum as well; elsewhere with bfloat16 operands where asked.
    """
    return windowed_pass(drive_TBS, weights, state, starts_TB, Gemm(precision, onednn=False))


def windowed_onednn(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """As `windowed`, with the float32 products of the loop handed to oneDNN's kernels.

    The switch lets oneDNN round operands to bfloat16. CPUs without AMX do not (exact fp32, 2 to 2.5
    times as fast on AMD Zen 5); CPUs with AMX do: there it is a bf16 path only. See `choose`.
    """
    return windowed_pass(drive_TBS, weights, state, starts_TB, Gemm(precision, onednn=True))


def cpp(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """As `reference`, in C++ compiled on this machine: one call forward, one back.

    On CPU only, and only where `compiled_recurrence.library` finds it. With bfloat16 operands every
    h is given in bfloat16, as the next product takes it; the state stays in float32.
    """
    return cpp_pass(drive_TBS, weights, state, starts_TB, precision)


def cuda_graph(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """As `windowed`, its launches held by a CUDA graph; off CUDA as `windowed`."""
    return graphed_pass(drive_TBS, weights, state, starts_TB, precision, by_triton=False)


def triton(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """As `cuda_graph`, with Triton kernels for the steps inside windows; off CUDA as `windowed`.

    Dense controllers normalise late: each program publishes its tile of what LN takes, and whoever
    reads it next normalises it, so that one wait a step is enough.
    """
    return graphed_pass(drive_TBS, weights, state, starts_TB, precision, by_triton=True)


BACKENDS: dict[str, Callable[..., tuple[Tensor, State]]] = {
    "reference": reference,
    "windowed": windowed,
    "windowed_onednn": windowed_onednn,
    "cpp": cpp,
    "cuda_graph": cuda_graph,
    "triton": triton,
}


def usable(name: str, device_type: str = "") -> bool:
    """Whether this backend can run here; `device_type` as in `lack`."""
    return name in BACKENDS and lack(name, device_type) is None


def lack(name: str, device_type: str = "") -> tuple[str, str] | None:
    """What a backend needs and has not here, and what to do about it; None: nothing.

    `device_type`: where its tensors will lie; by default where they lie best.
    """
    lies = device_type or ("cuda" if torch.cuda.is_available() and name != "cpp" else "cpu")
    if name == "cpp" and lies != "cpu":
        return f"it runs on a CPU, not on {lies}", "Set train.device: cpu"
    if name == "cpp" and library() is None:
        return unavailable_reason(), "Install a C++ compiler (g++ or clang++)"
    if name in ("cuda_graph", "triton") and lies != "cuda":
        return f"it runs on a CUDA device, not on {lies}", "Set train.device: cuda"
    if name == "triton" and find_spec("triton") is None:
        return "Triton is not installed", "Install it: pip install triton (Linux)"
    if name == "triton" and torch.cuda.get_device_capability() < (8, 0):
        return "it needs a device of compute capability 8.0", "Take cuda_graph"
    return None


def choose(
    *, batch_size: int, weights: Weights, precision: Precision, taken: str = ""
) -> tuple[str, str]:
    """The backend to take on this machine, and why, by a timed and accuracy-checked probe.

    `taken` is what a run took before: it stays, so that the run goes on with the same rounding.
    """
    device, width = weights.gain.device, len(weights.gain)
    if usable(taken, device.type):
        return taken, "as when the run began"
    by_torch, why = gemm.choose(
        batch_size=batch_size, d_state=width, precision=precision, device=device
    )
    if device.type == "cuda":  # neither graphs nor kernels have been timed on one
        why = "not measured on this GPU: train.backend may be cuda_graph or triton"
        return by_torch, why
    if device.type != "cpu":
        return by_torch, why
    if not usable("cpp"):
        return by_torch, f"{why}; no compiled code: {unavailable_reason()}"
    generator = torch.Generator().manual_seed(0)
    drive_TBS = torch.randn(PROBE_STEPS, batch_size, width, generator=generator)
    torchs, expected = _probe(BACKENDS[by_torch], drive_TBS, weights, precision)
    seconds, values = _probe(cpp, drive_TBS, weights, precision)
    error, gain = ((values - expected).norm() / expected.norm()).item(), torchs / seconds
    if error > PROBE_ERROR[precision] or gain < PROBE_GAIN:
        return by_torch, f"compiled code has {gain:.1f} times its speed and differs by {error:.0e}"
    return "cpp", f"{units()}, {gain:.1f} times the speed of {by_torch}"


def _probe(
    run: Callable[..., tuple[Tensor, State]],
    drive_TBS: Tensor,
    weights: Weights,
    precision: Precision,
) -> tuple[float, Tensor]:
    """Best seconds of three passes forward and back, and every h; no gradient is kept."""
    leaves = [drive_TBS.requires_grad_(), *(w for w in flat(weights) if w is not None)]
    zeros = drive_TBS.new_zeros(drive_TBS.shape[1:])
    rounds = []
    for _ in range(4):  # the first round makes ready what stays ready, and is dropped
        began = time.perf_counter()
        h_TBS, _ = run(drive_TBS, weights, State(zeros, zeros, zeros), precision=precision)
        torch.autograd.grad(h_TBS.float().sum(), leaves, allow_unused=True)
        rounds.append(time.perf_counter() - began)
    return min(rounds[1:]), h_TBS.detach().float()
