"""The Triton kernels against `reference`, on a CPU, in Triton's interpreter.

Run by `test_triton.py` in a process of its own, since TRITON_INTERPRET must be set before Triton is
imported. The interpreter runs the programs of a launch one after the other, so a barrier between
several of them never opens. The dense kernel is therefore launched once per step here, and for all
steps at once only where one program is alone in its group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from support.graph_replay import rerun
from support.op_cases import Case, largest_error, leaf, results, tensors_in
from support.op_cases.three_tier import RECURRENCES, Setting, recurrence_case, recurrence_weights
from ys_llm.ops.accuracy import TOLERANCES
from ys_llm.ops.three_tier.gemm import Gemm
from ys_llm.ops.three_tier.gpu.cuda_graph import GraphPass, Graphs
from ys_llm.ops.three_tier.gpu.recurrence import resets_everywhere
from ys_llm.ops.three_tier.gpu.triton_steps import DenseSteps, HeadSteps, operands_of
from ys_llm.ops.three_tier.reference import reference
from ys_llm.ops.three_tier.types import State, Weights, one_clock
from ys_llm.ops.three_tier.window_steps import Steps
from ys_llm.ops.three_tier.windowed import WindowedPass, run_pass

LENGTHS = (1, 15, 16, 17, 65)
LONG = ("default", "odd-periods")  # the settings worth a minute at 65 steps
MANY = 1 << 30  # processors: every program is resident, and all steps are one launch


class Kind(NamedTuple):
    """Kernels to test, with the settings that they are tested at."""

    kernels: Callable[..., Steps]
    settings: dict[str, Setting]


def is_alone(setting: Setting) -> bool:
    """Whether each head is one tile, so that no program waits for another."""
    return setting.d_state // setting.n_heads <= 16


KINDS = {
    "heads": Kind(HeadSteps, RECURRENCES),
    "dense-by-step": Kind(partial(DenseSteps, n_processors=MANY, together=False), RECURRENCES),
    "dense-at-once": Kind(
        partial(DenseSteps, n_processors=MANY),
        {name: RECURRENCES[name] for name in LONG if is_alone(RECURRENCES[name])},
    ),
}


def backend(kernels: Callable[..., Steps], graphs: Graphs | None = None) -> Callable[..., Any]:
    """The recurrence with these kernels for its steps, with the signature of `reference`."""

    def run(
        drive_TBS: Tensor,
        weights: Weights,
        state: State,
        *,
        starts_TB: Tensor | None = None,
        precision: Any = "fp32",
    ) -> tuple[Tensor, State]:
        def make(weights: Weights, starts_TB: Tensor | None) -> WindowedPass:
            resets = resets_everywhere(starts_TB, weights.gain.dtype)
            steps = kernels(operands_of(weights, precision))
            return WindowedPass(weights, Gemm(precision), one_clock(state), resets, steps)

        begin = make if graphs is None else partial(GraphPass, graphs, precision, make)
        return run_pass(begin, drive_TBS, weights, state, starts_TB)

    return run


def error_of(kernels: Callable[..., Steps], case: Case, **options: Any) -> float:
    expected = results(reference, case)
    case = case._replace(options={**case.options, **options})
    return largest_error(results(backend(kernels), case), expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_equal_the_reference(kind: str, length: int) -> None:
    for name, setting in KINDS[kind].settings.items():
        if length == max(LENGTHS) and name not in LONG:
            continue
        for position, busy in ((0, False), (5, True)):
            case = recurrence_case(
                setting,
                length,
                position=position,
                with_state=busy,
                starts=busy,
                dtype=torch.float64,
            )
            error = error_of(KINDS[kind].kernels, case)
            assert error <= TOLERANCES["float64"], f"{name}, {busy=}: error {error:.1e}"


@pytest.mark.parametrize(
    ("precision", "bound"), [("fp32", "float32"), ("bf16", "bf16 in the loop")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_stays_in_the_table(kind: str, precision: str, bound: str) -> None:
    for name, setting in KINDS[kind].settings.items():
        case = recurrence_case(
            setting, 17, position=5, with_state=True, starts=True, dtype=torch.float32
        )
        error = error_of(KINDS[kind].kernels, case, precision=precision)
        assert error <= TOLERANCES[bound], f"{name}: error {error:.1e}"


def ragged_case(setting: Setting, length: int, dtype: torch.dtype, around: float = 0.0) -> Case:
    """20 rows, which are more than a tile holds, and starts of documents."""
    torch.manual_seed(length)
    weights = recurrence_weights(setting, dtype)
    state = [leaf(20, setting.d_state, dtype=dtype) for _ in range(3)]
    drive_TBS = leaf(length, 20, setting.d_state, dtype=dtype, around=around)
    leaves = {id(tensor): tensor for tensor in tensors_in([drive_TBS, weights, state])}
    starts_TB = torch.rand(length, 20) < 0.1
    arguments = (drive_TBS, weights, State(*state, 0))
    return Case(arguments, {"starts_TB": starts_TB}, list(leaves.values()))


RAGGED = {
    "three-tiles-the-last-half-empty": Setting(d_state=40, summary_scale=True),
    "two-heads-of-three-tiles": Setting(d_state=80, n_heads=2, shaper=True, local_interval=3),
}


TILINGS = {
    "heads": HeadSteps,
    "dense-of-the-smallest-tiles": KINDS["dense-by-step"].kernels,
    "dense-of-the-largest-tiles": partial(DenseSteps, n_processors=0),
}


@pytest.mark.parametrize("setting", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("tiling", TILINGS)
def test_tiles_that_do_not_fill_their_heads_change_nothing(tiling: str, setting: Setting) -> None:
    error = error_of(TILINGS[tiling], ragged_case(setting, 5, torch.float64))
    assert error <= TOLERANCES["float64"]


@pytest.mark.parametrize("kind", ["heads", "dense-by-step"])
def test_a_mean_far_above_the_spread_costs_no_digits(kind: str) -> None:
    """Published in bfloat16 with its mean, a tile of 1000 +- 1 would be off by 4."""
    case = ragged_case(Setting(d_state=40, summary_scale=True), 5, torch.float32, around=1000.0)
    error = error_of(KINDS[kind].kernels, case, precision="bf16")
    assert error <= TOLERANCES["bf16 in the loop"]


@pytest.mark.parametrize("kind", ["heads", "dense-by-step"])
def test_a_replayed_pass_of_kernels_equals_the_reference(kind: str) -> None:
    graphs = Graphs(rerun)
    run = backend(KINDS[kind].kernels, graphs)
    for around in (0.0, 0.5, -0.5, 0.0):  # as it is, captured, replayed twice
        case = ragged_case(Setting(d_state=40, summary_scale=True), 17, torch.float64, around)
        error = largest_error(results(run, case), results(reference, case))
        assert error <= TOLERANCES["float64"]
    assert (graphs.lent, len(graphs.idle)) == (0, 1)


def test_inputs_may_lie_in_memory_in_any_order() -> None:
    case = recurrence_case(
        RECURRENCES["default"], 17, position=0, with_state=True, starts=True, dtype=torch.float64
    )
    drive_TBS, weights, state = case.arguments
    drive_TBS = drive_TBS.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    main = state.main.detach().t().contiguous().t().requires_grad_()
    arguments = (drive_TBS, weights, state._replace(main=main))
    for kernels in (HeadSteps, KINDS["dense-by-step"].kernels):
        error = error_of(kernels, case._replace(arguments=arguments, leaves=[drive_TBS, main]))
        assert error <= TOLERANCES["float64"]
