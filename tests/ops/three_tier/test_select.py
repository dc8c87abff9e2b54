"""Which backend `auto` takes, and what each needs."""

from __future__ import annotations

import itertools
import time
from datetime import date
from typing import Any

import pytest
import torch
from support.op_cases.three_tier import RECURRENCES, recurrence_weights

from ys_llm.csrc import loader
from ys_llm.errors import UserError
from ys_llm.mixers import three_tier
from ys_llm.ops import choices
from ys_llm.ops.three_tier import select
from ys_llm.ops.three_tier.select import Choice, is_available, missing_requirement
from ys_llm.ops.three_tier.types import Weights
from ys_llm.system import machine

needs_compiler = pytest.mark.skipif(
    loader.compiler() is None, reason="there is no C++ compiler that compiles for this machine"
)


@pytest.fixture
def weights() -> Weights:
    return recurrence_weights(RECURRENCES["default"], torch.float32)


def choose(weights: Weights, **how: Any) -> Choice:
    return select.select(weights, **{"batch_size": 4, "precision": "fp32", **how})


@pytest.fixture
def no_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "library", lambda: None)


def times(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Each backend takes so long."""
    monkeypatch.setattr(select, "_seconds", lambda name, *arguments: seconds[name])


@needs_compiler
@pytest.mark.parametrize(
    ("cpp", "windowed", "expected"),
    [(1.0, 3.0, "cpp"), (1.1, 1.0, "cpp"), (2.0, 1.0, "windowed")],
)
def test_compiled_code_is_taken_unless_it_is_clearly_slower(
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    cpp: float,
    windowed: float,
    expected: str,
    quiet_machine: None,
) -> None:
    times(monkeypatch, cpp=cpp, windowed=windowed)
    choice = choose(weights)
    assert choice.backend == expected
    assert f"{windowed / cpp:.1f} times" in choice.reason
    assert f"as measured on this machine on {date.today().isoformat()}" in choice.reason


@needs_compiler
def test_the_first_measurement_decides_for_the_same_shapes(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, quiet_machine: None
) -> None:
    times(monkeypatch, cpp=2.0, windowed=1.0)
    first = choose(weights)
    times(monkeypatch, cpp=1.0, windowed=2.0)
    assert choose(weights) == first
    for changed in ({"batch_size": 5}, {"precision": "bf16"}):
        assert choose(weights, **changed).backend == "cpp", changed
    assert choose(recurrence_weights(RECURRENCES["one-tier"], torch.float32)).backend == "cpp"


@needs_compiler
def test_beside_other_work_the_compiled_code_is_taken_and_the_reason_told(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    times(monkeypatch, cpp=2.0, windowed=1.0)
    waited = itertools.count(0.0, 1.0)
    monkeypatch.setattr(machine, "waiting_seconds", lambda: next(waited))
    choice = choose(weights)
    assert choice.backend == "cpp"
    assert "the default: threads waited for a core 100% of the time" in choice.reason


@needs_compiler
def test_where_nothing_can_be_kept_nothing_is_timed(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "records_folder", lambda: None)
    monkeypatch.setattr(select, "_seconds", None)
    choice = choose(weights)
    assert choice.backend == "cpp"
    assert "set YS_CACHE_DIR to a writable folder" in choice.reason


@needs_compiler
def test_a_choice_without_timing_reads_no_clock(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", None)
    assert choose(weights, timed=False).backend == "cpp"


@needs_compiler
@pytest.mark.parametrize("spoiled", ["outputs", "gradients"])
def test_compiled_code_that_is_wrong_on_this_machine_is_not_taken(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:
    right = select.BACKENDS["cpp"]

    def wrong(drive_TBS: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        h_TBS, state = right(drive_TBS, *arguments, **options)
        if spoiled == "outputs":
            return 1.01 * h_TBS, state
        return h_TBS.detach() + 1.01 * (h_TBS - h_TBS.detach()), state

    monkeypatch.setitem(select.BACKENDS, "cpp", wrong)
    choice = choose(weights)
    assert choice.backend == "windowed"
    assert "differs by" in choice.reason


def test_the_previous_backend_stays(weights: Weights) -> None:
    assert choose(weights, previous="windowed").backend == "windowed"


def test_a_run_continues_without_compiled_code(weights: Weights, no_compiled_code: None) -> None:
    choice = choose(weights, previous="cpp")
    assert choice.backend == "windowed"
    assert "no compiled code" in choice.reason


def test_a_backend_that_no_longer_exists_is_chosen_anew(weights: Weights) -> None:
    assert choose(weights, previous="windowed_onednn").backend in ("cpp", "windowed")


@needs_compiler
def test_the_default_is_compiled_code_for_passes_long_enough() -> None:
    assert select.default_backend(device_type="cpu", steps=64) == "cpp"
    assert select.default_backend(device_type="cpu", steps=1) == "windowed"
    assert select.default_backend(device_type="cuda", steps=64) == "windowed"


@pytest.mark.parametrize("name", ["cuda_graph", "triton"])
def test_experimental_backends_are_refused_off_cuda_and_never_chosen(
    weights: Weights, name: str
) -> None:
    assert missing_requirement(name, "cpu") == (
        "it runs on a CUDA device, not on cpu",
        "Set train.device: cuda",
    )
    assert not is_available(name, "cpu")
    assert choose(weights, previous=name).backend not in select.EXPERIMENTAL
    mixer = three_tier.Mixer(16, three_tier.Options(d_state=32), backend=name)
    with pytest.raises(UserError, match=r"runs on a CUDA device, not on cpu"):
        mixer.select_backend(batch_size=2, precision="fp32")


def test_on_cuda_compiled_code_is_unavailable_and_triton_must_be_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert missing_requirement("cpp", "cuda") == (
        "it runs on a CPU, not on cuda",
        "Set train.device: cpu",
    )
    assert is_available("cuda_graph", "cuda")
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    assert missing_requirement("triton", "cuda") == (
        "Triton is not installed",
        "Install it: pip install triton (Linux)",
    )
