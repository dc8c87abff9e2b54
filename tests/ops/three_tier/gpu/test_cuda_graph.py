"""Who holds which capture, and that nothing pending is overwritten: the same on any device.

A CUDA graph repeats its launches on the memory that it was captured with. Here `rerun` repeats the
functions on that memory instead, so that everything but the capture itself is what runs on CUDA;
`test_gpu.py` has the capture.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.op_cases import (
    RECURRENCES,
    TOLERANCES,
    Case,
    largest_error,
    recurrence_case,
    recurrence_cases,
    recurrence_weights,
    rerun,
    results,
)
from torch import Tensor

from ys_llm.ops.three_tier import reference
from ys_llm.ops.three_tier.gemm import Gemm
from ys_llm.ops.three_tier.gpu.cuda_graph import Capture, GraphPass, Graphs, Replay, phase
from ys_llm.ops.three_tier.gpu.recurrence import run_pass
from ys_llm.ops.three_tier.gpu.triton_recurrence import MaskedPass
from ys_llm.ops.three_tier.types import flat


def backend(graphs: Graphs) -> Callable[..., Any]:
    def run(
        drive_TBS: Tensor,
        weights: reference.Weights,
        state: reference.State,
        *,
        starts_TB: Tensor | None = None,
        precision: Any = "fp32",
    ) -> tuple[Tensor, reference.State]:
        clock = phase(weights, state.position)
        gemm = Gemm(precision, onednn=False)

        def make(weights: reference.Weights, starts_TB: Tensor | None) -> Any:
            return MaskedPass(weights, gemm, clock, starts_TB)

        begin = partial(GraphPass, graphs, (precision, clock), make)
        return run_pass(begin, drive_TBS, weights, state, starts_TB)

    return run


def case_of(name: str = "default", length: int = 17, seed: int = 0, clock: int = 5) -> Case:
    case = recurrence_case(
        RECURRENCES[name], length, position=clock, held=True, starts=True, dtype=torch.float64
    )
    with torch.no_grad():
        torch.manual_seed(seed)
        for tensor in case.leaves:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return case


@pytest.mark.parametrize("length", [15, 16, 65])
def test_a_replayed_pass_equals_the_reference(length: int) -> None:
    graphs = Graphs(rerun)
    for label, case in recurrence_cases(length, torch.float64):
        expected = results(reference.reference, case)
        for call in range(3):  # as it is, captured, replayed
            error = largest_error(results(backend(graphs), case), expected)
            assert error <= TOLERANCES["float64"], f"{label}, {call=}: error {error:.1e}"


def test_many_passes_may_be_pending_and_are_gone_back_through_in_any_order() -> None:
    graphs = Graphs(rerun)
    cases = [case_of(seed=seed) for seed in range(5)]
    expected = [results(reference.reference, case) for case in cases]
    for order in ([4, 3, 2, 1, 0], [0, 1, 2, 3, 4], [2, 0, 4, 1, 3]):
        pending = [backend(graphs)(*case.arguments, **case.options) for case in cases]
        for i in order:
            h_TBS, state = pending[i]
            outputs = [h_TBS, *state[:3]]
            generator = torch.Generator().manual_seed(1)
            loss = sum(
                (o * torch.randn(o.shape, generator=generator).to(o.dtype)).sum() for o in outputs
            )
            gradients = torch.autograd.grad(loss, cases[i].leaves, allow_unused=True)
            filled = [
                torch.zeros_like(v) if g is None else g
                for g, v in zip(gradients, cases[i].leaves, strict=True)
            ]
            values = [*(o.detach() for o in outputs), *filled]
            assert largest_error(values, expected[i]) <= TOLERANCES["float64"]
        assert graphs.lent == 0
    assert len(graphs.idle) == 5  # as many as were ever pending at once


def test_results_stay_what_they_are_when_the_capture_serves_another_pass() -> None:
    graphs = Graphs(rerun)
    first, second = case_of(seed=1), case_of(seed=2)
    run = backend(graphs)
    results(run, first)
    values = results(run, first)
    kept = [value.clone() for value in values]
    results(run, second)
    assert all(map(torch.equal, values, kept))
    assert len(graphs.idle) == 1


@torch.no_grad()
def test_without_gradients_a_capture_comes_back_at_once() -> None:
    graphs, case = Graphs(rerun), case_of()
    for _ in range(5):
        backend(graphs)(*case.arguments, **case.options)
    assert (graphs.lent, len(graphs.idle)) == (0, 1)


def test_a_capture_made_in_inference_mode_serves_training() -> None:
    graphs, case = Graphs(rerun), case_of()
    with torch.inference_mode():
        for _ in range(2):
            backend(graphs)(*case.arguments, **case.options)
    assert len(graphs.idle) == 1
    expected = results(reference.reference, case)
    assert largest_error(results(backend(graphs), case), expected) <= TOLERANCES["float64"]
    assert len(graphs.idle) == 1


def test_a_pass_that_is_dropped_gives_its_capture_back() -> None:
    graphs, case = Graphs(rerun), case_of()
    pending = [backend(graphs)(*case.arguments, **case.options) for _ in range(3)]
    assert graphs.lent == 2  # the first ran as it was
    del pending
    gc.collect()
    assert (graphs.lent, len(graphs.idle)) == (0, 2)


def test_no_more_captures_are_made_than_allowed() -> None:
    graphs, case = Graphs(rerun, most=2), case_of()
    expected = results(reference.reference, case)
    pending = [backend(graphs)(*case.arguments, **case.options) for _ in range(5)]
    assert graphs.lent == 2
    assert largest_error(results(backend(graphs), case), expected) <= TOLERANCES["float64"]
    del pending
    for clock in range(4):
        for _ in range(2):
            results(backend(graphs), case_of(clock=clock))
    assert len(graphs.idle) == 2


def test_a_shape_that_comes_once_is_not_captured_nor_a_short_one_ever() -> None:
    graphs = Graphs(rerun)
    results(backend(graphs), case_of(length=40))
    for _ in range(3):
        results(backend(graphs), case_of(length=15))
    assert not graphs.idle


def test_going_back_twice_works_until_the_capture_serves_another_pass() -> None:
    graphs, case = Graphs(rerun), case_of()
    run = backend(graphs)
    results(run, case)
    h_TBS, _ = run(*case.arguments, **case.options)
    once = torch.autograd.grad(h_TBS.sum(), case.leaves[0], retain_graph=True)
    again = torch.autograd.grad(h_TBS.sum(), case.leaves[0], retain_graph=True)
    assert torch.equal(*once, *again)
    results(run, case_of(seed=3))
    with pytest.raises(RuntimeError, match="a second time after another pass had begun"):
        torch.autograd.grad(h_TBS.sum(), case.leaves[0])


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once() -> None:
    def broken(functions: list[Callable[[], None]]) -> list[Replay]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs, case = Graphs(broken), case_of()
    expected = results(reference.reference, case)
    results(backend(graphs), case)
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        results(backend(graphs), case)
    error = largest_error(results(backend(graphs), case), expected)
    assert error <= TOLERANCES["float64"]


def test_the_phase_of_the_clock_is_all_that_a_pass_knows_of_its_position() -> None:
    weights = case_of("odd-periods").arguments[1]  # 3 and 7
    assert phase(weights, 21 * 5 + 4) == 4
    assert phase(case_of("no-summaries").arguments[1], 1234) == 0
    graphs = Graphs(rerun)
    for clock in (5, 26, 47):
        case = case_of("odd-periods", clock=clock)
        expected = results(reference.reference, case)
        error = largest_error(results(backend(graphs), case), expected)
        assert error <= TOLERANCES["float64"]
    assert len(graphs.idle) == 1


def test_a_capture_owns_all_that_it_reads() -> None:
    case = case_of()
    drive_TBS, weights, state = case.arguments
    given = [case.options["starts_TB"], drive_TBS, *state[:3], *flat(weights)]
    capture = Capture(
        lambda own, starts_TB: MaskedPass(own, Gemm("fp32", onednn=False), 5, starts_TB),
        weights,
        given,
        rerun,
    )
    ours = {t.untyped_storage().data_ptr() for t in capture.tensors if t is not None}
    theirs = {t.untyped_storage().data_ptr() for t in given if t is not None}
    assert not ours & theirs


@pytest.mark.parametrize("name", ["cuda_graph", "triton"])
def test_off_cuda_they_are_windowed_to_the_bit(name: str) -> None:
    case = case_of(length=65)
    expected = results(reference.windowed, case)
    assert all(map(torch.equal, results(reference.BACKENDS[name], case), expected))


@pytest.mark.parametrize("name", ["cuda_graph", "triton"])
def test_neither_is_usable_nor_taken_off_cuda(name: str) -> None:
    weights = recurrence_weights(RECURRENCES["default"], torch.float32)
    lack = reference.lack(name, "cpu")
    assert lack == ("it runs on a CUDA device, not on cpu", "Set train.device: cuda")
    assert not reference.usable(name, "cpu")
    taken, _ = reference.choose(batch_size=3, weights=weights, precision="fp32", taken=name)
    assert reference.usable(taken, "cpu")


def test_on_cuda_compiled_code_is_not_usable_and_triton_where_it_is_installed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reference.lack("cpp", "cuda") == (
        "it runs on a CPU, not on cuda",
        "Set train.device: cpu",
    )
    assert reference.usable("cuda_graph", "cuda")
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    assert reference.lack("triton", "cuda") == (
        "Triton is not installed",
        "Install it: pip install triton (Linux)",
    )
