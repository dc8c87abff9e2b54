"""Damaged checkpoints: the one before is used, and no model is ever overwritten for lack of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.harmed_runs import HarmedRun, error_line
from support.hostile_contents import resign

from ys_llm.errors import EXIT_FAILED
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import read_json


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def remove(path: Path, other: Path) -> None:
    path.unlink()


FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "tensors.safetensors",
    "progress.json",
    "SHA256SUMS",
)


def newest_two(run: Path) -> Sequence[Path]:
    return checkpoints(run)[:-3:-1]


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, swap, remove])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    harmed: Callable[..., HarmedRun], file: str, damage: Callable[[Path, Path], None]
) -> None:
    run = harmed("dropout")  # whose checkpoints all have different random states
    shutil.copytree(run.whole.folder, run.folder)
    newest, before = newest_two(run.run)
    damage(newest / file, before / file)
    ended = run.resume()
    lines = [line for line in ended.stderr.splitlines() if line.startswith("damaged ")]
    assert len(lines) == 1
    assert newest.name in lines[0]
    run.assert_as_uninterrupted()


def test_a_checkpoint_of_a_newer_format_is_left_alone(harmed: Callable[..., HarmedRun]) -> None:
    run = harmed()
    shutil.copytree(run.whole.folder, run.folder)
    for path in checkpoints(run.run):
        progress = read_json(path / "progress.json")
        (path / "progress.json").write_text(json.dumps(progress | {"format": 99}))
        resign(path / "progress.json")
    before = {path: path.read_bytes() for path in run.run.rglob("*.*") if path.is_file()}
    ended = run.forks.run(*run.whole.words, "--set", "train.max_steps=9", folder=run.folder)
    assert ended.code == EXIT_FAILED
    assert "format 99" in error_line(ended)
    kept = {path: path.read_bytes() for path in before if "checkpoints" in path.parts}
    assert kept == {path: data for path, data in before.items() if "checkpoints" in path.parts}


def test_with_every_checkpoint_damaged_no_training_starts_from_scratch(
    harmed: Callable[..., HarmedRun],
) -> None:
    """Not even on the second try: it would overwrite the model."""
    run = harmed()
    shutil.copytree(run.whole.folder, run.folder)
    for path in checkpoints(run.run):
        flip_a_bit(path / "model.safetensors", path)
    model, metrics = (run.run / "model.safetensors"), (run.run / "metrics.jsonl")
    before = model.read_bytes(), metrics.read_bytes()
    for _ in range(2):
        ended = run.forks.run(*run.whole.words, folder=run.folder)
        assert ended.code == EXIT_FAILED, ended
        assert "damaged" in error_line(ended)
        assert (model.read_bytes(), metrics.read_bytes()) == before
    assert run.forks.run("run", "mine", "--prompt", "x", folder=run.folder).code == 0
