"""One layer, forward and backward: each backend, the literal loop and torch's own layers.

A backend is checked before it is timed: outputs, state and every gradient of a small layer against
`reference`, in float64 and in the dtype that is timed. What fails is named and not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.machine import bars, dtypes, large_matmul, matmul_flops, matmul_name, rate
from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.mixers import min_gru
from ys_llm.mixers.three_tier import Mixer, Options
from ys_llm.model.state import initial_positions
from ys_llm.ops.accuracy import TOLERANCES, largest_error
from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.select import BACKENDS, is_available
from ys_llm.ops.three_tier.types import State

LOOP = "reference fp32"  # the literal loop, the baseline of every target
TORCH_LAYERS = ("LSTM", "GRU", "RNN")
FEWEST_TOKENS = 64  # of a row that is shortened for want of time: one interval of global summaries
# Runs of the cases that are kept, in the seconds that their products alone would take.
KEPT_RUNS = 7 * 4 * 2.0


@dataclass(frozen=True)
class Shape:
    """Rows, tokens a row, width of the stream, width of the state, heads."""

    B: int
    T: int
    E: int
    S: int
    n_heads: int = 1

    def __str__(self) -> str:
        heads = f", {self.n_heads} heads" if self.n_heads > 1 else ""
        return f"{self.B},{self.T},{self.E},{self.S}{heads}"


SHAPES = (
    Shape(32, 256, 384, 1024),
    Shape(16, 256, 256, 512),
    Shape(64, 256, 256, 256),
    Shape(32, 256, 384, 1024, n_heads=8),
)


def measure(
    shape: Shape, effort: Effort, *, limits: Group, left_out: Mapping[str, str]
) -> list[Group]:
    """The group of one shape; `left_out` names backends that must not run, and why.

    `limits`: the group of the machine, by which fewer tokens a row are taken where time is short.
    """
    names = [name for name in BACKENDS if is_available(name, "cpu") and name not in left_out]
    asked = replace(shape, B=2, T=32, E=32, S=shape.S // 16) if effort.quick else shape
    shape = fitting(asked, effort, rate(limits, matmul_name("fp32")))
    mixer, default = _mixer(shape, "reference"), default_case(shape)
    cases, errors, wrong = _backends(shape, mixer, names)
    if default in cases:
        cases["recurrence alone"] = recurrence_run(shape, mixer, *default.split())
    others = {} if shape.n_heads > 1 else dict(_other_layers(shape))
    limit = matmul_name(bars().dtype)
    cases = {limit: large_matmul(bars().dtype, effort), **cases, **others}
    backends = {f"{name} {dtype}" for name in ("windowed", "cpp") for dtype in dtypes()}
    keep = {limit, LOOP, default, "recurrence alone", *backends, *_lstm(others)}
    seconds, dropped = interleaved(cases, effort, keep=keep, may_fail=others.keys())
    facts = {
        "shape": asdict(shape),
        "tokens": shape.B * shape.T,
        **_flops(shape, mixer),
        "work": {limit: matmul_flops(effort)},
        "default": default,
        "errors": errors,
        "left_out": {**left_out, **wrong, **dropped},
    }
    if shape != asked:
        facts["note"] = f"{shape.T} tokens a row instead of {asked.T}: there was no time for more"
    return [Group(f"layer {asked}", seconds, facts)]


def fitting(shape: Shape, effort: Effort, fp32_rate: float) -> Shape:
    """This shape, with fewer tokens a row if the cases that are kept would not fit."""
    work = _flops(shape, _mixer(shape, "reference"))["flops"]
    while shape.T > FEWEST_TOKENS and KEPT_RUNS * work / fp32_rate > effort.seconds:
        shape, work = replace(shape, T=shape.T // 2), work // 2
    return shape


def _flops(shape: Shape, mixer: Mixer) -> dict[str, int]:
    """FLOP of forward and backward: of the layer, and without the projections around."""
    per_token, around = mixer.flops_per_token(shape.T), 4 * shape.E * shape.S
    tokens = shape.B * shape.T
    return {
        "flops": 3 * per_token * tokens,
        "recurrence_flops": 3 * (per_token - around) * tokens,
    }


def _backends(
    shape: Shape, mixer: Mixer, names: Sequence[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, float], dict[str, str]]:
    """The backends that are right, the error of each, and those that are not, with the reason."""
    cases: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    wrong: dict[str, str] = {}
    for name in names:
        for dtype in dtypes():
            case = f"{name} {dtype}"
            if name == "reference" and dtype == "bf16":
                continue  # it rounds by hand at every step
            found, why = failure_of(name, dtype, n_heads=shape.n_heads)
            if found == found:  # not NaN: it ran
                errors[case] = found
            if why:
                wrong[case] = why
            else:
                cases[case] = layer_run(shape, mixer, name, dtype)
    return cases, errors, wrong


def default_case(shape: Shape) -> str:
    """What `ys train` would choose here: the backend of `auto`, in the dtype that is judged."""
    dtype: Precision = "bf16" if bars().dtype == "bf16" else "fp32"
    name, _ = _mixer(shape, "auto").select_backend(batch_size=shape.B, precision=dtype)
    return f"{name} {dtype}"


def _lstm(cases: Iterable[str]) -> list[str]:
    return [case for case in cases if case.startswith("nn.LSTM")]


def _mixer(shape: Shape, backend: str) -> Mixer:
    torch.manual_seed(0)
    options = Options(d_state=shape.S, d_summary=min(64, shape.S), n_heads=shape.n_heads)
    return Mixer(shape.E, options, backend=backend)


def layer_run(shape: Shape, mixer: Mixer, name: str, dtype: str) -> Callable[[], object]:
    """Outputs, then the gradients of the input and of every weight."""
    x_BTE = torch.randn(shape.B, shape.T, shape.E, requires_grad=True)
    cotangent = torch.randn(shape.B, shape.T, shape.E)
    leaves = [x_BTE, *mixer.parameters()]
    state, position_B = mixer.init_state(shape.B), initial_positions(shape.B)

    def run() -> object:
        mixer.backend = name
        with _autocast(dtype):
            y_BTE, _ = mixer(x_BTE, state, None, position_B)
        return torch.autograd.grad(y_BTE, leaves, cotangent.to(y_BTE.dtype), allow_unused=True)

    return run


def recurrence_run(shape: Shape, mixer: Mixer, name: str, dtype: str) -> Callable[[], object]:
    """The recurrence without the two projections around it."""
    drive_TBS = torch.randn(shape.T, shape.B, shape.S, requires_grad=True)
    cotangent = torch.randn(shape.T, shape.B, shape.S)
    zeros = torch.zeros(shape.B, shape.S)
    weights = mixer.recurrence_weights()
    leaves = [drive_TBS, *(p for n, p in mixer.named_parameters() if "_proj" not in n)]

    def run() -> object:
        h_TBS, _ = BACKENDS[name](
            drive_TBS, weights, State(zeros, zeros, zeros, 0), precision=dtype
        )
        return torch.autograd.grad(h_TBS, leaves, cotangent.to(h_TBS.dtype), allow_unused=True)

    return run


def failure_of(name: str, dtype: str, *, n_heads: int) -> tuple[float, str]:
    """The largest error against `reference` in this dtype, and why it may not be timed, if so."""
    try:
        exact = _error(name, "float64", n_heads)
        error = _error(name, dtype, n_heads)
    except Exception as problem:  # a backend that cannot run here may raise anything
        return float("nan"), f"it does not run here: {problem}"
    allowed = TOLERANCES["bf16 in the loop" if dtype == "bf16" else "float32"]
    for found, limit, what in ((exact, TOLERANCES["float64"], "float64"), (error, allowed, dtype)):
        if not found <= limit:  # NaN too
            return error, f"wrong: error {found:.1e} against reference in {what}, {limit} allowed"
    return error, ""


def _error(name: str, dtype: str, n_heads: int) -> float:
    """Largest error of any result as a share of its largest entry."""
    torch.manual_seed(1)
    number = torch.float64 if dtype == "float64" else torch.float32
    mixer = Mixer(24, Options(d_state=128, d_summary=64, n_heads=n_heads)).to(number)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        # At 1, and with a weak input, narrow heads are chaotic and magnify any rounding.
        mixer.state_controller.mul_(0.6)
    x_BTE = (2 * torch.randn(3, 65, 24, dtype=number)).requires_grad_()
    expected = _results(mixer, "reference", x_BTE, "fp32")
    found = _results(mixer, name, x_BTE, "bf16" if dtype == "bf16" else "fp32")
    return largest_error(found, expected)


def _results(mixer: Mixer, name: str, x_BTE: Tensor, dtype: str) -> list[Tensor]:
    """Outputs, the state after them, and every gradient."""
    mixer.backend = name
    with _autocast(dtype):
        before, position_B = mixer.init_state(len(x_BTE)), initial_positions(len(x_BTE))
        y_BTE, state = mixer(x_BTE, before, None, position_B)
    outputs = [y_BTE, *state.values()]
    generator = torch.Generator().manual_seed(2)
    loss = x_BTE.new_zeros(())
    for output in outputs:
        loss = loss + (output * torch.randn(output.shape, generator=generator)).sum()
    gradients = torch.autograd.grad(loss, [x_BTE, *mixer.parameters()])
    return [tensor.detach() for tensor in (*outputs, *gradients)]


def _autocast(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")


def _other_layers(shape: Shape) -> Iterator[tuple[str, Callable[[], object]]]:
    """minGRU, nn.LSTM, nn.GRU and nn.RNN with a state of S: float32, bfloat16, float32 by oneDNN.

    The last, for torch's own layers, may round to bfloat16: not tried where that is emulated.
    """
    modes = (*dtypes(), "onednn") if "bf16" in dtypes() else dtypes()
    for dtype in dtypes():
        yield f"min_gru {dtype}", _min_gru_run(shape, dtype)
    for kind in TORCH_LAYERS:
        for mode in modes:
            yield f"nn.{kind} {mode}", _torch_layer_run(shape, kind, mode)


def _min_gru_run(shape: Shape, dtype: str) -> Callable[[], object]:
    mixer = min_gru.Mixer(shape.E, min_gru.Options(d_state=shape.S))
    x_BTE = torch.randn(shape.B, shape.T, shape.E, requires_grad=True)
    cotangent = torch.randn(shape.B, shape.T, shape.E)
    leaves = [x_BTE, *mixer.parameters()]
    state, position_B = mixer.init_state(shape.B), initial_positions(shape.B)

    def run() -> object:
        with _autocast(dtype):
            y_BTE, _ = mixer(x_BTE, state, None, position_B)
        return torch.autograd.grad(y_BTE, leaves, cotangent.to(y_BTE.dtype))

    return run


def _torch_layer_run(shape: Shape, kind: str, mode: str) -> Callable[[], object]:
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    layer: nn.Module = getattr(nn, kind)(shape.E, shape.S, batch_first=True).to(dtype)
    x_BTE = torch.randn(shape.B, shape.T, shape.E, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(shape.B, shape.T, shape.S, dtype=dtype)
    leaves: list[Any] = [x_BTE, *layer.parameters()]

    def run() -> object:
        with onednn_matmuls() if mode == "onednn" else nullcontext():
            y_BTS, _ = layer(x_BTE)
            return torch.autograd.grad(y_BTS, leaves, cotangent)

    return run


@contextmanager
def onednn_matmuls() -> Iterator[None]:
    """Give float32 matmuls to oneDNN, which may round them to bfloat16."""
    settings = cast(Any, torch.backends.mkldnn).matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
