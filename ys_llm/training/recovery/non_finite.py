"""Rollback and recovery: what happens when a loss, gradient or weight is not finite.

Such a step changes no weight: it is diagnosed and recorded, and training continues from the last
good checkpoint with a lower learning rate and without that step's batches. Rollbacks are kept in
`rollbacks.json`, so that a killed run makes the same decisions again.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ys_llm.errors import EXIT_DIVERGED, UserError, command_line
from ys_llm.runs.checkpoint import Checkpoint
from ys_llm.runs.folder import POST_MORTEM, archive, checkpoints
from ys_llm.training.metrics import log_line
from ys_llm.training.ranks.shard import local
from ys_llm.training.ranks.together import restore_together
from ys_llm.training.recovery import post_mortem
from ys_llm.training.recovery.diagnosis import StepInputs
from ys_llm.training.recovery.report import Diagnosis
from ys_llm.training.recovery.shared import diagnosed_together, whole_inputs
from ys_llm.training.resume import Rollback, latest_valid_checkpoint, write_rollbacks
from ys_llm.training.schedule import learning_rate
from ys_llm.training.trainer import (
    BatchPosition,
    Run,
    TrainState,
    check_folder,
)

SPIKE_WINDOW = 50  # steps that a loss is compared with
SPIKE_DEVIATIONS = 8.0  # robust standard deviations above their median
SPIKE_NATS = 0.5  # and at least this much: late in training the deviations are tiny
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution, whose median absolute deviation is 0.6745


class NonFiniteError(Exception):
    """Why a step must not change the weights, or why a model must not be saved."""


class StepGradients(NamedTuple):
    """The results of a step's forward and backward pass, and what is needed to replay it."""

    began: float  # seconds, of time.perf_counter
    step: int  # steps done before it
    position: BatchPosition
    loss: float  # nats per token
    grad_norm: float  # before clipping
    inputs: list[StepInputs]  # one for each accumulated batch
    further: Mapping[str, float] = MappingProxyType({})  # what else the row of metrics has

    @property
    def tokens(self) -> int:
        """Tokens that the step read, those of all processes."""
        stage = self.position.stage
        return stage.seq_len * stage.batch_size * len(self.inputs)


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """loss > median + max(SPIKE_NATS, SPIKE_DEVIATIONS s) of the last SPIKE_WINDOW losses.

    s = 1.4826 median(|loss_i - median|). Medians, so that one spike does not hide the next.
    """
    if len(recent) < SPIKE_WINDOW:
        return False
    middle = statistics.median(recent)
    deviation = _MAD_TO_DEVIATION * statistics.median(abs(value - middle) for value in recent)
    return loss > middle + max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation)


def check_gradients(run: Run, state: TrainState, gradients: StepGradients) -> None:
    """Raise NonFiniteError where this step must not change the weights."""
    loss, grad_norm = gradients.loss, gradients.grad_norm
    if not math.isfinite(loss + grad_norm):
        raise NonFiniteError(f"loss {loss}, gradient norm {grad_norm}")
    if run.config.train.on_spike == "rollback" and is_spike(loss, state.progress.recent_losses):
        raise NonFiniteError(f"loss spike of {loss:.3f}")


def check_weights(run: Run) -> None:
    """Raise NonFiniteError for a model that must be neither saved nor published."""
    own = local if run.is_sharded else Tensor.detach
    bad = next((name for name, p in run.model.named_parameters() if not _is_finite(own(p))), "")
    if run.is_sharded and run.ranks.total(bool(bad)):
        raise NonFiniteError("the weights are not finite")
    if bad:
        raise NonFiniteError(f"{bad} is not finite")


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


def roll_back(run: Run, state: TrainState, gradients: StepGradients, *, reason: str) -> None:
    """Record what happened, and return to the last good checkpoint.

    A checkpoint is good if a step was done from it; otherwise the damage predates it, and the one
    before is used. Raises UserError (exit code 5) after `train.max_rollbacks` of them. All
    processes come here, and the first one decides.
    """
    check_folder(run.folder, run.lock)
    run.optimizer.zero_grad(set_to_none=True)
    log_line(f"bad step     step {gradients.step + 1:,}: {reason}")
    _write_post_mortem(run, state, gradients, reason)
    saved = _note_rollback(run, state, gradients, reason) if run.ranks.is_first else None
    restore_together(run, state, saved)
    log_line(
        f"rollback     to step {state.progress.step:,}, for a while with "
        f"{run.config.train.rollback_lr_factor:g} times the learning rate; "
        f"the batches of step {gradients.step + 1:,} are skipped"
    )


def _note_rollback(
    run: Run, state: TrainState, gradients: StepGradients, reason: str
) -> Checkpoint:
    """The checkpoint to return to, once rollbacks.json says so; UserError where there is none."""
    saved = None
    if len(state.rollbacks) < run.config.train.max_rollbacks:
        saved = _last_good(run, state, gradients)
    if saved is None:
        raise _diverged(run, state, f"step {gradients.step + 1:,}: {reason}")
    back_to, position = int(saved.progress["step"]), gradients.position
    rollback = Rollback(
        gradients.step + 1, back_to, position.stage_index, position.batch_index, reason
    )
    write_rollbacks(run.folder, [*state.rollbacks, rollback])
    return saved


def _last_good(run: Run, state: TrainState, gradients: StepGradients) -> Checkpoint | None:
    saved, step = latest_valid_checkpoint(run.folder), state.progress.step
    if saved is None or saved.progress["step"] != step or step > gradients.step:
        return saved
    if len(checkpoints(run.folder)) == 1:  # nothing precedes it, and it must not be lost
        return saved
    archive(run.folder, saved.path)
    return latest_valid_checkpoint(run.folder)


def _write_post_mortem(run: Run, state: TrainState, gradients: StepGradients, reason: str) -> None:
    """Diagnose the step and save what it read; a full disk must not prevent the rollback."""
    if run.is_sharded:
        log_line("post-mortem  none: no process has all weights of a sharded model")
        return
    index, diagnosis = _diagnose(run, gradients)
    progress = state.progress
    facts = {
        "step": gradients.step + 1,
        "reason": reason,
        "loss": gradients.loss,
        "grad_norm": gradients.grad_norm,
        "learning_rate": learning_rate(progress.step, run.config.train, state.rollbacks),
        "recent_losses": progress.recent_losses,
        "stage": gradients.position.stage_index,
        "batch_index": gradients.position.batch_index,
        "micro_step": index,
        "dtype": run.compute.dtype,
        "backends": dict(run.compute.backends),
    }
    log_line(f"diagnosis    {diagnosis.sentence}")
    inputs = whole_inputs(run.ranks, gradients.inputs[index])
    if inputs is None:
        return
    try:
        path = post_mortem.write(run.folder, diagnosis, inputs, model=run.model, facts=facts)
        log_line(f"post-mortem  {path}")
    except UserError as error:
        log_line(f"post-mortem  {error}")


def _diagnose(run: Run, gradients: StepGradients) -> tuple[int, Diagnosis]:
    """Index of the bad batch among the accumulated ones, and its diagnosis."""
    loss, grad_norm = gradients.loss, gradients.grad_norm
    weights_are_finite = all(_is_finite(parameter) for parameter in run.model.parameters())
    if math.isfinite(loss + grad_norm) and weights_are_finite:
        # A loss spike, or a non-finite evaluation.
        return 0, Diagnosis("finite", loss=loss, grad_norm=grad_norm)
    return diagnosed_together(run, gradients.inputs, gradients.position.stage.batch_size)


def _diverged(run: Run, state: TrainState, problem: str) -> UserError:
    config, count = run.config, len(state.rollbacks)
    rate = config.train.learning_rate / 4
    return UserError(
        f"training diverged at {problem}, after {count} rollbacks (see {run.folder / POST_MORTEM})",
        "To resume from the last checkpoint with a lower rate, type: "
        + command_line(
            "train",
            run=config.run,
            set=[f"train.learning_rate={rate:g}", f"train.max_rollbacks={count + 3}"],
        ),
        exit_code=EXIT_DIVERGED,
    )
