"""What is written comes back bit for bit, and what is damaged or foreign is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from ys_llm.config.schema import Config, ModelConfig, TrainConfig
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.runs.checkpoint import (
    CorruptCheckpointError,
    read_checkpoint,
    remove_superseded,
    restore,
    save_checkpoint,
)
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import load_run, read_json, read_tensors, save_model, weights
from ys_llm.training.optimizer import make_optimizer

FACTS = {
    "step": 7,
    "tokens": 700,
    "parameters": 4321,
    "val_bits_per_byte": 1.5,
    "has_records": True,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)


def config_of(**changes: Any) -> Config:
    return Config(run="mine", model=ModelConfig(d_model=16, n_layers=2, d_mlp=24, **changes))


def small_model(config: Config) -> Model:
    return Model(config.model, vocab_size=258)


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A run's folder with a published model."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    tokenizer.save(folder / "tokenizer.json")
    save_model(folder, config_of(), small_model(config_of()), tokenizer, FACTS)
    return folder


def trained(model: Model, *, steps: int = 2) -> torch.optim.AdamW:
    """The optimizer after a few steps on this model."""
    optimizer = make_optimizer(model, TrainConfig())
    for _ in range(steps):
        loss, _ = model(torch.randint(258, (2, 9)), targets_BT=torch.randint(258, (2, 9)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return optimizer


def save(run: Path, step: int) -> Model:
    model = small_model(config_of())
    optimizer, tensors = trained(model), {"random.cpu": torch.get_rng_state()}
    save_checkpoint(run, model, optimizer, progress={"step": step, "loss": 1.5}, tensors=tensors)
    return model


def one_line(caught: pytest.ExceptionInfo[UserError], *words: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("tied", [False, True])
def test_a_published_model_reads_back_with_all_that_it_needs(
    tmp_path: Path, tokenizer: Tokenizer, tied: bool
) -> None:
    config = config_of(tie_embeddings=tied)
    model = small_model(config).eval()
    tokenizer.save(tmp_path / "tokenizer.json")
    save_model(tmp_path, config, model, tokenizer, FACTS)
    loaded = load_run(tmp_path)
    tokens_BT = torch.randint(258, (2, 20))
    assert torch.equal(loaded.model(tokens_BT)[0], model(tokens_BT)[0])
    assert (loaded.config, loaded.step, loaded.has_records) == (config, 7, True)
    assert loaded.tokenizer.encode("a cat") == tokenizer.encode("a cat")
    assert not loaded.model.training
    assert ("output.weight" in read_tensors(tmp_path / "model.safetensors")) is not tied


def test_the_card_and_the_description_tell_the_facts(run: Path) -> None:
    described = read_json(run / "config.json")
    assert described == described | FACTS
    assert (described["d_model"], described["vocab_size"]) == (16, 258)
    card = (run / "README.md").read_text(encoding="utf-8")
    for line in ("# mine", "| parameters | 4321 |", "| step | 7 |", "| val bits per byte | 1.5 |"):
        assert line in card.splitlines()
    assert "ys run mine" in card
    assert read_json(run / "generation_config.json")["temperature"] == 0.8


def test_publishing_again_replaces_every_file(run: Path, tokenizer: Tokenizer) -> None:
    names = sorted(path.name for path in run.iterdir())
    other = small_model(config_of())
    save_model(run, config_of(), other, tokenizer, FACTS | {"step": 9})
    assert load_run(run).step == 9
    stored = read_tensors(run / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights(other).items())
    assert sorted(path.name for path in run.iterdir()) == names


def test_a_checkpoint_restores_weights_moments_and_all_else_exactly(run: Path) -> None:
    model = small_model(config_of(tie_embeddings=True))
    optimizer = trained(model)
    odd = {"random.cpu": torch.get_rng_state(), "carried.position": torch.tensor(12)}
    path = save_checkpoint(run, model, optimizer, progress={"step": 2, "x": 0.1}, tensors=odd)
    other = small_model(config_of(tie_embeddings=True))
    other_optimizer = make_optimizer(other, TrainConfig())
    saved = read_checkpoint(path)
    restore(saved, other, other_optimizer)
    assert saved.progress == {"format": 2, "step": 2, "x": 0.1}
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in odd.items())
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for moment, value in optimizer.state[ours].items():
            assert torch.equal(value, other_optimizer.state[theirs][moment])


def test_the_newest_the_best_and_every_so_many_stay_and_the_others_go(run: Path) -> None:
    for step in (0, 10, 20, 25, 30, 40, 50):
        save(run, step)
    remove_superseded(run, newest=2, every=20, best_step=25)
    assert [int(path.name[-8:]) for path in checkpoints(run)] == [20, 25, 40, 50]
    remove_superseded(run, newest=1, every=0, best_step=50)
    assert [int(path.name[-8:]) for path in checkpoints(run)] == [50]


def test_the_sums_are_those_that_the_command_sha256sum_makes(run: Path) -> None:
    save(run, 5)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    if shutil.which(command[0]) is None:
        pytest.skip("there is no command sha256sum here")
    shown = subprocess.run(command, cwd=checkpoints(run)[0], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout.count(": OK\n")) == (0, 4)


def test_a_step_saved_twice_holds_what_came_last(run: Path) -> None:
    save(run, 5)
    model = save(run, 5)
    stored = read_tensors(run / "checkpoints" / "step-00000005" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights(model).items())


def test_a_save_that_the_disk_refuses_leaves_nothing_and_takes_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 5)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError) as caught:
        save(run, 6)
    monkeypatch.undo()
    one_line(caught, "cannot be written", "No space left on device", "Free some space")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not list((run / "checkpoints").glob(".*"))


def test_another_tokenizer_is_refused(run: Path) -> None:
    foreign = train_tokenizer(["the dog sat on the log"], kind="chars", vocab_size=300)
    foreign.save(run / "tokenizer.json")
    with pytest.raises(UserError) as caught:
        load_run(run)
    one_line(caught, str(run / "tokenizer.json"), "not the tokenizer", foreign.fingerprint[:12])


def test_weights_of_another_shape_are_refused(run: Path, tokenizer: Tokenizer) -> None:
    wider = config_of(options={"three_tier": {"d_state": 24}})
    shutil.copy(run / "model.safetensors", run.parent / "narrow")
    save_model(run, wider, small_model(wider), tokenizer, FACTS)
    shutil.copy(run.parent / "narrow", run / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_run(run)
    one_line(caught, str(run / "model.safetensors"), "config.yaml", "blocks.0.mixer.")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["cut off", "empty", "garbled", "gone"])
def test_a_damaged_file_of_a_model_is_named_in_one_line(run: Path, name: str, damage: str) -> None:
    spoil(run / name, damage)
    with pytest.raises(UserError) as caught:
        load_run(run)
    one_line(caught, str(run / name), "cannot be read", "from scratch: ys train clean --run mine")


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    spoiled = {"cut off": content[: len(content) // 2], "empty": b"", "garbled": b"\xff\x00" * 50}
    spoiled["one bit"] = content[:-1] + bytes([content[-1] ^ 1])
    path.unlink() if damage == "gone" else path.write_bytes(spoiled[damage])


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"step": 1, "has_records": true}'])
def test_a_description_that_describes_nothing_is_named(run: Path, content: str) -> None:
    (run / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_run(run)
    one_line(caught, str(run / "config.json"), "expected an object" if "{" not in content else "")


CHECKPOINT_FILES = ("model", "optimizer", "tensors")


@pytest.mark.parametrize(
    "name", [*(f"{stem}.safetensors" for stem in CHECKPOINT_FILES), "progress.json", "SHA256SUMS"]
)
@pytest.mark.parametrize("damage", ["cut off", "empty", "garbled", "gone", "one bit"])
def test_a_damaged_checkpoint_is_recognised_by_the_file(run: Path, name: str, damage: str) -> None:
    save(run, 5)
    spoil(checkpoints(run)[-1] / name, damage)
    with pytest.raises(CorruptCheckpointError, match=str(checkpoints(run)[-1])) as caught:
        read_checkpoint(checkpoints(run)[-1])
    if name != "SHA256SUMS":
        assert name in str(caught.value)


def test_files_of_two_checkpoints_are_not_mixed(run: Path) -> None:
    save(run, 5)
    save(run, 6)
    older, newer = checkpoints(run)
    shutil.copy(older / "optimizer.safetensors", newer)
    with pytest.raises(
        CorruptCheckpointError, match=r"optimizer.safetensors does not match SHA256SUMS"
    ):
        read_checkpoint(newer)


def test_a_checkpoint_of_another_format_is_refused_and_not_taken_for_damaged(run: Path) -> None:
    model = small_model(config_of())
    progress = {"step": 5, "format": 99}
    save_checkpoint(run, model, trained(model), progress=progress, tensors={})
    with pytest.raises(UserError) as caught:
        read_checkpoint(checkpoints(run)[-1])
    one_line(caught, "checkpoint format 99", "reads 2", "ys train clean")


def test_a_checkpoint_of_an_older_format_is_converted_by_a_command(run: Path) -> None:
    model = small_model(config_of())
    progress = {"step": 5, "format": 1}
    save_checkpoint(run, model, trained(model), progress=progress, tensors={})
    with pytest.raises(UserError) as caught:
        read_checkpoint(checkpoints(run)[-1])
    one_line(caught, "checkpoint format 1", "reads 2", f"ys convert {run.name}")


def test_nothing_in_a_run_can_hold_code(run: Path) -> None:
    save(run, 5)
    suffixes = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".yaml", ".md", ".safetensors", ""}  # and SHA256SUMS
    for path in run.rglob("*.safetensors"):
        header = path.read_bytes()[8:]
        json.loads(header[: header.index(b"}}") + 2])
