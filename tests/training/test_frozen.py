"""Stages that train a few blocks alone: what is frozen stays to the bit, also after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.training_runs import TrainRun, assert_same_training

from ys_llm.errors import UserError
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import read_tensors

STAGES = (
    "train.stages=[{seq_len: 16, batch_size: 4, steps: 3, blocks: [1]}, "
    "{seq_len: 16, batch_size: 4, steps: 3}]"
)


ALL = ("train.keep_checkpoints=9", "train.checkpoint_interval=1", "model.layers=[min_gru]")


def changed(folder: Path, before: int, after: int) -> set[str]:
    """The first two parts of the names of the weights that differ between two steps."""
    first, last = (
        read_tensors(folder / f"checkpoints/step-{step:08d}/model.safetensors")
        for step in (before, after)
    )
    return {
        ".".join(name.split(".")[:2]) for name in first if not torch.equal(first[name], last[name])
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_freezes_what_the_whole_one_does(optimizer: str, train_run: TrainRun) -> None:
    common = (*ALL, "model.n_layers=2", f"train.optimizer={optimizer}")
    whole = train_run(*common, "run=whole", STAGES).run
    assert changed(whole, 0, 3) == {"blocks.1"}
    assert {"blocks.0", "blocks.1", "embedding.weight"} <= changed(whole, 3, 4)
    for step in (2, 4):  # killed in either stage
        parts = whole.parent / f"killed-{step}"
        shutil.copytree(whole, parts)
        for checkpoint in checkpoints(parts)[step + 1 :]:
            shutil.rmtree(checkpoint)
        train_run(*common, f"run={parts.name}", STAGES)
        assert_same_training(parts, whole)


def test_a_block_that_is_not_there_is_named(train_run: TrainRun) -> None:
    with pytest.raises(UserError, match="the model has no block 1"):
        train_run(*ALL, "model.n_layers=1", STAGES)
