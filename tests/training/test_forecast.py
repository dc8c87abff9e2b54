"""`ys train --dry-run` forecasts sizes, memory and time, and changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.training_runs import PINNED, ROOT, TINY, TrainRun, settings, snapshot

from ys_llm.config.sources import load_config
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.costs import flops_per_token, parameter_count, parameters_by_part, state_bytes
from ys_llm.runs.model_files import load_run
from ys_llm.system import machine
from ys_llm.training import budget, forecast
from ys_llm.training.memory import FORECAST_ERROR, MemoryForecast

DryRun = Callable[..., str]
DURATION = r"([\d.,]+) (s|min|h)\b"
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@pytest.fixture
def dry_run(
    tmp_path: Path,
    corpus: Path,
    threads_as_they_were: None,
    monkeypatch: pytest.MonkeyPatch,
) -> DryRun:
    """The forecast for these settings on top of SMALL, after a short burst.

    Memory is measured only where `measure_memory` is set: a child process takes seconds.
    """
    monkeypatch.setattr(budget, "BURST_SECONDS", 0.05)
    fixed = MemoryForecast(200_000_000, ((1, 300_000_000),), 310_000_000)

    def run(*changes: str, measure_memory: bool = False) -> str:
        if not measure_memory:
            monkeypatch.setattr(forecast, "forecast_memory", lambda *_, **__: fixed)
        resolved = load_config(None, overrides=settings(corpus, changes))
        return forecast.dry_run(resolved, runs_dir=tmp_path / "runs")

    return run


def line_of(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return line[13:]


def seconds_of(duration: str) -> float:
    found = re.fullmatch(DURATION, duration)
    assert found, duration
    return float(found[1].replace(",", "")) * SECONDS[found[2]]


def test_nothing_is_left_behind_and_nothing_is_changed(
    dry_run: DryRun, train_run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = snapshot(tmp_path)
    dry_run()
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "runs").exists()
    train_run()
    before = snapshot(tmp_path)
    dry_run("train.max_steps=50")
    assert snapshot(tmp_path) == before
    assert not list(scratch.iterdir())


def test_sizes_are_those_of_the_model_that_training_makes(
    dry_run: DryRun, train_run: TrainRun
) -> None:
    text = dry_run("train.grad_accum_steps=2")
    model = load_run(train_run("train.grad_accum_steps=2").run).model
    parameters = line_of(text, "parameters")
    assert parameters.startswith(f"{parameter_count(model):,}: ")
    for part, count in parameters_by_part(model).items():
        assert f"{part} {count:,}" in parameters
    assert line_of(text, "FLOPs").startswith(f"{flops_per_token(model, 16) / 1e6:,.1f} million")
    assert line_of(text, "state").startswith(f"{state_bytes(model, batch_size=1, seq_len=16):,} ")


def test_an_epoch_is_as_long_as_that_of_training(
    dry_run: DryRun, train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    text = dry_run()
    capsys.readouterr()
    train_run()
    (steps,) = re.findall(r"([\d.]+) steps per epoch", capsys.readouterr().err)
    assert line_of(text, "epoch").endswith(f" tokens, {steps} steps")


def test_memory_is_forecast_with_its_error(dry_run: DryRun) -> None:
    memory = line_of(dry_run(measure_memory=True), "memory")
    found = re.fullmatch(
        r"about ([\d.]+) GB, \+-20%, reading the corpus included; ([\d,.]+) GB free", memory
    )
    assert found, memory
    assert 0.1 < float(found[1]) < 5


def test_unknown_free_memory_is_called_unknown(
    dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "available_bytes", lambda device: None)
    text = dry_run()
    assert line_of(text, "memory").endswith("; unknown free")
    assert " steps " in line_of(text, "time")


def test_time_is_the_sum_of_its_parts_and_grows_with_the_steps(dry_run: DryRun) -> None:
    stepping = []
    for steps in (6, 600):
        told = line_of(dry_run(f"train.max_steps={steps}"), "time")
        total, *parts = (seconds_of(" ".join(found)) for found in re.findall(DURATION, told))
        assert total == pytest.approx(sum(parts), abs=0.3, rel=0.02)
        assert f" {steps} steps " in told
        stepping.append(parts[1])
    assert stepping[1] > 10 * stepping[0]


def test_every_stage_is_measured(dry_run: DryRun) -> None:
    stages = "{seq_len: 8, batch_size: 2, steps: 3}, {seq_len: 16, batch_size: 4, steps: 5}"
    text = dry_run(f"train.stages=[{stages}]")
    assert " 8 steps " in line_of(text, "time")


@pytest.mark.slow
def test_an_automatic_batch_size_is_found_but_not_saved(
    dry_run: DryRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = dry_run(
        "train.batch_size=auto",
        "train.memory_limit_gb=1",
        "train.max_steps=2",
        "train.seq_len=256",  # rows large enough to be told from the allocator's noise
        "model.d_model=128",
        measure_memory=True,
    )
    (size,) = re.findall(r"batch size +(\d+):", capsys.readouterr().err)
    assert int(size) % 8 == 0
    (training,) = re.findall(r"about ([\d.]+) GB", text)
    # Of two forecasts, that of the size and that of the training, each may be off by its error.
    most = (1 + FORECAST_ERROR) / (1 - FORECAST_ERROR)
    assert 1 / most <= float(training) <= most
    assert not (tmp_path / "runs").exists()


def test_time_is_not_measured_where_the_memory_would_not_suffice(
    dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "available_bytes", lambda device: 10_000_000)
    text = dry_run()
    assert line_of(text, "time") == "not measured: the training needs more memory than is free"
    assert line_of(text, "memory").endswith("; 0.01 GB free")


def test_what_training_would_refuse_is_refused(dry_run: DryRun, train_run: TrainRun) -> None:
    run = train_run().run
    with pytest.raises(UserError, match=r"model\.d_mlp was 24 and is now 32") as caught:
        dry_run("model.d_mlp=32")
    assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(UserError):
        dry_run("run=other", "train.seq_len=1000000")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        dry_run()


@pytest.mark.slow
def test_time_and_memory_are_those_of_the_training(tmp_path: Path) -> None:
    """Minutes; the time is true only where nothing else runs, and is compared only there."""
    overrides = ("train.max_steps=100", "train.eval_interval=40", "train.checkpoint_interval=40")
    overrides += ("train.batch_size=16", "train.sample_interval=0", "train.device=cpu")
    # A choice by time may differ between the two where other work runs, and with it the memory.
    overrides += ("train.dtype=fp32", "train.backend={three_tier: windowed}")
    alone = (machine.inspect_machine().load or 0.0) < 0.5
    words = [w for o in overrides for w in ("--set", o)]
    command = [sys.executable, "-m", "ys_llm", "train", "--data", str(ROOT / "training_data")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    text = subprocess.run(
        [*command, *words, "--dry-run"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    began = time.perf_counter()
    process = subprocess.Popen([*command, *words], cwd=tmp_path, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen does not know that it ended
    assert process.returncode == 0
    promised = seconds_of(line_of(text, "time").partition(":")[0])
    print(f"time: promised {promised:.0f} s, taken {seconds:.0f} s")
    if alone:
        assert promised == pytest.approx(seconds, rel=0.25)
    (memory,) = re.findall(r"about ([\d.]+) GB", text)
    print(f"memory: promised {memory} GB, taken {usage.ru_maxrss * 1024 / 1e9:.2f} GB")
    assert float(memory) * 1e9 == pytest.approx(usage.ru_maxrss * 1024, rel=FORECAST_ERROR)


# Its own peak, which the peak of the process that started it does not raise.
YS_WITH_PEAK = """
import sys
from pathlib import Path
from ys_llm.cli.main import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text().split()
print("peak", status[status.index("VmHWM:") + 1])
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("n_files", [1, 50])
def test_the_memory_of_a_training_on_a_large_text_is_forecast(tmp_path: Path, n_files: int) -> None:
    """100 MB of text that lay in memory would add a quarter to what is forecast."""
    (tmp_path / "text").mkdir()
    for number in range(n_files):
        lines = (f"{number} {i:9} is a number of this text.\n" for i in range(2_500_000 // n_files))
        with (tmp_path / "text" / f"{number}.txt").open("w") as file:
            file.writelines(lines)
    overrides = (*TINY, *PINNED, "train.sample_interval=0", "data.validation_fraction=0.001")
    words = ["train", "--data", "text", *(w for o in overrides for w in ("--set", o))]

    def run(*more: str) -> str:
        return subprocess.run(
            [sys.executable, "-P", "-c", YS_WITH_PEAK, *words, *more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    (memory,) = re.findall(r"about ([\d.]+) GB", run("--dry-run"))
    first, second = (1024 * int(run().rpartition("peak ")[2]) for _ in range(2))
    print(f"memory: promised {memory} GB, taken {first / 1e9:.2f} GB, then {second / 1e9:.2f} GB")
    assert float(memory) * 1e9 == pytest.approx(first, rel=FORECAST_ERROR)
    assert second < 1.05 * first
