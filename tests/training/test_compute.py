"""What computes a run is chosen once; and training leaves the process as it found it."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import NEVER, TrainRun

from ys_llm.config.schema import TrainConfig
from ys_llm.csrc import loader
from ys_llm.errors import EXIT_TERMINATED, UserError
from ys_llm.ops import choices
from ys_llm.ops.three_tier import select
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import read_json, read_tensors
from ys_llm.system import machine
from ys_llm.training import compute
from ys_llm.training.compute import (
    Compute,
    matmul_rate,
    previous_compute,
    process_settings,
    resolve_dtype,
)

CPU = torch.device("cpu")
FULL = 1024  # of the matmuls that are timed


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, quiet_machine: None) -> Any:
    """Pretends that the processor has these features; counts the matmuls that are timed.

    A matmul in fp32 takes 1 ms.
    """
    timed: list[tuple[torch.dtype, int]] = []

    def pretend(*features: str, bf16_ms: float = 1.0) -> list[tuple[torch.dtype, int]]:
        here = machine.inspect_machine()
        made_up = replace(here, features=frozenset(features))
        monkeypatch.setattr(compute, "inspect_machine", lambda: made_up)

        def seconds(dtype: torch.dtype, device: torch.device, *, size: int = FULL) -> float:
            timed.append((dtype, size))
            return (bf16_ms if dtype == torch.bfloat16 else 1.0) / 1000

        monkeypatch.setattr(compute, "matmul_seconds", seconds)
        return timed

    return pretend


def test_a_processor_without_bf16_instructions_is_not_measured(processor: Any) -> None:
    timed = processor("avx2", "fma")
    dtype, reason = resolve_dtype(TrainConfig(), CPU)
    assert dtype == "fp32"
    assert reason == "no bf16 hardware"
    assert not timed, "emulated bf16 matmuls take minutes"


@pytest.mark.parametrize(("bf16_ms", "expected"), [(0.5, "bf16"), (0.9, "fp32")])
def test_bf16_is_taken_where_it_is_much_faster(
    processor: Any, bf16_ms: float, expected: str
) -> None:
    timed = processor("avx2", "avx512_bf16", bf16_ms=bf16_ms)
    assert resolve_dtype(TrainConfig(), CPU)[0] == expected
    full = [dtype for dtype, size in timed if size == FULL]
    assert full[:4] == [torch.float32, torch.bfloat16] * 2, "rounds are interleaved"


def test_bf16_that_torch_emulates_is_never_measured_at_full_size(processor: Any) -> None:
    """ONEDNN_MAX_CPU_ISA=AVX2 on a newer processor."""
    timed = processor("avx2", "amx_bf16", bf16_ms=30.0)
    dtype, reason = resolve_dtype(TrainConfig(), CPU)
    assert dtype == "fp32"
    assert "torch emulates bf16 matmuls here" in reason
    assert {size for _, size in timed} == {256}


@pytest.mark.parametrize(("feature", "expected"), [("amx_bf16", "bf16"), ("avx512_bf16", "fp32")])
def test_a_dtype_that_cannot_be_kept_is_not_timed(
    processor: Any, monkeypatch: pytest.MonkeyPatch, feature: str, expected: str
) -> None:
    monkeypatch.setattr(choices, "records_folder", lambda: None)
    timed = processor("avx2", feature)
    dtype, reason = resolve_dtype(TrainConfig(), CPU)
    assert dtype == expected
    assert "YS_CACHE_DIR" in reason
    assert not timed


@pytest.mark.parametrize(("feature", "expected"), [("amx_bf16", "bf16"), ("avx512_bf16", "fp32")])
def test_a_deterministic_run_chooses_its_dtype_without_a_clock(
    processor: Any, feature: str, expected: str
) -> None:
    timed = processor("avx2", feature)
    assert resolve_dtype(TrainConfig(deterministic=True), CPU)[0] == expected
    assert not timed


def test_a_deterministic_run_chooses_its_backend_without_a_clock(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where time itself is unreliable, the choice is the same all the same."""
    draw = random.Random(0)
    now = [0.0]

    def erratic() -> float:
        now[0] += draw.expovariate(1.0)
        return now[0]

    monkeypatch.setattr(select.time, "perf_counter", erratic)
    choices = set()
    for number in range(3):
        changes = ("train.backend={}", "train.dtype=auto", "train.deterministic=true")
        run = train_run(*changes, "train.max_steps=1", runs=f"runs{number}").run
        environment = read_json(checkpoints(run)[-1] / "progress.json")["environment"]
        choices.add((environment["dtype"], str(environment["backends"])))
    assert len(choices) == 1


@pytest.mark.skipif(loader.compiler() is None, reason="there is nothing to choose from")
def test_two_deterministic_runs_have_the_same_bits_whatever_was_measured_meanwhile(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, quiet_machine: None, own_records: Path
) -> None:
    seconds = {"cpp": 2.0, "windowed": 1.0}
    monkeypatch.setattr(select, "_seconds", lambda backend, *rest: seconds[backend])

    def run(name: str, *changes: str) -> tuple[dict[str, Any], dict[str, Any]]:
        folder = train_run("train.backend={}", "train.max_steps=3", *changes, runs=name).run
        environment = read_json(checkpoints(folder)[-1] / "progress.json")["environment"]
        return environment["backends"], read_tensors(folder / "model.safetensors")

    first, weights = run("first", "train.deterministic=true")
    assert not list(own_records.glob("*.json"))
    assert run("timed")[0] == {"three_tier": "windowed"}
    second, again = run("second", "train.deterministic=true")
    assert first == second == {"three_tier": "cpp"}
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.skipif(loader.compiler() is None, reason="there is nothing to choose from")
def test_two_runs_of_a_seed_choose_the_same_whatever_the_clock_says(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, quiet_machine: None, own_records: Path
) -> None:
    """The second finds the compiled code as fast as the first found it slow."""

    def run(name: str, **seconds: float) -> tuple[str, dict[str, Any]]:
        monkeypatch.setattr(select, "_seconds", lambda backend, *rest: seconds[backend])
        folder = train_run("train.backend={}", "train.max_steps=3", runs=name).run
        environment = read_json(checkpoints(folder)[-1] / "progress.json")["environment"]
        return environment["backends"]["three_tier"], read_tensors(folder / "model.safetensors")

    first, weights = run("first", cpp=2.0, windowed=1.0)
    second, again = run("second", cpp=1.0, windowed=2.0)
    assert first == second == "windowed"
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    for record in own_records.glob("*.json"):
        record.unlink()
    assert run("third", cpp=1.0, windowed=2.0)[0] == "cpp", "measured anew"


def test_a_configured_dtype_is_taken_as_it_is(processor: Any) -> None:
    timed = processor("avx2", "amx_bf16")
    assert resolve_dtype(TrainConfig(dtype="bf16"), CPU)[0] == "bf16"
    assert resolve_dtype(TrainConfig(dtype="fp32"), CPU)[0] == "fp32"
    assert not timed


def test_a_choice_is_reused_on_the_machine_that_made_it_alone() -> None:
    chosen = {"dtype": "bf16", "backends": {"three_tier": "windowed"}}
    here = {**compute.machine_identity(CPU), **chosen}
    assert previous_compute(here, CPU) == Compute(CPU, "bf16", {"three_tier": "windowed"})
    assert previous_compute({**here, "processor": "an abacus"}, CPU) == Compute(CPU)
    assert previous_compute({}, CPU) == Compute(CPU)


def process_state() -> dict[str, Any]:
    """What a library call must not change."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return {
        **{name: signal.getsignal(getattr(signal, name)) for name in names},
        "threads": torch.get_num_threads(),
        "denormals are kept": sys.float_info.min * 0.5 > 0,
        "torch keeps denormals": torch.tensor(1e-40).mul(0.5).item() > 0,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "random": torch.get_rng_state().tolist(),
    }


CHANGING = ("train.threads=2", "train.deterministic=true")


def test_a_finished_training_leaves_the_process_as_it_was(train_run: TrainRun) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    before = process_state()
    train_run(*CHANGING)
    assert process_state() == before


def test_a_refused_training_leaves_the_process_as_it_was(train_run: TrainRun) -> None:
    before = process_state()
    with pytest.raises(UserError):
        train_run(*CHANGING, "train.seq_len=5000")
    assert process_state() == before


@contextmanager
def own_handler(number: int) -> Iterator[Any]:
    """A handler of the caller's, as a notebook has."""

    def handle(number: int, frame: Any) -> None:
        raise AssertionError("the training handles its signals itself")

    before = signal.signal(number, handle)
    try:
        yield handle
    finally:
        signal.signal(number, before)


def test_a_stopped_training_leaves_the_process_as_it_was(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook's Ctrl-C after a stopped training must interrupt the next cell."""
    from ys_llm.training import loop

    step = loop.optimizer_step

    def stop_at_third(run: Any, state: Any, gradients: Any) -> Any:
        row = step(run, state, gradients)
        if state.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    monkeypatch.setattr(loop, "optimizer_step", stop_at_third)
    with own_handler(signal.SIGTERM):
        before = process_state()
        with pytest.raises(UserError, match="stopped by SIGTERM at step 3, saved") as caught:
            train_run(*CHANGING, f"train.max_steps={NEVER}")
        assert process_state() == before
    assert caught.value.exit_code == EXIT_TERMINATED


def test_a_second_interrupt_leaves_the_process_as_it_was(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ys_llm.training import loop

    def interrupt(run: Any, state: Any, gradients: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one acts at once")

    monkeypatch.setattr(loop, "optimizer_step", interrupt)
    before = process_state()
    with pytest.raises(UserError, match="immediately; the latest checkpoint is that of step 0"):
        train_run(*CHANGING)
    assert process_state() == before


def test_settings_are_restored_where_the_caller_flushes_denormals() -> None:
    torch.set_flush_denormal(True)
    try:
        with process_settings(TrainConfig()):
            pass
        assert sys.float_info.min * 0.5 == 0
    finally:
        torch.set_flush_denormal(False)


def test_the_rate_of_matmuls_is_one_that_a_machine_can_have() -> None:
    rate = matmul_rate(torch.float32, torch.device("cpu"))
    assert 1e8 < rate < 1e15
