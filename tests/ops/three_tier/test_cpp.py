"""The compiled recurrence with every instruction set, and however threads divide the work.

The cases of `test_ops.py` are too small for the tiles of AMX and for a second panel of columns.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support.op_cases import assert_within, results
from support.op_cases.three_tier import Setting, recurrence_case, recurrence_weights

from ys_llm.csrc import loader
from ys_llm.ops.accuracy import TOLERANCES
from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier import cpp
from ys_llm.ops.three_tier.reference import reference
from ys_llm.ops.three_tier.types import State
from ys_llm.system.machine import inspect_machine

pytestmark = pytest.mark.skipif(
    loader.compiler() is None, reason="there is no C++ compiler that compiles for this machine"
)

SETTINGS = {
    "tiles": Setting(
        d_state=96,
        d_summary=32,
        summary_scale=True,
        drive_bias=True,
        local_interval=5,
        global_interval=15,
    ),
    "chains": Setting(
        d_state=64, shaper=True, shared_norm=True, local_interval=3, global_interval=7
    ),
    "gate": Setting(d_state=72, drive_bias=True, gate=True, local_interval=5),
    "heads": Setting(d_state=128, d_summary=64, n_heads=4, summary_scale=True, global_interval=32),
    "partial panels": Setting(
        d_state=72, d_summary=12, n_heads=2, shaper=True, local_interval=9, global_interval=20
    ),
    "odd": Setting(
        d_state=39, d_summary=7, summary_scale=True, local_interval=6, global_interval=0
    ),
}
GRIDS = ((1, 1), (2, 1), (1, 2))
# What older processors offer, by compiler flags, and the feature that these leave out.
UNITS: dict[str, tuple[tuple[str, ...], str]] = {
    "all of this processor": ((), ""),
    "no AMX": (("-mno-amx-bf16", "-mno-amx-tile"), "amx_bf16"),
    "AVX-512 without bfloat16": (("-march=x86-64-v4",), "avx512_bf16"),
    "AVX2": (("-march=x86-64-v3",), "avx512f"),
    "registers of 16 bytes": (("-march=x86-64",), "avx2"),
}


OTHERS = ("AVX-512 without bfloat16", "registers of 16 bytes")  # each compiles all kernels again


@pytest.fixture(
    params=[pytest.param(u, marks=[pytest.mark.slow] if u in OTHERS else []) for u in UNITS]
)
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel compiled for these units stands in for the one of this machine."""
    flags, feature = UNITS[request.param]
    if feature and feature not in inspect_machine().features:
        pytest.skip(f"this processor has no {feature} to leave out")
    library = loader.build(flags=flags)
    assert library is not None, loader.unavailable_reason(flags=flags)
    monkeypatch.setattr(cpp, "library", lambda: library)
    return str(request.param)


@pytest.fixture
def two_threads(threads_as_they_were: None) -> None:
    torch.set_num_threads(2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", list(SETTINGS))
def test_it_equals_the_reference_however_threads_divide_the_work(
    name: str, units: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length, position, more in ((1, 0, False), (34, 5, True)):
        for dtype, kind in ((torch.float64, "float64"), (torch.float32, "float32")):
            case = recurrence_case(
                SETTINGS[name], length, position=position, with_state=more, starts=more, dtype=dtype
            )
            expected = results(reference, case)
            for grid in GRIDS:
                monkeypatch.setattr(cpp, "grid", lambda grid=grid, **_: grid)
                where = f"{grid}, length {length}, {dtype}"
                assert_within(TOLERANCES[kind], results(cpp.cpp, case), expected, where)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", list(SETTINGS))
def test_bf16_operands_are_rounded_where_the_reference_rounds_them(name: str, units: str) -> None:
    case = recurrence_case(
        SETTINGS[name], 34, position=0, with_state=True, starts=True, dtype=torch.float32
    )
    rounding = case._replace(options={**case.options, "precision": "bf16"})
    expected = results(reference, rounding)
    assert_within(TOLERANCES["bf16 in the loop"], results(cpp.cpp, rounding), expected)


def test_the_units_are_named(units: str) -> None:
    named = cpp.units()
    assert named in ("AMX", "AVX512-BF16", "AVX-512", "vectors")
    assert units != "AVX2" or named == "vectors"
    assert units == "all of this processor" or named != "AMX"


def passed(precision: Precision, drive_TBS: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(0)
    weights = recurrence_weights(SETTINGS["tiles"], torch.float32)
    state = State(*(torch.zeros(drive_TBS.shape[1:]) for _ in range(3)))
    h_TBS, _ = cpp.cpp(drive_TBS, weights, state, precision=precision)
    return [h_TBS, *torch.autograd.grad(h_TBS.float().square().sum(), weights[:2])]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_input_gives_the_same_bits(precision: Precision) -> None:
    drive_TBS = torch.randn(40, 20, 96)
    for first, second in zip(
        passed(precision, drive_TBS), passed(precision, drive_TBS), strict=True
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_spoils_its_row_alone(bad: float) -> None:
    drive_TBS = torch.randn(20, 18, 96)
    drive_TBS[7, 3, 5] = bad
    h_TBS = passed("bf16", drive_TBS)[0]
    assert h_TBS[7:, 3].isnan().all()
    assert not h_TBS[:7].isnan().any()
    assert not h_TBS[:, torch.arange(18) != 3].isnan().any()


def test_values_far_from_zero_are_normalised_as_exactly() -> None:
    torch.manual_seed(0)
    case = recurrence_case(
        SETTINGS["tiles"], 3, position=0, with_state=False, starts=False, dtype=torch.float32
    )
    drive, *rest = case.arguments
    case = case._replace(arguments=((drive + 1000).detach().requires_grad_(), *rest))
    exact = results(reference, case._replace(leaves=case.leaves[1:]))
    case = case._replace(leaves=case.leaves[1:])
    assert_within(1e-3, results(cpp.cpp, case), exact)  # eps of 1,000 is 6e-5 of LN's divisor


def test_inference_gives_what_training_gives_and_saves_nothing() -> None:
    weights = recurrence_weights(SETTINGS["tiles"], torch.float32)
    state = State(*(torch.zeros(3, 96) for _ in range(3)))
    drive_TBS = torch.randn(70, 3, 96)
    with_graph, after = cpp.cpp(drive_TBS, weights, state)
    with torch.inference_mode():
        without, after_too = cpp.cpp(drive_TBS, weights, state)
    assert torch.equal(with_graph, without)
    assert all(torch.equal(a, b) for a, b in zip(after[:3], after_too[:3], strict=True))


@pytest.mark.parametrize(
    ("batch_size", "d_state", "n_heads", "expected"),
    [
        (16, 512, 1, (2, 1)),  # nobody waits
        (2, 512, 1, (2, 1)),
        (1, 512, 1, (1, 1)),  # one row's steps are shorter than two threads' waiting
        (32, 2048, 1, (1, 2)),  # a controller too large for the cache of one core
        (8, 4096, 8, (1, 2)),  # heads are divided
        (8, 4095, 3, (2, 1)),  # three heads are no two halves
    ],
)
def test_threads_share_rows_where_they_can(
    batch_size: int, d_state: int, n_heads: int, expected: tuple[int, int]
) -> None:
    shared = cpp.grid(batch_size=batch_size, d_state=d_state, n_heads=n_heads, threads=2)
    assert shared == expected


FEWER_THREADS = """
import torch
from support.op_cases import assert_within, results
from support.op_cases.three_tier import Setting, recurrence_case
from ys_llm.csrc import loader
from ys_llm.ops.three_tier import cpp
from ys_llm.ops.three_tier.reference import reference

assert loader.load() is not None
torch.set_num_threads(4)
cpp.grid = lambda **_: (1, 4)  # threads that wait for each other at every step
case = recurrence_case(
    Setting(d_state=256, local_interval=3), 40, position=5, with_state=True, starts=True,
    dtype=torch.float64,
)
expected = results(reference, case)
for _ in range(5):
    assert_within(1e-10, results(cpp.cpp, case), expected)
"""


@pytest.mark.parametrize("limit", [{"OMP_DYNAMIC": "TRUE"}, {"OMP_THREAD_LIMIT": "3"}])
def test_fewer_threads_than_asked_for_do_not_wait_for_ever(limit: dict[str, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **limit}
    command = [sys.executable, "-c", FEWER_THREADS]
    subprocess.run(command, env=environment, check=True, timeout=120)
