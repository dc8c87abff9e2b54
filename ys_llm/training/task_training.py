"""Small models of several configurations, trained on one synthetic task for equally many steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ys_llm.config.schema import Config, TrainConfig
from ys_llm.evaluation.compare import describe_layers
from ys_llm.evaluation.tasks.accuracy import accuracy
from ys_llm.evaluation.tasks.task import Task, examples
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.training.compute import process_settings
from ys_llm.training.optimizer import make_optimizer, set_learning_rate
from ys_llm.training.schedule import learning_rate

BATCH_SIZE = 32  # examples of one size a step; the sizes take turns


@dataclass(frozen=True)
class TaskRow:
    """The share of answers that are right, its standard error over examples, and that of guesses.

    `size` counts pairs, tokens or a distance, as the task's `unit` says. One that was not `trained`
    is longer than all that were.
    """

    run: str
    layers: str
    copy: str
    parameters: int
    task: str
    steps: int
    unit: str
    size: int
    trained: bool
    accuracy: float
    standard_error: float
    chance: float


def compare_on_task(config: Config, task: Task, *, steps: int) -> Iterator[TaskRow]:
    """Train the configuration's model on the task, and measure it on unseen examples by size.

    Its vocabulary is the task's; rate, schedule, decay, seed and threads are the configuration's,
    in float32.
    """
    train = replace(config.train, max_steps=steps, minutes=None, stages=())
    with process_settings(train):
        model = _trained(config, train, task)
        tier = config.model.copy
        for size in (*task.sizes, *task.longer):
            yield TaskRow(
                config.run,
                describe_layers(config.model),
                f"{tier.keep} {tier.window}" if tier.window else "none",
                parameter_count(model),
                task.name,
                steps,
                task.unit,
                size,
                size in task.sizes,
                *accuracy(model, task, size, seed=train.seed),
                task.chance,
            )


def _trained(config: Config, train: TrainConfig, task: Task) -> Model:
    torch.manual_seed(train.seed)
    model = Model(config.model, vocab_size=task.vocab_size, backends=train.backend)
    optimizer = make_optimizer(model, train)
    for step in range(train.max_steps):
        size = task.sizes[step % len(task.sizes)]
        first = step * BATCH_SIZE
        batch = examples(task, size, seed=train.seed, first=first, number=BATCH_SIZE)
        loss, _ = model(batch.inputs_BT, targets_BT=batch.targets_BT)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if train.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        set_learning_rate(optimizer, learning_rate(step, train, ()))
        optimizer.step()
    return model
