"""Which pass has which capture, and that no pending pass is overwritten, on a CPU.

`rerun` replaces the capture: it calls the recorded functions again on the captured tensors. So
these tests show the book-keeping around captures: leases, copies in and out, the limit, fallbacks.
They cannot show that CUDA captures and replays the launches; only `test_gpu.py` on a device can.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.graph_replay import rerun
from support.op_cases import Case, assert_within, results
from support.op_cases.three_tier import RECURRENCES, cases, recurrence_case
from torch import Tensor

from ys_llm.ops.accuracy import TOLERANCES
from ys_llm.ops.three_tier.gpu.cuda_graph import GraphPass, Graphs, Replay, phase
from ys_llm.ops.three_tier.gpu.recurrence import make_pass
from ys_llm.ops.three_tier.reference import reference
from ys_llm.ops.three_tier.select import BACKENDS, EXPERIMENTAL
from ys_llm.ops.three_tier.types import State, Weights, one_clock
from ys_llm.ops.three_tier.windowed import run_pass, windowed

EXACT = TOLERANCES["float64"]


def backend(graphs: Graphs) -> Callable[..., Any]:
    def run(
        drive_TBS: Tensor,
        weights: Weights,
        state: State,
        *,
        starts_TB: Tensor | None = None,
        precision: Any = "fp32",
    ) -> tuple[Tensor, State]:
        clock = phase(weights, one_clock(state))
        make = partial(make_pass, precision=precision, clock=clock, by_triton=False)
        begin = partial(GraphPass, graphs, (precision, clock), make)
        return run_pass(begin, drive_TBS, weights, state, starts_TB)

    return run


def case_of(name: str = "default", length: int = 17, seed: int = 0, clock: int = 5) -> Case:
    case = recurrence_case(
        RECURRENCES[name], length, position=clock, with_state=True, starts=True, dtype=torch.float64
    )
    with torch.no_grad():
        torch.manual_seed(seed)
        for tensor in case.leaves:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return case


@pytest.mark.parametrize("length", [15, 16, 65])
def test_a_replayed_pass_equals_the_reference(length: int) -> None:
    graphs = Graphs(rerun)
    for label, case in cases(length, torch.float64):
        expected = results(reference, case)
        for _ in range(3):  # first call, captured, replayed
            assert_within(EXACT, results(backend(graphs), case), expected, label)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [0, 1, 2, 3, 4], [2, 0, 4, 1, 3]])
def test_many_passes_may_be_pending_and_run_backward_in_any_order(order: list[int]) -> None:
    graphs = Graphs(rerun)
    all_cases = [case_of(seed=seed) for seed in range(5)]
    expected = [results(reference, case) for case in all_cases]
    for _ in range(2):
        pending = [backend(graphs)(*case.arguments, **case.options) for case in all_cases]
        for i in order:
            values = results(lambda *_, given=pending[i], **__: given, all_cases[i])
            assert_within(EXACT, values, expected[i], f"pass {i}")
        assert graphs.lent == 0
    assert len(graphs.idle) == 5  # as many as were ever pending at once


def test_results_do_not_change_when_the_capture_serves_another_pass() -> None:
    graphs = Graphs(rerun)
    first, second = case_of(seed=1), case_of(seed=2)
    run = backend(graphs)
    results(run, first)
    values = results(run, first)
    before = [value.clone() for value in values]
    results(run, second)
    assert all(map(torch.equal, values, before))
    assert len(graphs.idle) == 1


def test_a_capture_made_in_inference_mode_serves_training() -> None:
    graphs, case = Graphs(rerun), case_of()
    with torch.inference_mode():
        for _ in range(2):
            backend(graphs)(*case.arguments, **case.options)
    assert_within(EXACT, results(backend(graphs), case), results(reference, case))
    assert (graphs.lent, len(graphs.idle)) == (0, 1)


def test_a_pass_that_is_dropped_returns_its_capture() -> None:
    graphs, case = Graphs(rerun), case_of()
    pending = [backend(graphs)(*case.arguments, **case.options) for _ in range(3)]
    assert graphs.lent == 2  # the first call captures nothing
    del pending
    gc.collect()
    assert (graphs.lent, len(graphs.idle)) == (0, 2)


def test_no_more_captures_are_made_than_allowed() -> None:
    graphs, case = Graphs(rerun, most=2), case_of()
    pending = [backend(graphs)(*case.arguments, **case.options) for _ in range(5)]
    assert graphs.lent == 2
    assert_within(EXACT, results(backend(graphs), case), results(reference, case))
    del pending
    for clock in range(4):
        for _ in range(2):
            results(backend(graphs), case_of(clock=clock))
    assert len(graphs.idle) == 2


def test_a_shape_that_occurs_once_is_not_captured_and_a_short_one_never() -> None:
    graphs = Graphs(rerun)
    results(backend(graphs), case_of(length=40))
    for _ in range(3):
        results(backend(graphs), case_of(length=15))
    assert not graphs.idle


def test_a_second_backward_pass_works_until_the_capture_serves_another_pass() -> None:
    graphs, case = Graphs(rerun), case_of()
    run = backend(graphs)
    results(run, case)
    h_TBS, _ = run(*case.arguments, **case.options)
    loss = h_TBS.square().sum()
    once = torch.autograd.grad(loss, case.leaves[0], retain_graph=True)
    again = torch.autograd.grad(loss, case.leaves[0], retain_graph=True)
    assert torch.equal(*once, *again)
    results(run, case_of(seed=3))
    with pytest.raises(RuntimeError, match="after another forward pass"):
        torch.autograd.grad(loss, case.leaves[0])


def test_what_cannot_be_captured_runs_normally_and_warns_once() -> None:
    def broken(functions: list[Callable[[], None]]) -> list[Replay]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs, case = Graphs(broken), case_of()
    results(backend(graphs), case)
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        results(backend(graphs), case)
    assert_within(EXACT, results(backend(graphs), case), results(reference, case))


def test_one_capture_serves_every_position_of_the_same_phase() -> None:
    weights = case_of("odd-periods").arguments[1]  # intervals 3 and 7
    assert phase(weights, 21 * 5 + 4) == 4
    assert phase(case_of("no-summaries").arguments[1], 1234) == 0
    graphs = Graphs(rerun)
    for clock in (5, 26, 47):
        case = case_of("odd-periods", clock=clock)
        assert_within(EXACT, results(backend(graphs), case), results(reference, case))
    assert len(graphs.idle) == 1


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_off_cuda_they_are_windowed_to_the_bit(name: str) -> None:
    case = case_of(length=65)
    expected = results(windowed, case)
    assert all(map(torch.equal, results(BACKENDS[name], case), expected))
