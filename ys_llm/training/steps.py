"""One step of training: batches, forward and backward pass, clipping, optimizer."""

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ys_llm.data.batches import Batch
from ys_llm.model.state import State, detach, map_state
from ys_llm.training.frozen import freeze
from ys_llm.training.metrics import log_line
from ys_llm.training.objectives import both_batches, distilled, pair_loss
from ys_llm.training.optimizer import set_learning_rate
from ys_llm.training.ranks.parallel import own_masks, summed_at
from ys_llm.training.ranks.shard import whole
from ys_llm.training.recovery.diagnosis import capture_inputs
from ys_llm.training.recovery.non_finite import SPIKE_WINDOW, StepGradients, is_spike
from ys_llm.training.schedule import learning_rate
from ys_llm.training.selection import Selected, mean_of, select
from ys_llm.training.trainer import (
    Run,
    TrainState,
    batch_position,
    next_batch,
    pairs_of_step,
    stage_at,
)


def forward_backward(run: Run, state: TrainState) -> StepGradients:
    """Loss and clipped gradients of `grad_accum_steps` batches; no weight changes.

    The loss is the mean over the targets that count in all of them. Of several processes each has
    its share of the loss, and all have the gradients of all rows.
    """
    if run.tuning is not None and run.tuning.pairs is not None:
        return _of_pairs(run, state)
    began, config, mean_loss = time.perf_counter(), run.config.train, 0.0
    step, position, captured = state.progress.step, batch_position(run, state), []
    selected: list[Selected] = []
    own_masks(run.model, run.ranks, position.stage.batch_size)
    batches = [next_batch(run, state, n) for n in range(config.grad_accum_steps)]
    divisors = divisors_of(batches)
    for micro_step, (batch, divisor) in enumerate(zip(batches, divisors, strict=True)):
        carried = state.carried if batch.carry else None
        starts_BT = _starts(run, batch)
        if run.reference is not None and not config.teacher:
            batch = _with_selected_targets(run, state, batch, selected)
        captured.append(capture_inputs(batch, carried, starts_BT))
        with summed_at(run.parallel, is_last=micro_step + 1 == config.grad_accum_steps):
            with run.compute.autocast():
                loss, carried = _loss_of(run, state, batch, carried)
            if run.config.data.carries_state:
                state.carried = detach(carried)
            # The mean over all processes of N times each one's share is the loss of all rows.
            weighted = loss * (batch.share * run.ranks.size)
            torch.autograd.backward(weighted / divisor)
        mean_loss += batch.share * loss.item() / divisor
        del loss, weighted, carried  # or their graph stays in memory through the next forward pass
    further = mean_of(selected)
    if run.replicas is not None:
        mean_loss = run.replicas.average(run.model, mean_loss)
        further |= {"piece": position.batch_index, "replicas": run.replicas.taking_part}
    freeze(run.model, position.stage.blocks)
    grad_norm = clip_gradients(run)
    return StepGradients(began, step, position, mean_loss, grad_norm, captured, further)


def divisors_of(batches: list[Batch]) -> list[float]:
    """What each mean loss is divided by, so that the sum is the mean of all targets that count."""
    counted = [batch.counted for batch in batches]
    if len(set(counted)) == 1:  # at no rounding
        return [len(batches)] * len(batches)
    return [sum(counted) / n if n else math.inf for n in counted]


def _starts(run: Run, batch: Batch) -> Tensor | None:
    """Where the state is reset; a row that begins from a learned state has no such place."""
    is_reset = run.config.data.reset_at_document and run.model.initial_state is None
    return batch.starts_BT if is_reset else None


def _loss_of(
    run: Run, state: TrainState, batch: Batch, carried: State | None
) -> tuple[Tensor, State]:
    """The loss of a batch and the state after it; that of a teacher is kept where it goes on."""
    config, starts_BT = run.config.train, _starts(run, batch)
    if run.reference is None or not config.teacher:
        loss, carried = run.trained(
            batch.inputs_BT, carried, starts_BT, targets_BT=batch.targets_BT
        )
        return loss, carried
    before = (carried, state.reference_carried if batch.carry else None)
    mix = (config.teacher_weight, config.teacher_temperature)
    loss, carried, taught = distilled(run.model, run.reference, batch, before, starts_BT, mix)
    if run.config.data.carries_state:
        state.reference_carried = map_state(taught, torch.clone)
    return loss, carried


def _of_pairs(run: Run, state: TrainState) -> StepGradients:
    """As `forward_backward`, of preference pairs."""
    began, config, tuning = time.perf_counter(), run.config.train, run.tuning
    assert tuning is not None and tuning.pairs is not None
    position, mean_loss, accuracy = batch_position(run, state), 0.0, 0.0
    captured = []
    for micro_step in range(config.grad_accum_steps):
        numbers = pairs_of_step(run, state, micro_step)
        batches = both_batches(tuning.pairs, numbers, position.stage.seq_len)
        chosen, rejected = (batch.to(run.device) for batch in batches)
        captured.append(capture_inputs(chosen, None, None))
        reference = {name: values[numbers] for name, values in tuning.reference.items()}
        with run.compute.autocast():
            found = pair_loss(run.model, (chosen, rejected), reference, run.config.sft.beta)
        torch.autograd.backward(found.loss / config.grad_accum_steps)
        mean_loss += found.loss.item() / config.grad_accum_steps
        accuracy += found.accuracy / config.grad_accum_steps
    norm, further = clip_gradients(run), {"preferred": accuracy}
    step = state.progress.step
    return StepGradients(began, step, position, mean_loss, norm, captured, further)


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
    if run.is_sharded:
        norm = whole(norm)
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
    parts = 1 if run.replicas is None else run.replicas.taking_part
    progress.step, progress.tokens = progress.step + 1, progress.tokens + parts * gradients.tokens
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
