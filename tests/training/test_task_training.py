"""Small models learn the tasks of memory that they have the means for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ys_llm.config.schema import Config, CopyConfig, ModelConfig, TrainConfig
from ys_llm.evaluation.tasks.synthetic import CHANCE, TASKS, VOCAB_SIZE
from ys_llm.model.language_model import Model
from ys_llm.training.task_training import accuracy, compare_on_task

SMALL = ModelConfig(d_model=32, n_layers=1, d_mlp=32, layers=("min_gru",))
TRAIN = TrainConfig(learning_rate=1e-2, warmup_steps=0.05, threads=1)


@pytest.mark.parametrize(
    ("tier", "named"),
    [
        (CopyConfig(64, 16), "recent 64"),
        (CopyConfig(64, 16, "surprising"), "surprising 64"),
        (CopyConfig(), "none"),
    ],
    ids=["recent", "surprising", "none"],
)
def test_a_copy_tier_recalls_what_a_vector_state_does_not(tier: CopyConfig, named: str) -> None:
    config = Config(model=replace(SMALL, copy=tier), train=TRAIN)
    task = replace(TASKS["recall"], sizes=(4,))
    (row,) = compare_on_task(config, task, steps=100)
    assert (row.copy, row.unit, row.size, row.steps) == (named, "pairs", 4, 100)
    if tier.window:
        assert row.accuracy > 0.9
    else:  # one of the four values that it has seen, at best
        assert row.accuracy < 0.5


def test_an_untrained_model_guesses() -> None:
    for task in TASKS.values():
        share, error = accuracy(Model(SMALL, vocab_size=VOCAB_SIZE), task, 8, seed=1)
        assert share <= CHANCE + 4 * max(error, 0.005)
