"""A run's folder: what is written comes back, and what is damaged or foreign is named."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ys_llm.checkpoint import (
    KEEP,
    checkpoints,
    find_run,
    load_checkpoint,
    load_run,
    paths_to_clean,
    read_json,
    read_tensors,
    remove,
    save_checkpoint,
    save_model,
    weights,
)
from ys_llm.config import Config, ModelConfig, TrainConfig
from ys_llm.errors import EXIT_NO_MODEL, UserError
from ys_llm.model import Model
from ys_llm.optim import make_optimizer
from ys_llm.tokenizer import Tokenizer, train_tokenizer

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
    tokenizer.save(folder / "tokenizer.json")
    save_model(folder, config_of(), small_model(config_of()), tokenizer, FACTS)
    return folder


def trained(model: Model, *, steps: int = 2) -> torch.optim.AdamW:
    """The optimizer after a few steps on this model."""
    optimizer = make_optimizer(model, TrainConfig())
    for _ in range(steps):
        loss, _ = model.loss(torch.randint(258, (2, 9)), torch.randint(258, (2, 9)))
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
    progress, tensors = load_checkpoint(path, other, other_optimizer)
    assert progress == {"step": 2, "x": 0.1}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in odd.items())
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for moment, value in optimizer.state[ours].items():
            assert torch.equal(value, other_optimizer.state[theirs][moment])


def test_the_last_checkpoints_stay_and_older_ones_go(run: Path) -> None:
    for step in (5, 10, 100, 15):
        save(run, step)
    assert KEEP == 2
    assert [path.name for path in checkpoints(run)] == ["step-00000015", "step-00000100"]


def test_a_step_saved_twice_holds_what_came_last(run: Path) -> None:
    save(run, 5)
    model = save(run, 5)
    stored = read_tensors(run / "checkpoints" / "step-00000005" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights(model).items())


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_the_next(run: Path) -> None:
    save(run, 5)
    unfinished = run / "checkpoints" / ".step-00000006.tmp"
    shutil.copytree(run / "checkpoints" / "step-00000005", unfinished)
    (unfinished / "progress.json").unlink()
    assert [path.name for path in checkpoints(run)] == ["step-00000005"]
    save(run, 7)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000005",
        "step-00000007",
    ]


def test_another_tokenizer_is_refused(run: Path) -> None:
    foreign = train_tokenizer(["the dog sat on the log"], kind="chars", vocab_size=300)
    foreign.save(run / "tokenizer.json")
    with pytest.raises(UserError) as caught:
        load_run(run)
    one_line(caught, str(run / "tokenizer.json"), "not the tokenizer", foreign.fingerprint[:12])


def test_weights_of_another_shape_are_refused(run: Path, tokenizer: Tokenizer) -> None:
    wider = config_of(options={"d_state": 24})
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
    one_line(caught, str(run / name), "cannot be read", "rain anew: ys train clean")


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    spoiled = {"cut off": content[: len(content) // 2], "empty": b"", "garbled": b"\xff\x00" * 50}
    path.unlink() if damage == "gone" else path.write_bytes(spoiled[damage])


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"step": 1, "has_records": true}'])
def test_a_description_that_describes_nothing_is_named(run: Path, content: str) -> None:
    (run / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_run(run)
    one_line(caught, str(run / "config.json"), "expected an object" if "{" not in content else "")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "tensors.safetensors", "progress.json"]
)
def test_a_damaged_checkpoint_is_named_with_the_way_back_to_the_one_before(
    run: Path, name: str
) -> None:
    save(run, 5)
    save(run, 6)
    newest = checkpoints(run)[-1]
    spoil(newest / name, "cut off")
    model = small_model(config_of())
    with pytest.raises(UserError) as caught:
        load_checkpoint(newest, model, make_optimizer(model, TrainConfig()))
    one_line(caught, str(newest / name), f"Remove {newest} to go on from the checkpoint before it")


def test_nothing_in_a_run_can_hold_code(run: Path) -> None:
    save(run, 5)
    suffixes = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".yaml", ".md", ".safetensors"}
    for path in run.rglob("*.safetensors"):
        header = path.read_bytes()[8:]
        json.loads(header[: header.index(b"}}") + 2])


def full_run(run: Path) -> None:
    save(run, 5)
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "cache" / "abc").mkdir(parents=True)
    (run / "cache" / "abc" / "tokens.bin").write_bytes(b"x")


def names(paths: list[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def test_clean_takes_the_model_and_leaves_tokenizer_cache_and_configuration(run: Path) -> None:
    full_run(run)
    paths = paths_to_clean(run, "model")
    assert names(paths) == [
        "README.md",
        "checkpoints",
        "config.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    remove(paths)
    assert names(list(run.iterdir())) == ["cache", "config.yaml", "tokenizer.json"]


def test_clean_all_takes_everything_that_a_run_makes_and_nothing_else(run: Path) -> None:
    full_run(run)
    (run / "notes.txt").write_text("mine")
    (run / "plots").mkdir()
    remove(paths_to_clean(run, "all"))
    assert names(list(run.iterdir())) == ["notes.txt", "plots"]


def test_there_is_nothing_to_clean_where_nothing_was_made(tmp_path: Path) -> None:
    assert paths_to_clean(tmp_path / "runs" / "new", "all") == []


def test_cleaning_removes_a_link_and_never_what_it_points_to(run: Path, tmp_path: Path) -> None:
    full_run(run)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / "checkpoints", elsewhere)
    os.symlink(elsewhere, run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    os.symlink(tmp_path / "nothing", run / "metrics.jsonl")
    paths = paths_to_clean(run, "all")
    assert {"checkpoints", "metrics.jsonl"} <= set(names(paths))
    remove(paths)
    assert list(run.iterdir()) == []
    assert names(list(elsewhere.iterdir())) == ["step-00000005"]


def test_a_run_that_is_a_link_is_not_cleaned(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "runs" / "alias"
    os.symlink(run, link)
    with pytest.raises(UserError, match=re.escape(f"{link} is a link")):
        paths_to_clean(link, "all")


def test_a_run_is_found_by_name_by_path_or_as_the_latest(run: Path) -> None:
    runs = run.parent
    older = runs / "older"
    shutil.copytree(run, older)
    os.utime(older / "model.safetensors", (1, 1))
    assert find_run(runs, "mine") == run
    assert find_run(runs, "older") == older
    assert find_run(runs / "elsewhere", str(older)) == older
    assert find_run(runs, None) == run
    os.utime(run / "model.safetensors", (0, 0))
    assert find_run(runs, None) == older


def test_without_a_model_the_exit_code_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ys train") as caught:
        find_run(tmp_path / "empty", None)
    assert caught.value.exit_code == EXIT_NO_MODEL
    with pytest.raises(UserError, match=r"no trained model 'yours'.*hoose one of: mine") as caught:
        find_run(run.parent, "yours")
    assert caught.value.exit_code == EXIT_NO_MODEL
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        find_run(run.parent, "mine")
    assert caught.value.exit_code == EXIT_NO_MODEL
