"""What the windowed recurrence leaves alone, and how exact its large matmuls are."""

from __future__ import annotations

import threading

import pytest
import torch
from support.op_cases import assert_within, results
from support.op_cases.three_tier import RECURRENCES, recurrence_case

from ys_llm.ops.accuracy import TOLERANCES
from ys_llm.ops.three_tier.reference import reference
from ys_llm.ops.three_tier.windowed import windowed


def wide_case() -> object:
    return recurrence_case(
        RECURRENCES["wide"], 17, position=0, with_state=True, starts=False, dtype=torch.float32
    )


def test_a_pass_changes_no_setting_of_torch() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.get_float32_matmul_precision()
    results(windowed, wide_case())
    after = torch.backends.mkldnn.matmul.fp32_precision, torch.get_float32_matmul_precision()
    assert before == after


def test_passes_in_two_threads_give_the_bits_of_passes_one_by_one() -> None:
    cases = [wide_case() for _ in range(2)]
    expected = [results(windowed, case) for case in cases]
    found: list[object] = [None, None]

    def run(number: int) -> None:
        for _ in range(5):
            found[number] = results(windowed, cases[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_gradients_are_the_same_under_autocast_of_the_backward_pass() -> None:
    case = wide_case()
    h_TBS, _ = windowed(*case.arguments, **case.options)
    outside = torch.autograd.grad(h_TBS.square().sum(), case.leaves[0], retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(h_TBS.square().sum(), case.leaves[0])
    assert torch.equal(*outside, *inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_at_different_clocks_are_each_as_alone(dtype: torch.dtype) -> None:
    """`reference` takes a clock per row, as batched generation needs."""
    case = recurrence_case(
        RECURRENCES["odd-periods"], 23, position=0, with_state=True, starts=True, dtype=dtype
    )
    drive_TBS, weights, state = case.arguments
    starts_TB, clocks = case.options["starts_TB"], [0, 2, 19]
    together, after = reference(
        drive_TBS, weights, state._replace(position=torch.tensor(clocks)), starts_TB=starts_TB
    )
    assert after.position.tolist() == [23 + clock for clock in clocks]
    for row, clock in enumerate(clocks):
        one = slice(row, row + 1)
        tiers = [tier[one] for tier in state[:3]]
        alone, after_alone = reference(
            drive_TBS[:, one],
            weights,
            type(state)(*tiers, clock),
            starts_TB=starts_TB[:, one],
        )
        tolerance = TOLERANCES["float32" if dtype == torch.float32 else "float64"]
        assert_within(tolerance, [together[:, one]], [alone], f"row {row}")
        for tier, tier_alone in zip(after[:3], after_alone[:3], strict=True):
            assert_within(tolerance, [tier[one]], [tier_alone], f"row {row}")
