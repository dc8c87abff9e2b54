"""One step of training: batches, forward and backward pass, clipping, optimizer."""

import time
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ys_llm.data.batches import Batch
from ys_llm.model.state import detach
from ys_llm.training.metrics import log_line
from ys_llm.training.optimizer import set_learning_rate
from ys_llm.training.ranks.parallel import own_masks, summed_at
from ys_llm.training.recovery.diagnosis import capture_inputs
from ys_llm.training.recovery.non_finite import SPIKE_WINDOW, StepGradients, is_spike
from ys_llm.training.schedule import learning_rate
from ys_llm.training.selection import Selected, mean_of, select
from ys_llm.training.trainer import Run, TrainState, batch_position, next_batch, stage_at


def forward_backward(run: Run, state: TrainState) -> StepGradients:
    """Loss and clipped gradients of `grad_accum_steps` batches; no weight changes.

    Of several processes each has its share of the loss, and all have the gradients of all rows.
    """
    began, config, mean_loss = time.perf_counter(), run.config.train, 0.0
    step, position, captured = state.progress.step, batch_position(run, state), []
    selected: list[Selected] = []
    own_masks(run.model, run.ranks, position.stage.batch_size)
    for micro_step in range(config.grad_accum_steps):
        batch = next_batch(run, state, micro_step)
        carried = state.carried if batch.carry else None
        starts_BT = batch.starts_BT if run.config.data.reset_at_document else None
        if run.reference is not None:
            batch = _with_selected_targets(run, state, batch, selected)
        captured.append(capture_inputs(batch, carried, starts_BT))
        with summed_at(run.parallel, is_last=micro_step + 1 == config.grad_accum_steps):
            with run.compute.autocast():
                loss, carried = run.trained(
                    batch.inputs_BT, carried, starts_BT, targets_BT=batch.targets_BT
                )
            if run.config.data.carries_state:
                state.carried = detach(carried)
            # The mean over all processes of N times each one's share is the loss of all rows.
            weighted = loss * (batch.share * run.ranks.size)
            torch.autograd.backward(weighted / config.grad_accum_steps)
        mean_loss += batch.share * loss.item() / config.grad_accum_steps
        del loss, weighted, carried  # or their graph stays in memory through the next forward pass
    grad_norm = clip_gradients(run)
    further = mean_of(selected)
    return StepGradients(began, step, position, mean_loss, grad_norm, captured, further)


def _with_selected_targets(
    run: Run, state: TrainState, batch: Batch, selected: list[Selected]
) -> Batch:
    """The batch with the targets to train; what was selected is appended, the reference's state
    carried."""
    assert run.reference is not None
    states = (state.carried, state.reference_carried) if batch.carry else (None, None)
    starts_BT = batch.starts_BT if run.config.data.reset_at_document else None
    with run.compute.autocast():
        batch, after, picked = select(
            run.model,
            run.reference,
            batch,
            states,
            starts_BT,
            fraction=run.config.train.select_fraction,
        )
    selected.append(picked)
    if run.config.data.carries_state:
        state.reference_carried = detach(after)
    return batch


def clip_gradients(run: Run) -> float:
    """Scale the gradients down to a norm of `grad_clip`; returns the norm before."""
    trained = [p for p in run.model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in trained if p.grad is not None])
    grad_norm, limit = norm.item(), run.config.train.grad_clip
    if limit and grad_norm > limit:
        clip_grads_with_norm_(trained, limit, norm)
    return grad_norm


def optimizer_step(run: Run, state: TrainState, gradients: StepGradients) -> dict[str, Any]:
    """Update the weights by the gradients; returns the step's row of metrics."""
    progress = state.progress
    rate = learning_rate(progress.step, run.config.train, state.rollbacks)
    set_learning_rate(run.optimizer, rate)
    with run.compute.autocast():
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    progress.step, progress.tokens = progress.step + 1, progress.tokens + gradients.tokens
    # At least a nanosecond: two readings of a coarse clock may be equal.
    step_seconds = max(time.perf_counter() - gradients.began, 1e-9)
    progress.seconds += step_seconds
    row: dict[str, Any] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": gradients.loss,
        **gradients.further,
        "learning_rate": rate,
        "grad_norm": gradients.grad_norm,
        "step_seconds": step_seconds,
        "seconds": progress.seconds,
    }
    if is_spike(gradients.loss, progress.recent_losses):
        row["spike"] = True
        log_line(f"loss spike   step {progress.step:,}: loss {gradients.loss:.3f}")
    progress.recent_losses = [*progress.recent_losses, gradients.loss][-SPIKE_WINDOW:]
    if _starts_stage(run, progress.step):  # losses of another sequence length do not compare
        progress.recent_losses = []
    return row


def _starts_stage(run: Run, step: int) -> bool:
    return step < run.total_steps and stage_at(run.config.train, step)[2] == 0
