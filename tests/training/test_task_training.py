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


@pytest.mark.parametrize(("keep", "window"), [("recent", 64), ("surprising", 64)])
def test_a_copy_tier_recalls_what_a_vector_state_cannot_hold(keep: str, window: int) -> None:
    task = replace(TASKS["recall"], sizes=(8,))
    tier = CopyConfig(window, 16, "surprising" if keep == "surprising" else "recent")
    with_tier = Config(run="with", model=replace(SMALL, copy=tier), train=TRAIN)
    without = replace(with_tier, run="without", model=SMALL)
    (remembers,) = compare_on_task(with_tier, task, steps=100)
    (forgets,) = compare_on_task(without, task, steps=100)
    assert remembers.accuracy > 0.9
    assert forgets.accuracy < 0.3  # one of the eight values that it has seen, at best
    assert (remembers.copy, forgets.copy) == (f"{keep} {window}", "none")
    assert (remembers.unit, remembers.size, remembers.steps) == ("pairs", 8, 100)


def test_an_untrained_model_guesses() -> None:
    for task in TASKS.values():
        share, error = accuracy(Model(SMALL, vocab_size=VOCAB_SIZE), task, 8, seed=1)
        assert share <= CHANCE + 4 * max(error, 0.005)
