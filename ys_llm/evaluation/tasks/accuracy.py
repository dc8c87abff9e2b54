"""The share of a task's answers that a model gets right."""

from __future__ import annotations

import torch
from torch import Tensor

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.evaluation.tasks.task import Examples, Task, examples
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode

EVALUATED = 256  # examples of each size
_LOGITS = 1 << 24  # numbers at a time: 64 MiB in float32


def accuracy(model: Model, task: Task, size: int, *, seed: int) -> tuple[float, float]:
    """The share of right answers over EVALUATED unseen examples, and its standard error."""
    batch = examples(task, size, seed=seed, first=0, number=EVALUATED, held_out=True)
    return accuracy_on(model, task, batch)


def accuracy_on(model: Model, task: Task, batch: Examples) -> tuple[float, float]:
    """The share of right answers to these examples, and its standard error over them."""
    device = next(model.parameters()).device
    rows = max(1, _LOGITS // (batch.inputs_BT.shape[1] * model.vocab_size))
    shares = []
    with inference_mode(model):
        for inputs_BT, targets_BT in zip(
            batch.inputs_BT.split(rows), batch.targets_BT.split(rows), strict=True
        ):
            logits_BTV, _ = model(inputs_BT.to(device))
            shares.append(right_share(logits_BTV.argmax(-1).cpu(), targets_BT, whole=task.whole))
    shares_N = torch.cat(shares)
    return shares_N.mean().item(), (shares_N.std() / len(shares_N) ** 0.5).item()


def right_share(said_BT: Tensor, targets_BT: Tensor, *, whole: bool) -> Tensor:
    """Of each example, the share of the answers in its second half that are right.

    Recall and copying have no others. Of states, the first ones say nothing about length. With
    `whole` it is 1 where all are right, and else 0.
    """
    half = targets_BT.shape[1] // 2
    answers_BT = targets_BT[:, half:] != IGNORE_INDEX
    right_BT = (said_BT == targets_BT)[:, half:] & answers_BT
    shares_B = right_BT.sum(1).double() / answers_BT.sum(1)
    return (shares_B == 1).double() if whole else shares_B
