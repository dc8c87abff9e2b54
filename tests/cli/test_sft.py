"""What `ys sft` sets: the base's model, settings fit for fine-tuning, and what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ys_llm.cli import sft
from ys_llm.cli.common import typed
from ys_llm.cli.main import main, parse
from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config, to_yaml
from ys_llm.errors import EXIT_NO_MODEL, EXIT_USAGE


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was fine-tuned itself, with settings of its own, in the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft, "RUNS_DIR", tmp_path / "runs")
    folder = tmp_path / "runs" / "base"
    folder.mkdir(parents=True)
    own = ["run=base", "model.d_model=32", "train.minutes=4", "train.optimizer=muon"]
    own += ["sft.method=full", "sft.replay=0.3", "train.init_from=older", "train.seq_len=96"]
    (folder / "config.yaml").write_text(to_yaml(load_config(None, overrides=own).config))
    (folder / ".ys-lock").touch()
    (folder / "model.safetensors").touch()
    return folder


def resolved(*words: str) -> Config:
    namespace = parse(["sft", "base", "my chats.jsonl", *words])
    return sft.resolve(typed(sft.Arguments, namespace)).config


def test_the_model_is_the_bases_and_the_rest_is_fit_for_fine_tuning(base: Path) -> None:
    config = resolved()
    assert (config.run, config.train.init_from) == ("base-my-chats", "base")
    assert (config.model.d_model, config.train.seq_len) == (32, 96)
    assert (config.train.optimizer, config.train.minutes) == ("adamw", None)
    assert (config.sft.method, config.sft.epochs, config.sft.replay) == ("full", 3, 0)
    assert config.train.learning_rate == 5e-4
    lora = resolved("--method", "lora", "--objective", "preferences")
    assert lora.train.learning_rate == pytest.approx(1e-3)


def test_text_of_the_base_is_replayed_where_it_is_there(base: Path) -> None:
    older = base.with_name("older")
    older.mkdir()
    text = base.parent / "text"
    overrides = ["run=older", f"data.path={text}"]
    (older / "config.yaml").write_text(to_yaml(load_config(None, overrides=overrides).config))
    for file in (".ys-lock", "model.safetensors"):
        (older / file).touch()
    assert resolved().sft.replay == 0
    text.mkdir()
    assert resolved().sft.replay == 0.5
    assert resolved("--replay", "0").sft.replay == 0
    assert resolved("--method", "state").sft.replay == 0
    assert resolved("--objective", "preferences").sft.replay == 0


def test_what_is_typed_or_set_in_the_environment_wins(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YS_TRAIN__WEIGHT_DECAY", "0.5")
    config = resolved("--replay", "0.1", "--minutes", "3", "--set", "train.learning_rate=0.5")
    assert (config.train.weight_decay, config.sft.replay) == (0.5, 0.1)
    assert (config.train.minutes, config.sft.epochs) == (3, None)
    assert config.train.learning_rate == 0.5
    assert resolved("--set", "train.max_steps=7").sft.epochs is None


def test_a_run_that_exists_keeps_its_own_settings(base: Path) -> None:
    own = base.with_name("again")
    own.mkdir()
    begun = resolved("--run", "again", "--method", "lora", "--set", "sft.lora.rank=3")
    (own / "config.yaml").write_text(to_yaml(begun))
    assert resolved("--run", "again") == begun


def test_what_several_processes_cannot_fine_tune(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ["sft", "base", "pairs.jsonl", "--objective", "preferences", "--processes", "2"]
    assert main(pairs) == EXIT_USAGE
    told = capsys.readouterr().err
    assert "sft.objective: preferences, which 2 processes cannot share" in told
    assert "In one process: ys train --run base-pairs" in told
    with pytest.raises(SystemExit) as exit:
        main(["sft", "base", "chats.jsonl", "--processes", "0"])
    assert exit.value.code == EXIT_USAGE


def test_several_processes_are_started_with_what_was_typed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(
        "ys_llm.cli.processes.launch", lambda words, **how: started.append((words, how)) or 0
    )
    typed = ["sft", "base", "my chats.jsonl", "--method", "lora", "--replay", "0.5"]
    typed += ["--set", "train.seed=3"]
    assert main([*typed, "--processes", "2"]) == 0
    assert started == [(typed, {"processes": 2, "max_restarts": 0})]


def test_a_base_is_needed_and_one_length(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "nobody", "chats.jsonl"]) == EXIT_NO_MODEL
    assert "there is no trained model 'nobody'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["sft", "base", "chats.jsonl", "--epochs", "2", "--minutes", "1"])
    assert exit.value.code == EXIT_USAGE
