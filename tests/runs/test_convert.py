"""A run made at cb51132, before names and formats changed, is converted and used.

cb51132/run was trained there for 30 steps on the sentences below, in a width of 8:

    data: {layout: streams, validation_fraction: 0.2}, tokenizer: {kind: bytes}
    model.options: {d_state: 8, d_summary: 4, local_every: 4, entry: soft}
    train: {seq_len: 16, batch_size: 4, implementation: windowed, dtype: fp32, threads: 1}

`ys eval` printed BITS_PER_BYTE there, and three more steps gave NEXT_LOSSES.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import rows_of, snapshot

from ys_llm.cli.main import main
from ys_llm.config.schema import ModelConfig
from ys_llm.config.sources import load_config
from ys_llm.errors import EXIT_INTERRUPTED, EXIT_USAGE
from ys_llm.model.language_model import Model
from ys_llm.model.state import unflatten
from ys_llm.runs import convert
from ys_llm.runs.checkpoint import read_checkpoint
from ys_llm.runs.folder import checkpoints

FIXTURE = Path(__file__).parent / "cb51132" / "run"
BITS_PER_BYTE = 2.0062685535929163
NEXT_LOSSES = [1.402113676071167, 1.3955694437026978, 1.4001624584197998]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_as_they_were: None) -> Path:
    """A copy of the run, and the text that it was trained on, in the current folder."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    pets, places = ("cat", "dog", "fox"), ("mat", "log", "hill")
    Path("corpus").mkdir()
    for i in range(40):
        text = f"The {draw.choice(pets)} sat on the {draw.choice(places)} and saw {i} birds."
        Path(f"corpus/{i:02}.txt").write_text(text)
    shutil.copytree(FIXTURE, "runs/old")
    return Path("runs/old")


def evaluated(capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    assert main(["eval", "old", "corpus", "--json"]) == 0
    figure: float = json.loads(capsys.readouterr().out)[0]["bits_per_byte"]
    return figure


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "old", "corpus"],
        ["run", "old", "--prompt", "The"],
        ["train", "--run", "old"],
        ["train", "--init-from", "old", "--data", "corpus"],
        ["config", "show", "--run", "old"],
    ],
    ids=lambda words: words[0],
)
def test_an_earlier_run_is_refused_with_the_command_that_converts_it(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run)
    assert main(words) == EXIT_USAGE
    assert capsys.readouterr().err == (
        "ys: runs/old was made by an earlier version of ys. Type: ys convert runs/old\n"
    )
    assert snapshot(run) == before


def test_a_converted_run_has_the_same_bits_per_byte(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "runs/old"]) == 0
    changed = capsys.readouterr().out.splitlines()
    assert "runs/old/checkpoints/step-00000030" in changed
    assert changed[-1] == "runs/old/config.yaml"
    assert evaluated(capsys) == pytest.approx(BITS_PER_BYTE, abs=5e-7)
    assert not (run / "left-behind").exists()
    assert [path.name for path in (run / "superseded").iterdir()]
    assert main(["convert", "old"]) == 0
    assert capsys.readouterr().out == "runs/old needs no conversion\n"


def test_training_resumes_from_a_converted_checkpoint_as_it_would_have(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "old"]) == 0
    config = load_config(run / "config.yaml").config
    assert (config.data.batching, config.model.layers) == ("contiguous", ("three_tier",))
    assert config.model.options["three_tier"]["local_interval"] == 4
    assert config.train.rollback_lr_factor == 0.25
    assert main(["train", "--run", "old", "--set", "train.max_steps=33"]) == 0
    losses = [row["loss"] for row in rows_of(run)]
    assert len(losses) == 33
    assert losses[30:] == pytest.approx(NEXT_LOSSES, rel=1e-5)


@pytest.mark.parametrize("stop_at", range(3))
def test_a_conversion_that_was_stopped_is_repeated(
    stop_at: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = convert.convert_run(run)
    for _ in range(stop_at + 1):
        next(lines)
    lines.close()  # type: ignore[attr-defined]
    assert main(["eval", "old", "corpus"]) == EXIT_USAGE
    assert main(["convert", "old"]) == 0
    assert evaluated(capsys) == pytest.approx(BITS_PER_BYTE, abs=5e-7)
    assert read_checkpoint(checkpoints(run)[-1]).progress["step"] == 30


@pytest.mark.parametrize("stop_at", range(6))
def test_a_kill_between_any_two_renames_loses_nothing(
    stop_at: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename, renames = os.replace, iter(range(100))

    def stop_before(source: Any, target: Any) -> None:
        if next(renames) == stop_at:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stop_before)
        assert main(["convert", "old"]) == EXIT_INTERRUPTED
    assert main(["convert", "old"]) == 0
    assert evaluated(capsys) == pytest.approx(BITS_PER_BYTE, abs=5e-7)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000030"]
    assert read_checkpoint(checkpoints(run)[-1]).progress["step"] == 30


def test_a_damaged_checkpoint_is_named_and_left_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoints(run)[-1], run / "checkpoints" / "step-00000020")
    damaged = run / "checkpoints" / "step-00000020" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = damaged.read_bytes()
    assert main(["convert", "old"]) == 0
    assert f"{damaged.parent} is not converted" in capsys.readouterr().out
    assert damaged.read_bytes() == before
    assert evaluated(capsys) == pytest.approx(BITS_PER_BYTE, abs=5e-7)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("data: {layout: [1]}", "data.batching must be one of shuffled, contiguous"),
        ("model: {mixer: three_tier}\ntrain: 3", "train must be a mapping"),
        ("model: {mixer: three_tier, n_layers: x}", "model.n_layers must be an integer"),
        ("data: {layout: streams}\ndata: {}", "config.yaml:2: data is given twice"),
        ("data: {layout", "not valid YAML"),
    ],
)
def test_settings_that_cannot_be_converted_are_named(
    settings: str, says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text(settings)
    before = snapshot(run)
    assert main(["convert", "old"]) == EXIT_USAGE
    assert says in capsys.readouterr().err
    assert snapshot(run) == before


def test_what_is_not_a_run_is_not_converted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "corpus"]) != 0
    assert "there is no run 'corpus'" in capsys.readouterr().err


@torch.no_grad()
def test_the_keys_of_a_converted_carried_state_are_still_seen() -> None:
    config = ModelConfig(d_model=16, n_layers=2, d_mlp=0, layers=("softmax_attention",))
    model = Model(config, vocab_size=20)
    tokens_BT = torch.randint(20, (2, 9))
    _, state = model(tokens_BT, None, tokens_BT == 3)
    old = {"carried.position": torch.tensor(9), "random.cpu": torch.get_rng_state()}
    for number, layer in enumerate(state["layers"]):  # B H T P, documents from 0, a clock each
        old[f"carried.{number}.keys"] = layer["keys"].transpose(1, 2)
        old[f"carried.{number}.values"] = layer["values"].transpose(1, 2)
        old[f"carried.{number}.document"] = layer["document"] - 1
        old[f"carried.{number}.position"] = torch.tensor(9)
    new = convert.convert_training_tensors(old, model)
    carried = {name.removeprefix("carried."): t for name, t in new.items() if "carried" in name}
    restored = unflatten(carried, like=model.init_state(1))
    assert torch.equal(model(tokens_BT, restored)[0], model(tokens_BT, state)[0])
