"""One budget for all runs of a comparison: what it comes to in steps, and what it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ys_llm.config.schema import Config, Stage
from ys_llm.config.sources import load_config
from ys_llm.errors import UsageError, UserError
from ys_llm.model.costs import flops_per_token
from ys_llm.model.language_model import Model
from ys_llm.training.budget import tokens_of
from ys_llm.training.schedule import scheduled_rate
from ys_llm.training.trial_budget import Budget, flops_of, parse_budget, with_budget
from ys_llm.training.trials import plan_trial

SMALL = replace(
    Config(), model=replace(Config().model, d_model=16, n_layers=1, d_mlp=16, layers=("min_gru",))
)
STEP = 32 * 256  # tokens


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("tokens=2e6", Budget("tokens", 2e6)),
        ("seconds=600", Budget("seconds", 600)),
        ("flops=1e15", Budget("flops", 1e15)),
    ],
)
def test_a_budget_is_read_as_it_is_written(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(budget.text) == budget


@pytest.mark.parametrize(
    "text", ["600", "steps=3", "tokens=", "tokens=-1", "seconds=nan", "flops=inf", "tokens=2e6=3"]
)
def test_anything_else_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="tokens=2e6, seconds=600 or flops=1e15"):
        parse_budget(text)


def test_tokens_become_as_many_steps_as_they_have_room_for() -> None:
    config = with_budget(SMALL, Budget("tokens", 20.5 * STEP))
    assert (config.train.total_steps, tokens_of(config.train)) == (20, 20 * STEP)
    # The schedule fits: it is warm after a tenth, and its rate falls to the end.
    rates = [scheduled_rate(step, config.train, total_steps=20) for step in range(20)]
    assert max(rates) == rates[2] == config.train.learning_rate
    assert rates[-1] < rates[2] / 10


def test_stages_keep_their_proportions() -> None:
    stages = (Stage(32, 8, 30), Stage(64, 8, 10))
    config = replace(SMALL, train=replace(SMALL.train, stages=stages))
    fitted = with_budget(config, Budget("tokens", tokens_of(config.train) / 2))
    assert [stage.steps for stage in fitted.train.stages] == [15, 5]


def test_flops_are_three_times_those_of_the_forward_pass() -> None:
    model = Model(SMALL.model, vocab_size=SMALL.tokenizer.vocab_size)
    of_step = 3 * STEP * flops_per_token(model, 256)
    assert flops_of(SMALL) == of_step * SMALL.train.max_steps
    wider = replace(SMALL, model=replace(SMALL.model, d_mlp=5000))
    budget = Budget("flops", 30 * of_step)
    assert with_budget(SMALL, budget).train.total_steps == 30
    assert with_budget(wider, budget).train.total_steps < 30


def test_seconds_become_as_many_steps_as_fit_into_them() -> None:
    minutes = replace(SMALL, train=replace(SMALL.train, minutes=7.0))
    train = with_budget(minutes, Budget("seconds", 90, (0.25,))).train
    assert (train.max_steps, train.minutes) == (360, None)
    stages = (Stage(32, 8, 30), Stage(64, 8, 10))
    staged = replace(SMALL, train=replace(SMALL.train, stages=stages))
    fitted = with_budget(staged, Budget("seconds", 25, (1.0, 2.0))).train
    assert [stage.steps for stage in fitted.stages] == [15, 5]


def test_a_budget_of_less_than_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="before default has done 1 step of 8192 tokens"):
        with_budget(SMALL, Budget("tokens", 100))


def test_the_command_of_a_run_gives_its_configuration(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("run: a\nmodel: {layers: [min_gru]}\ntrain: {minutes: 3}\n")
    budget = Budget("tokens", 20.5 * STEP)
    given = ["train.weight_decay=0.2"]
    trial = plan_trial("a.yaml", file, given, seed=1338, budget=budget)
    assert trial.run == "a-tokens167936-s1338"
    flags = trial.resolved.flags
    again = load_config(file, overrides=[*flags["set"], f"run={flags['run']}"])  # type: ignore[misc]
    assert again.config == trial.resolved.config
    assert (again.config.train.total_steps, again.config.train.minutes) == (20, None)
    own = plan_trial("a.yaml", file, given, seed=1337, budget=None)
    assert (own.run, own.command) == (
        "a",
        "ys train --config a.yaml --set train.weight_decay=0.2",
    )
