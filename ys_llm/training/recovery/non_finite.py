"""When numbers go bad: what counts as a spike, and how a training goes back and on.

A loss, gradient or weight that is no number is never learned from: the step is given up before it
changes a weight, written down, and training goes on from the last good checkpoint with a lower rate
and without that step's text. What was undone is in `rollbacks.json`, so that a killed run makes the
same decisions again.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ys_llm.errors import EXIT_DIVERGED, UserError
from ys_llm.runs.checkpoint import Checkpoint, checkpoints
from ys_llm.runs.folder import POST_MORTEM, archive
from ys_llm.training.metrics import log_line
from ys_llm.training.recovery import post_mortem
from ys_llm.training.recovery.diagnosis import Finding, Scene, first_bad
from ys_llm.training.resume import Rollback, latest_valid_checkpoint, write_rollbacks
from ys_llm.training.trainer import Place, Training, restore_checkpoint

SPIKE_WINDOW = 50  # steps that a loss is compared with
SPIKE_DEVIATIONS = 8.0  # robust standard deviations above their median
SPIKE_NATS = 0.5  # and at least this much: late in training the deviations are tiny
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution, whose median absolute deviation is 0.6745


class NonFiniteError(Exception):
    """A step, or the model after it, is not fit to be learned from; says why."""


class Tried(NamedTuple):
    """A step up to its gradients, and what is needed to do it again."""

    began: float  # seconds, of time.perf_counter
    step: int  # done before it
    place: Place
    loss: float  # nats per token
    grad_norm: float  # before clipping
    tokens: int
    scenes: list[Scene]  # one for each batch


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """loss > median + max(SPIKE_NATS, SPIKE_DEVIATIONS s) of the last SPIKE_WINDOW losses.

    s = 1.4826 median(|loss_i - median|). Medians, so that one spike does not hide the next.
    """
    if len(recent) < SPIKE_WINDOW:
        return False
    middle = statistics.median(recent)
    deviation = _MAD_TO_DEVIATION * statistics.median(abs(value - middle) for value in recent)
    return loss > middle + max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation)


def check_step(training: Training, tried: Tried) -> None:
    """Raise NonFiniteError where this step must not be learned from."""
    if not math.isfinite(tried.loss + tried.grad_norm):
        raise NonFiniteError(f"loss {tried.loss}, gradient {tried.grad_norm}")
    if training.config.train.on_spike == "rollback" and is_spike(
        tried.loss, training.at.recent_losses
    ):
        raise NonFiniteError(f"the loss jumped to {tried.loss:.3f}")


def check_weights(training: Training) -> None:
    """Raise NonFiniteError for a model that may be neither saved nor published."""
    for name, parameter in training.model.named_parameters():
        if not _is_finite(parameter):
            raise NonFiniteError(f"{name} is not finite")


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


def recover(training: Training, tried: Tried, trouble: str) -> None:
    """Write down what happened, and go back to the last good checkpoint.

    A checkpoint is good if a step was done from it; else the harm was done before it was saved, and
    the one before is taken. Raises UserError (exit code 5) when that has been done often enough.
    """
    training.optimizer.zero_grad(set_to_none=True)
    log_line(f"trouble      step {tried.step + 1:,}: {trouble}")
    _examine(training, trouble, tried)
    saved = None
    if len(training.undone) < training.config.train.max_rollbacks:
        saved = _last_good(training, tried)
    if saved is None:
        raise _diverged(training, f"step {tried.step + 1:,}: {trouble}")
    back_to = int(saved.progress["step"])
    undone = Rollback(tried.step + 1, back_to, tried.place.number, tried.place.piece, trouble)
    write_rollbacks(training.run, [*training.undone, undone])
    restore_checkpoint(training, saved)
    log_line(
        f"going back   to step {back_to:,}, for a while with "
        f"{training.config.train.rollback_lr_factor:g} times the learning rate; "
        f"the text of step {undone.step:,} is not read again"
    )


def _last_good(training: Training, tried: Tried) -> Checkpoint | None:
    saved = latest_valid_checkpoint(training.run)
    if saved is None or saved.progress["step"] != training.at.step or training.at.step > tried.step:
        return saved
    if len(checkpoints(training.run)) == 1:  # nothing is before it, and it must not be lost
        return saved
    archive(training.run, saved.path)
    return latest_valid_checkpoint(training.run)


def _examine(training: Training, trouble: str, tried: Tried) -> None:
    """Find the first bad tensor, and leave a post-mortem; a full disk must not stop the rescue."""
    number, scene, finding = _first_bad(training, tried)
    facts = {
        "step": tried.step + 1,
        "trouble": trouble,
        "loss": tried.loss,
        "grad_norm": tried.grad_norm,
        "learning_rate": training.learning_rate(),
        "last_losses": training.at.recent_losses,
        "stage": tried.place.number,
        "piece": tried.place.piece,
        "batch": number,
        "dtype": training.at.dtype,
        "backend": training.at.backend,
    }
    log_line(f"found        {finding.sentence}")
    try:
        path = post_mortem.write(training.run, finding, scene, model=training.model, facts=facts)
        log_line(f"post-mortem  {path}")
    except UserError as error:
        log_line(f"post-mortem  {error}")


def _first_bad(training: Training, tried: Tried) -> tuple[int, Scene, Finding]:
    """Number and scene of the bad batch, and what is bad in it."""
    finite = math.isfinite(tried.loss + tried.grad_norm)
    if finite and all(_is_finite(parameter) for parameter in training.model.parameters()):
        # A spike, or an evaluation gone bad.
        return 0, tried.scenes[0], Finding("finite", loss=tried.loss, grad_norm=tried.grad_norm)
    number, finding = first_bad(training.model, tried.scenes, autocast=training.autocast())
    return number, tried.scenes[number], finding


def _diverged(training: Training, trouble: str) -> UserError:
    config, times = training.config, len(training.undone)
    rate = config.train.learning_rate / 4
    return UserError(
        f"training diverged at {trouble}; it had gone back {times} times before "
        f"(see {training.run / POST_MORTEM})",
        f"To go on from the last checkpoint, more gently, type: ys train --run {config.run} "
        f"--set train.learning_rate={rate:g} --set train.max_rollbacks={times + 3}",
        exit_code=EXIT_DIVERGED,
    )
