"""`model.size`: a name for several settings; `auto` chooses it by the minutes and the machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import ROOT, assert_same_training, settings

from ys_llm.config import sizes
from ys_llm.config.schema import Config
from ys_llm.config.sizes import AUTO, size_names, size_values
from ys_llm.config.sources import Resolved, load_config, with_size
from ys_llm.config.yaml_io import dump_yaml
from ys_llm.errors import UserError
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.training import budget, forecast, more_time, setup, size
from ys_llm.training.budget import with_steps
from ys_llm.training.loop import train
from ys_llm.training.memory import MemoryForecast
from ys_llm.training.size import ENOUGH_TOKENS
from ys_llm.training.trainer import Run

WIDTHS = {"narrow": 8, "small": 16, "wide": 32}
SPEEDS = {"narrow": 2e4, "small": 1e4, "wide": 5e3}  # tokens/s
STEPS = 4  # whatever the minutes
OF_A_SIZE = ("model.", "train.seq_len=", "train.batch_size=", "train.max_steps=")
TrainSize = Callable[..., Path]
real_burst = size._tokens_per_second


def count(name: str, vocab_size: int = 258) -> int:
    with torch.device("meta"):
        return parameter_count(Model(with_size(Config(), name).model, vocab_size=vocab_size))


def minutes_for(name: str, tokens_a_parameter: float) -> float:
    return tokens_a_parameter * count(name) / SPEEDS[name] / 60


def settings_of(corpus: Path, *changes: str) -> Resolved:
    kept = [one for one in settings(corpus, ()) if not one.startswith(OF_A_SIZE)]
    return load_config(None, overrides=[*kept, *changes])


def saved_config(run: Path) -> Config:
    return load_config(run / "config.yaml").config


@pytest.fixture
def three_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that train at once, each of a known speed; minutes come to a few steps."""
    folder = tmp_path / "sizes"
    folder.mkdir()
    for name, width in WIDTHS.items():
        widths = {"d_model": width, "n_layers": 1, "d_mlp": 2 * width}
        model = {**widths, "options": {"three_tier": {"d_state": width}}}
        steps = {"seq_len": 16, "batch_size": 4, "learning_rate": 0.003}
        (folder / f"{name}.yaml").write_text(dump_yaml({"model": model, "train": steps}))
    monkeypatch.setattr(sizes, "_folder", lambda: folder)
    monkeypatch.setattr(sizes, "_STANDS_FOR_AUTO", "small")
    monkeypatch.setattr(size, "_tokens_per_second", lambda config, *_: SPEEDS[config.model.size])

    def few_steps(run: Run) -> Run:
        return dataclasses.replace(run, config=with_steps(run.config, STEPS))

    monkeypatch.setattr(setup, "fit_to_minutes", few_steps)
    measured = [
        {"class": of_class, "minutes": 1e-6, "size": "small", "bits_per_byte": 1.0}
        for of_class in more_time.MEASURED.values()
    ]
    monkeypatch.setattr(more_time, "read_table", lambda: {"runs": measured})


@pytest.fixture
def train_size(corpus: Path, tmp_path: Path, three_sizes: None) -> TrainSize:
    def run(*changes: str, runs: str = "runs") -> Path:
        return train(settings_of(corpus, *changes), runs_dir=tmp_path / runs).run

    return run


def no_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(size, "_tokens_per_second", measure)
    monkeypatch.setattr(setup, "fit_to_minutes", measure)


# The sizes that ys ships.


@pytest.mark.parametrize("name", size_names())
def test_a_size_is_a_model_that_sets_the_same_values_as_the_others(name: str) -> None:
    assert set(size_values(name)) == set(size_values(AUTO))
    assert load_config(None, overrides=[f"model.size={name}"]).config == with_size(Config(), name)
    text = (ROOT / f"configs/sizes/{name}.yaml").read_text()
    assert text.startswith(f"# {count(name, 2048) / 1e6:.1f} million parameters")


def test_one_size_is_about_twice_the_one_before() -> None:
    counts = sorted(count(name, 2048) for name in size_names())
    assert len(counts) == 6
    assert all(1.5 < larger / smaller < 2.5 for smaller, larger in pairwise(counts))


# What `auto` takes.


def test_the_largest_size_that_reads_enough_is_taken_and_the_header_says_why(
    train_size: TrainSize, capsys: pytest.CaptureFixture[str]
) -> None:
    minutes = minutes_for("small", 1.01 * ENOUGH_TOKENS)
    model = saved_config(train_size("model.size=auto", f"train.minutes={minutes}")).model
    assert (model.size, model.d_model, model.d_mlp) == ("small", 16, 32)
    assert model.options == {"three_tier": {"d_state": 16, "state_gate": True}}
    wide = 60 * minutes * SPEEDS["wide"] / count("wide")
    assert (
        f"size         auto: small, d_model 16, 1 layer, {count('small') / 1e6:.1f} M parameters: "
        f"{1.01 * ENOUGH_TOKENS:.1f} tokens a parameter in {minutes:g} minutes; "
        f"wide would read {wide:.1f}, and {ENOUGH_TOKENS:g} are enough\n"
    ) in capsys.readouterr().err


def test_the_copy_tier_counts_among_the_parameters(
    train_size: TrainSize, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tier as wide as this has more parameters than the stack below it."""
    copying = ("model.copy.window=8", "model.copy.width=256")
    minutes = minutes_for("small", 1.01 * ENOUGH_TOKENS)
    auto = ("model.size=auto", f"train.minutes={minutes}")
    assert saved_config(train_size(*auto)).model.size == "small"
    assert saved_config(train_size(*auto, *copying, runs="copying")).model.size == "narrow"
    with_tier = count("narrow") + 3 * WIDTHS["narrow"] * 256 + WIDTHS["narrow"] + 1
    each = 60 * minutes * SPEEDS["narrow"] / with_tier
    assert f"{each:.1f} tokens a parameter in" in capsys.readouterr().err


@pytest.mark.parametrize(("times", "chosen"), [(1e-4, "narrow"), (0.99, "narrow"), (1e3, "wide")])
def test_less_time_takes_a_smaller_size_and_there_is_always_one(
    times: float, chosen: str, train_size: TrainSize
) -> None:
    minutes = minutes_for("small", times * ENOUGH_TOKENS)
    run = train_size("model.size=auto", f"train.minutes={minutes}")
    assert saved_config(run).model.size == chosen


def test_the_burst_changes_nothing_in_the_training(
    corpus: Path, tmp_path: Path, train_size: TrainSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "_tokens_per_second", real_burst)
    monkeypatch.setattr(size, "BURST_SECONDS", 0.0)  # two steps
    monkeypatch.setattr(size, "ENOUGH_TOKENS", 0.0)
    changes = ("model.dropout=0.2", "train.warmup_steps=1")
    chosen = train_size("model.size=auto", "train.minutes=1", *changes)
    assert saved_config(chosen).model.size == "wide"
    given = train_size("model.size=wide", f"train.max_steps={STEPS}", *changes, runs="given")
    assert_same_training(chosen, given)


def test_a_run_keeps_its_size(train_size: TrainSize, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = ("model.size=auto", "train.minutes=1e-6")
    chosen = saved_config(train_size(*auto))
    no_burst(monkeypatch)
    run = train_size(*auto)  # the same command again
    assert saved_config(run) == chosen
    again = load_config(run / "config.yaml", overrides=["train.learning_rate=0.001"])
    assert train(again, runs_dir=run.parent).steps == STEPS
    assert saved_config(run).model.d_model == chosen.model.d_model == WIDTHS["narrow"]
    with pytest.raises(UserError, match=r"model\.d_model was 8 and is now 32"):
        train_size("model.size=wide", "train.minutes=1e-6")


def test_a_cleaned_run_is_sized_again(train_size: TrainSize) -> None:
    run = train_size("model.size=auto", "train.minutes=1e-6")
    for path in (run / "checkpoints", run / "model.safetensors", run / "metrics.jsonl"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "config.json").unlink()
    minutes = minutes_for("wide", 2 * ENOUGH_TOKENS)
    train_size("model.size=auto", f"train.minutes={minutes}")
    assert saved_config(run).model.size == "wide"


def test_a_forecast_says_what_size_auto_comes_to(
    corpus: Path,
    tmp_path: Path,
    three_sizes: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fixed = MemoryForecast(200_000_000, ((1, 300_000_000),), 310_000_000)
    monkeypatch.setattr(forecast, "forecast_memory", lambda *_, **__: fixed)
    monkeypatch.setattr(budget, "BURST_SECONDS", 0.0)
    asked = settings_of(corpus, "model.size=auto", "train.minutes=1e-6")
    text = forecast.dry_run(asked, runs_dir=tmp_path / "runs")
    assert "size         auto: narrow, d_model 8, " in capsys.readouterr().err
    assert f"parameters   {count('narrow'):,}: " in text
    assert not (tmp_path / "runs").exists()


def test_a_models_description_names_its_widths_and_no_size(train_size: TrainSize) -> None:
    run = train_size("model.size=narrow", "train.max_steps=1")
    described = json.loads((run / "config.json").read_text())
    assert described["d_model"] == WIDTHS["narrow"]
    assert "size" not in described
