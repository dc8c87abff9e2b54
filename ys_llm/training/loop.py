"""`train(config)`: from a folder of text to a model that writes, going on where it stopped.

`assemble.py` makes ready what the loop needs. The loop: batch, loss, backward, clip, step, one row
of metrics; now and then an evaluation, a checkpoint, a sample of text.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ys_llm.config.sources import Resolved
from ys_llm.data.shards import TokenShard
from ys_llm.errors import EXIT_INTERRUPTED, UserError
from ys_llm.evaluation.bits_per_byte import Evaluation, evaluate_tokens
from ys_llm.inference.generate import complete
from ys_llm.model.costs import parameter_count
from ys_llm.model.state import detach
from ys_llm.runs import checkpoint
from ys_llm.runs.folder import locked
from ys_llm.training.memory import give_back_freed_memory
from ys_llm.training.metrics import Metrics, Progress, log_line
from ys_llm.training.optimizer import set_learning_rate
from ys_llm.training.recovery.diagnosis import observe
from ys_llm.training.recovery.non_finite import (
    SPIKE_WINDOW,
    NonFiniteError,
    Tried,
    check_step,
    check_weights,
    is_spike,
    recover,
)
from ys_llm.training.setup import set_up
from ys_llm.training.trainer import Training, next_batch, place, save, stage_at

SAMPLE_TOKENS = 60


@dataclass(frozen=True)
class TrainSummary:
    """What a finished training came to; bits per byte and loss are those of the best weights."""

    run: Path
    parameters: int
    steps: int
    tokens: int
    seconds: float
    val_loss: float | None
    val_bits_per_byte: float | None
    baselines: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        """Training speed, evaluations and checkpoints aside."""
        return self.tokens / max(self.seconds, 1e-9)


def train(
    resolved: Resolved, *, runs_dir: Path = Path("runs"), from_step: int | None = None
) -> TrainSummary:
    """Train as configured in `runs_dir/<run>`, from the last checkpoint there if there is one.

    `from_step` goes back to the checkpoint of that step first. Raises UserError: unusable
    configuration (2), unusable data or files (1), divergence (5), interruption (129, 130, 143).
    """
    run = runs_dir / resolved.config.run
    with locked(run), _arithmetic(deterministic=resolved.config.train.deterministic):
        training = set_up(resolved.config, run, from_step=from_step)
        metrics = Metrics(run / "metrics.jsonl", keep_to_step=training.at.step)
        show = Progress(begin=training.at.step, total=training.total_steps)
        with (
            closing(metrics),
            closing(show),
            _stop_signals(training) as stop,
            _explained_shortage(training),
        ):
            _loop(training, metrics, show, stop)
        return _finish(training)


@contextmanager
def _explained_shortage(training: Training) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"memory ran out after step {training.at.step:,}",
            "Set train.batch_size or train.seq_len smaller, or train.batch_size=auto; what is "
            "needed tells: ys train --dry-run",
        ) from error


@contextmanager
def _arithmetic(*, deterministic: bool) -> Iterator[None]:
    """Count vanishing states and moments as 0: computing with them takes 100 times as long."""
    torch.set_flush_denormal(True)
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(before)


def _loop(training: Training, metrics: Metrics, show: Progress, stop: "_Stop") -> None:
    config = training.config.train
    while not training.finished:
        tried = gradients(training)
        try:
            check_step(training, tried)
            row = learn(training, tried)
            at, last = training.at, training.at.step == training.total_steps
            show.step(row, speed=tried.tokens / row["step_seconds"], seconds_left=_left(training))
            asked = stop.signal  # read once: what is asked for later waits for the next step
            saving = asked or last or at.step % config.checkpoint_interval == 0
            evaluating = last or at.step % config.eval_interval == 0
            if saving or evaluating:
                check_weights(training)
                give_back_freed_memory()
            if evaluating:
                row |= _evaluate(training, show)
        except NonFiniteError as bad:
            recover(training, tried, str(bad))
            metrics.cut(training.at.step)
            show.back_to(training.at.step)
            continue
        if config.sample_interval and at.step % config.sample_interval == 0 and not last:
            row["sample"] = _sample(training, show)
        metrics.write(row)
        if saving or at.best_step == at.step or training.stopped_early:
            metrics.sync()
            save(training)
        if asked:
            _publish_if_none(training)
            stop.leave()
            raise stop.error(training)


def gradients(training: Training) -> Tried:
    """Loss and gradients of `grad_accum_steps` batches; no weight is changed."""
    began, config, total, scenes = time.perf_counter(), training.config.train, 0.0, []
    step, here = training.at.step, place(training)
    for micro in range(config.grad_accum_steps):
        batch = next_batch(training, micro)
        state = training.carried if batch.carry else None
        starts_BT = batch.starts_BT if training.config.data.reset_at_document else None
        scenes.append(observe(batch, state, starts_BT))
        with training.autocast():
            loss, state = training.model(
                batch.inputs_BT, state, starts_BT, targets_BT=batch.targets_BT
            )
        if training.config.data.batching == "contiguous":
            training.carried = detach(state)
        torch.autograd.backward(loss / config.grad_accum_steps)
        total += loss.item() / config.grad_accum_steps
        del loss, state  # else what they hold is held beside the next batch's
    grad_norm = _clipped(training)
    tokens = sum(scene.batch.inputs_BT.numel() for scene in scenes)
    return Tried(began, step, here, total, grad_norm, tokens, scenes)


def _clipped(training: Training) -> float:
    """The norm of all gradients, which are made shorter only where it is beyond the limit."""
    learning = [p for p in training.model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in learning if p.grad is not None])
    grad_norm, limit = norm.item(), training.config.train.grad_clip
    if limit and grad_norm > limit:
        clip_grads_with_norm_(learning, limit, norm)
    return grad_norm


def learn(training: Training, tried: Tried) -> dict[str, Any]:
    """Change the weights by the gradients; returns the step's row of metrics."""
    at, rate = training.at, training.learning_rate()
    set_learning_rate(training.optimizer, rate)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    at.step, at.tokens = at.step + 1, at.tokens + tried.tokens
    row = {"step": at.step, "tokens": at.tokens, "loss": tried.loss, "learning_rate": rate}
    row["grad_norm"] = tried.grad_norm
    # At least a nanosecond: two readings of a coarse clock may be the same.
    row["step_seconds"] = max(time.perf_counter() - tried.began, 1e-9)
    at.seconds += row["step_seconds"]
    row["seconds"] = at.seconds
    if is_spike(tried.loss, at.recent_losses):
        row["spike"] = True
        log_line(f"spike        step {at.step:,}: loss {tried.loss:.3f}, far above the last ones")
    at.recent_losses = [*at.recent_losses, tried.loss][-SPIKE_WINDOW:]
    if _stage_begins(training):  # another length, another loss
        at.recent_losses = []
    return row


def _stage_begins(training: Training) -> bool:
    step = training.at.step
    return step < training.total_steps and stage_at(training.config.train, step)[2] == 0


def _left(training: Training) -> float:
    """Seconds that the remaining steps will take, at the mean rate so far."""
    at = training.at
    return (training.total_steps - at.step) * at.seconds / at.step


def _evaluate(training: Training, show: Progress) -> dict[str, float]:
    """Loss and bits per byte of the held-out text; the best weights so far become the model."""
    at, config = training.at, training.config.train
    if training.validation is None:
        _publish(training, None)
        return {}
    result = _evaluation(training, training.validation, max_tokens=config.eval_tokens)
    if not math.isfinite(result.loss):
        raise NonFiniteError(f"validation loss {result.loss}")
    show.log_line(
        f"step {at.step:>6,}  validation loss {result.loss:.4f}, "
        f"{result.bits_per_byte:.4f} bits per byte"
    )
    if result.bits_per_byte < at.best_bits_per_byte:
        at.best_bits_per_byte, at.best_step = result.bits_per_byte, at.step
        at.evaluations_since_best = 0
        _publish(training, result)
    else:
        at.evaluations_since_best += 1
    return {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}


def _evaluation(training: Training, data: TokenShard, *, max_tokens: int) -> Evaluation:
    with training.autocast():
        return evaluate_tokens(
            training.model,
            data,
            seq_len=training.config.train.plan[-1].seq_len,
            max_tokens=max_tokens,
            reset_at_document=training.config.data.reset_at_document,
        )


def _publish(training: Training, result: Evaluation | None) -> None:
    facts = {
        "step": training.at.step,
        "tokens": training.at.tokens,
        "parameters": parameter_count(training.model),
        "val_bits_per_byte": None if result is None else round(result.bits_per_byte, 4),
        "has_records": training.has_records,
        "sources": training.sources,
    }
    checkpoint.save_model(training.run, training.config, training.model, training.tokenizer, facts)


def _publish_if_none(training: Training) -> None:
    """A run stopped before its first evaluation has a model to try, too."""
    if not (training.run / "model.safetensors").exists():
        _publish(training, None)


def _sample(training: Training, show: Progress) -> str:
    """What the model writes now; its own generator, so that training is not disturbed."""
    sampling = replace(training.config.generate, max_tokens=SAMPLE_TOKENS, seed=training.at.step)
    pieces = complete(
        training.model,
        training.tokenizer,
        training.sample_prompt,
        sampling=sampling,
        plain=not training.has_records,
    )
    text = "".join(pieces)
    show.log_line(f"sample       {training.sample_prompt.strip()[:200]!r} -> {text!r}")
    return text


def _finish(training: Training) -> TrainSummary:
    """Evaluate the best weights on everything held out, and say how to use them."""
    at, result = training.at, None
    _publish_if_none(training)
    path = training.run / "model.safetensors"
    checkpoint.load_weights(training.model, checkpoint.read_tensors(path), path)
    if training.validation is not None:
        result = _evaluation(training, training.validation, max_tokens=0)
    summary = TrainSummary(
        training.run,
        parameter_count(training.model),
        at.step,
        at.tokens,
        at.seconds,
        None if result is None else result.loss,
        None if result is None else result.bits_per_byte,
        training.floor,
    )
    reason = "stopped early" if training.stopped_early else "done"
    log_line(
        f"{reason:<12} {at.step:,} steps, {at.tokens:,} tokens in {at.seconds / 60:.1f} min, "
        f"{summary.tokens_per_second:,.0f} tokens/s; "
        f"saving took {at.saving_seconds:.1f} s"
    )
    if result is not None:
        said = ", ".join(f"{name} {value:.3f}" for name, value in training.floor.items())
        log_line(f"held out     {result.bits_per_byte:.4f} bits per byte ({said})")
    log_line(f"try it       ys run {training.config.run}")
    return summary


class _Stop:
    """Set by Ctrl-C, SIGTERM or a terminal that closes; the loop finishes its step and saves."""

    signal: int = 0
    leaving: bool = False

    def leave(self) -> None:
        """All is saved: one more Ctrl-C would only tear the last words apart."""
        self.leaving = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def error(self, training: Training) -> UserError:
        """What to say on leaving; the exit code is 128 + the signal's number."""
        name = signal.Signals(self.signal).name
        return UserError(
            f"stopped by {name} at step {training.at.step:,} and saved",
            f"To go on, type: ys train --run {training.config.run}",
            exit_code=128 + self.signal,
        )


@contextmanager
def _stop_signals(training: Training) -> Iterator[_Stop]:
    """The first signal asks the loop to stop; a second one acts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before: dict[int, Any] = {
        number: handler
        for number in (getattr(signal, name) for name in names)
        if (handler := signal.getsignal(number)) != signal.SIG_IGN  # as nohup asks
    }

    def ask(number: int, frame: Any) -> None:
        stop.signal = number
        signal.signal(number, before[number])
        with suppress(OSError):  # not print, which may be at work on the same stream just now
            os.write(2, b"\nfinishing this step, then saving; once more stops at once\n")

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    except KeyboardInterrupt as error:
        raise _stopped_at_once(training) from error
    finally:
        for number, handler in before.items():
            if not (stop.leaving and number == signal.SIGINT):  # ignored until the process ends
                signal.signal(number, handler)


def _stopped_at_once(training: Training) -> UserError:
    saved = [int(path.name.removeprefix("step-")) for path in checkpoint.checkpoints(training.run)]
    return UserError(
        f"stopped at once; the last checkpoint is that of step {max(saved, default=0):,}",
        f"To go on from there, type: ys train --run {training.config.run}",
        exit_code=EXIT_INTERRUPTED,
    )
