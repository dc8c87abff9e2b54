"""`train.minutes`: a burst at the start measures the steps, and changes nothing else."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.forked import ForkServer
from support.training_runs import (
    TrainRun,
    assert_same_training,
    column,
    rows_of,
    settings,
)

from ys_llm.config.schema import Config, Stage, TrainConfig
from ys_llm.config.sources import load_config
from ys_llm.errors import EXIT_INTERRUPTED, UserError
from ys_llm.runs.folder import checkpoints
from ys_llm.training import budget, forecast, loop, steps
from ys_llm.training.budget import Costs, steps_within, with_steps
from ys_llm.training.memory import MemoryForecast
from ys_llm.training.schedule import scheduled_rate

TICK = 0.25  # seconds from one reading of the fake clock to the next
# Without held-out text nothing is evaluated. In 6 s are a checkpoint before the first step and one
# after the last, with the model published: 2 1/3 ticks, and so 21 whole steps of a tick.
BUDGET = ("train.minutes=0.1", "data.validation_fraction=0", "train.sample_interval=0")
STEPS = 21
CHANGING = ("model.dropout=0.2", "data.batching=contiguous", "train.schedule=linear")
CHANGING += ("train.cooldown_fraction=0.2",)  # the default: linear has no cool-down


class FakeClock:
    """Stands for the module `time`: every reading is one tick later."""

    def __init__(self) -> None:
        self._readings = itertools.count()

    def perf_counter(self) -> float:
        return TICK * next(self._readings)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    for module in (budget, steps):
        monkeypatch.setattr(module, "time", fake)
    return fake


@pytest.fixture
def no_burst(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, a measurement is an error."""

    def measure(*_: Any) -> Costs:
        raise AssertionError("measured again")

    return lambda: monkeypatch.setattr(budget, "measure", measure)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in this step of the training."""
    real = steps.optimizer_step

    def stopping(run: Any, state: Any, gradients: Any) -> Any:
        row = real(run, state, gradients)
        if state.progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(loop, "optimizer_step", stopping)


def saved_config(run: Path) -> Config:
    return load_config(run / "config.yaml").config


# The arithmetic.

COSTS = Costs((0.5,), evaluation=3.0, final_evaluation=7.0, checkpoint=0.9, sample=0.2)
stages = st.lists(st.builds(Stage, st.just(8), st.just(2), st.integers(1, 10**6)), max_size=4)


def test_everything_that_takes_time_is_counted() -> None:
    config = TrainConfig(
        max_steps=100, eval_interval=20, checkpoint_interval=30, sample_interval=50
    )
    seconds = COSTS.seconds(config)
    assert seconds["steps"] == 50.0
    assert seconds["evaluations"] == 5 * 3.0 + 7.0  # after 20, 40, 60, 80 and 100, and at the end
    # Before the first step, with each evaluation, after 30 and 90; 5 models, a third of one each.
    assert seconds["checkpoints"] == pytest.approx((1 + 5 + 2 + 5 / 3) * 0.9)
    assert seconds["samples"] == 0.2  # after 50; after the last step there is none


@given(
    st.floats(0.1, 1e5),
    st.integers(1, 500),
    st.integers(1, 500),
    stages.map(tuple),
)
def test_the_steps_are_the_most_that_fit(
    seconds: float, evaluate: int, save: int, plan: tuple[Stage, ...]
) -> None:
    train = TrainConfig(eval_interval=evaluate, checkpoint_interval=save, stages=plan)
    config = Config(train=train)
    costs = replace(COSTS, step=tuple(0.5 + 0.1 * i for i in range(len(plan) or 1)))

    def needed(total: int) -> float:
        return sum(costs.seconds(with_steps(config, total).train).values())

    total, least = steps_within(seconds, costs, config), max(1, len(plan))
    assert total == least or needed(total) <= seconds
    assert needed(total + 1) > seconds


@given(stages.map(tuple), st.integers(4, 10**7), st.integers(0, 1000))
def test_stages_and_warm_up_fit_any_number_of_steps(
    plan: tuple[Stage, ...], total: int, warmup: int
) -> None:
    fitted = with_steps(Config(train=TrainConfig(stages=plan, warmup_steps=warmup)), total)
    assert fitted.train.total_steps == total
    assert fitted.train.warmup_steps <= max(1, total // 10)
    assert with_steps(fitted, total) == fitted
    planned = sum(stage.steps for stage in plan)
    for before, after in zip(plan, fitted.train.stages, strict=True):
        assert abs(after.steps - total * before.steps / planned) <= len(plan)


# In a run.


def test_the_clock_decides_the_steps_and_the_header_says_so(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train_run(*BUDGET)
    assert summary.steps == STEPS
    error = capsys.readouterr().err
    assert (
        f"minutes      0.1 min = {STEPS} steps of 64 tokens at 256 tokens/s; "
        "evaluations 0.0 s, checkpoints 0.6 s, samples 0.0 s\n"
    ) in error
    assert f"plan         {STEPS} steps of 64 tokens" in error


@pytest.mark.parametrize("changes", [(), CHANGING], ids=["plain", "dropout and a carried state"])
def test_the_training_is_bit_for_bit_that_of_a_run_with_these_steps(
    train_run: TrainRun, changes: tuple[str, ...]
) -> None:
    measured = train_run(*BUDGET, *changes).run
    given = train_run(*BUDGET[1:], *changes, f"train.max_steps={STEPS}", runs="given").run
    assert_same_training(measured, given)
    assert (measured / "model.safetensors").read_bytes() == (
        given / "model.safetensors"
    ).read_bytes()
    config = saved_config(measured).train
    assert (config.minutes, config.max_steps) == (0.1, STEPS)
    assert replace(config, minutes=None) == saved_config(given).train


def test_the_schedule_ends_at_the_last_step(train_run: TrainRun) -> None:
    run = train_run(*BUDGET, *CHANGING, "train.warmup_steps=50").run
    config = saved_config(run).train
    assert config.warmup_steps == 2  # a tenth of 21: it would never have reached its rate
    rates = [scheduled_rate(step, config, total_steps=STEPS) for step in range(STEPS)]
    assert column(run, "learning_rate") == rates
    assert rates[-1] < 0.1 * max(rates)


def test_stages_share_the_minutes(train_run: TrainRun) -> None:
    plan = "{seq_len: 8, batch_size: 2, steps: 200}, {seq_len: 16, batch_size: 4, steps: 100}"
    run = train_run(*BUDGET, f"train.stages=[{plan}]").run
    assert [(s.seq_len, s.steps) for s in saved_config(run).train.stages] == [(8, 14), (16, 7)]
    assert column(run, "tokens")[13] == 14 * 16
    assert column(run, "tokens")[-1] == 14 * 16 + 7 * 64


def test_a_run_that_was_stopped_goes_on_without_a_second_burst(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, no_burst: Callable[[], None]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(UserError, match="at step 9, saved") as caught:
            train_run(*BUDGET, *CHANGING)
    assert caught.value.exit_code == EXIT_INTERRUPTED
    no_burst()
    run = train_run(*BUDGET, *CHANGING).run
    given = train_run(*BUDGET[1:], *CHANGING, f"train.max_steps={STEPS}", runs="given").run
    assert_same_training(run, given)
    rows = len(rows_of(run))
    assert train_run(*BUDGET, *CHANGING).steps == rows == STEPS  # nothing is left


def test_a_run_killed_in_its_burst_begins_again(
    train_run: TrainRun, corpus: Path, tmp_path: Path, forks: ForkServer
) -> None:
    words = [word for text in settings(corpus, BUDGET) for word in ("--set", text)]
    run = tmp_path / "runs" / "mine"
    for at in itertools.count(40, 40):
        fault = {"below": str(tmp_path), "kind": "kill", "at": at}
        ended = forks.run("train", *words, folder=tmp_path, fault=fault)
        assert ended.code == -signal.SIGKILL
        if [*run.glob(".burst-*.tmp")]:
            break
    assert not checkpoints(run)
    assert train_run(*BUDGET).steps == STEPS
    assert not [*run.glob(".burst-*")]


def test_other_minutes_are_measured_and_extend_the_run(train_run: TrainRun) -> None:
    train_run(*BUDGET)
    longer = train_run("train.minutes=0.2", *BUDGET[1:])
    assert longer.steps == 45  # (12 - 0.58) / 0.25
    given = train_run(*BUDGET[1:], "train.max_steps=45", runs="given").run
    assert_same_training(longer.run, given)


def test_steps_replace_the_minutes_of_a_run(
    train_run: TrainRun, no_burst: Callable[[], None]
) -> None:
    run = train_run(*BUDGET).run
    no_burst()
    longer = load_config(run / "config.yaml", overrides=["train.max_steps=30"])
    assert longer.config.train.minutes is None
    assert train_run(*BUDGET[1:], "train.max_steps=30").steps == 30


def test_less_than_one_step_is_one_step(train_run: TrainRun) -> None:
    assert train_run("train.minutes=0.0001", *BUDGET[1:]).steps == 1


def test_a_forecast_says_what_the_minutes_come_to(
    train_run: TrainRun,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_burst: Callable[[], None],
) -> None:
    fixed = MemoryForecast(200_000_000, ((1, 300_000_000),), 310_000_000)
    monkeypatch.setattr(forecast, "forecast_memory", lambda *_, **__: fixed)
    resolved = load_config(None, overrides=settings(corpus, BUDGET))
    text = forecast.dry_run(resolved, runs_dir=tmp_path / "runs")
    assert f"minutes      0.1 min = {STEPS} steps of 64 tokens at 256 tokens/s" in text
    assert re.search(rf"time +[\d.]+ s: .* {STEPS} steps 5\.2 s", text)
    train_run(*BUDGET)
    text = forecast.dry_run(resolved, runs_dir=tmp_path / "runs")
    assert "minutes" not in text  # they are known
    assert f" {STEPS} steps " in text
