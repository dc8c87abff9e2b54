"""Small models learn the small tasks that they have the means for."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ys_llm.config.schema import Config, CopyConfig, ModelConfig, TrainConfig
from ys_llm.evaluation.tasks.accuracy import accuracy
from ys_llm.evaluation.tasks.state_tracking import products
from ys_llm.evaluation.tasks.trained import TASKS
from ys_llm.model.language_model import Model
from ys_llm.training.task_training import compare_on_task

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
    task = replace(TASKS["mqar"], sizes=(4,))
    (row,) = compare_on_task(config, task, steps=100)
    assert (row.copy, row.unit, row.size, row.steps) == (named, "pairs", 4, 100)
    if tier.window:
        assert row.accuracy > 0.9
    else:  # one of the four values that it has seen, at best
        assert row.accuracy < 0.5


class Composer(nn.Module):
    """Says the product of the last `memory` permutations."""

    def __init__(self, n_objects: int, memory: int) -> None:
        super().__init__()
        self.table, self.memory = products(n_objects), memory
        self.vocab_size = len(self.table)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, None]:
        texts = tokens_BT.tolist()
        said = [[self.product(ids[:end]) for end in range(1, len(ids) + 1)] for ids in texts]
        return nn.functional.one_hot(torch.tensor(said), len(self.table)), None

    def product(self, ids: list[int]) -> int:
        return reduce(lambda so_far, number: self.table[number][so_far], ids[-self.memory :])


@pytest.mark.parametrize(("name", "n_objects"), [("parity", 2), ("s3", 3), ("s5", 5)])
def test_a_state_is_right_at_every_length_and_a_window_is_not(name: str, n_objects: int) -> None:
    task = TASKS[name]
    model: Any = Composer(n_objects, 16)
    assert accuracy(model, task, 16, seed=1) == (1, 0)
    share, error = accuracy(model, task, 64, seed=1)
    assert abs(share - task.chance) < 4 * error


def test_lengths_that_were_not_trained_are_evaluated_too() -> None:
    task = replace(TASKS["s3"], sizes=(4, 8), longer=(16,))
    rows = list(compare_on_task(Config(model=SMALL, train=TRAIN), task, steps=2))
    assert [(row.size, row.trained) for row in rows] == [(4, True), (8, True), (16, False)]
    assert {row.chance for row in rows} == {1 / 6}


def test_an_untrained_model_guesses() -> None:
    for task in TASKS.values():
        model = Model(SMALL, vocab_size=task.vocab_size)
        share, error = accuracy(model, task, task.sizes[1], seed=1)
        assert share <= task.chance + 4 * max(error, 0.005)
