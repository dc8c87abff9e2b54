"""`train(config)`: from a folder of text to a model that writes, going on where it stopped.

`assemble.py` makes ready what the loop needs. The loop: batch, loss, backward, clip, step, one row
of metrics; now and then an evaluation, a checkpoint, a sample of text.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ys_llm import checkpoint
from ys_llm.assemble import CARRIED, Training, batch_plan, set_up, stage_at
from ys_llm.config import Resolved
from ys_llm.data import Batch, TokenData, batch_at
from ys_llm.errors import EXIT_DIVERGED, UserError
from ys_llm.evaluate import Evaluation, evaluate_tokens
from ys_llm.generate import complete
from ys_llm.measure import parameter_count
from ys_llm.model import detached, pack_state
from ys_llm.optim import learning_rate, set_learning_rate
from ys_llm.progress import Metrics, Progress, say

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
    resolved: Resolved,
    *,
    runs_dir: Path = Path("runs"),
    clean: Literal["", "model", "all"] = "",
) -> TrainSummary:
    """Train as configured in `runs_dir/<run>`, from the last checkpoint there if there is one.

    `clean` removes the run's model first ("model"), or all that the run has made ("all").
    Raises UserError: unusable configuration or data (2), divergence (5), interruption (130, 143).
    """
    run = runs_dir / resolved.config.run
    if clean:
        checkpoint.remove(checkpoint.paths_to_clean(run, clean))
    with _denormals_as_zero():
        training = set_up(resolved.config, run)
        metrics = Metrics(run / "metrics.jsonl", keep_to_step=training.at.step)
        show = Progress(begin=training.at.step, total=training.total_steps)
        with closing(metrics), closing(show), _stop_signals() as stop:
            _loop(training, metrics, show, stop)
        return _finish(training)


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Count vanishing states and moments as 0; computing with them takes 100 times as long."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _loop(training: Training, metrics: Metrics, show: Progress, stop: "_Stop") -> None:
    config, at = training.config.train, training.at
    while at.step < training.total_steps and not training.stopped_early:
        began = time.perf_counter()
        rate = learning_rate(at.step, config, total_steps=training.total_steps)
        set_learning_rate(training.optimizer, rate)
        loss, grad_norm, tokens = _optimizer_step(training)
        at.step, at.tokens = at.step + 1, at.tokens + tokens
        step_seconds = time.perf_counter() - began
        at.seconds += step_seconds
        row = {"step": at.step, "tokens": at.tokens, "loss": loss, "learning_rate": rate}
        row |= {"grad_norm": grad_norm, "step_seconds": step_seconds, "seconds": at.seconds}
        left = (training.total_steps - at.step) * at.seconds / at.step
        show.step(row, speed=tokens / step_seconds, seconds_left=left)
        last = at.step == training.total_steps
        if last or at.step % config.eval_interval == 0:
            row |= _evaluate(training, show)
        metrics.write(row)
        if config.sample_interval and at.step % config.sample_interval == 0 and not last:
            show.say(_sample(training))
        asked = stop.signal  # read once: what is asked for after the save waits for the next step
        if asked or last or training.stopped_early or at.step % config.checkpoint_interval == 0:
            _save(training)
        if asked:
            raise stop.error(training)


def _optimizer_step(training: Training) -> tuple[float, float, int]:
    """One step over `grad_accum_steps` batches: loss (nats per token), gradient norm, tokens."""
    config, total, tokens = training.config.train, 0.0, 0
    for micro in range(config.grad_accum_steps):
        batch = _batch(training, micro)
        state = training.carried if batch.carry else None
        starts_BT = batch.starts_BT if training.config.data.reset_at_document else None
        with training.autocast():
            loss, state = training.model.loss(batch.inputs_BT, batch.targets_BT, state, starts_BT)
        if training.config.data.layout == "streams":
            training.carried = detached(state)
        torch.autograd.backward(loss / config.grad_accum_steps)
        total += loss.item() / config.grad_accum_steps
        tokens += batch.inputs_BT.numel()
    limit = config.grad_clip or math.inf
    grad_norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), limit).item()
    if not math.isfinite(total + grad_norm):
        raise _diverged(training, f"loss {total}, gradient {grad_norm}")
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return total, grad_norm, tokens


def _diverged(training: Training, figures: str) -> UserError:
    config = training.config
    return UserError(
        f"training diverged after step {training.at.step:,}: {figures}",
        f"To go on from the last checkpoint, more gently, type: ys train --run {config.run} "
        f"--set train.learning_rate={config.train.learning_rate / 2:g}",
        exit_code=EXIT_DIVERGED,
    )


def _batch(training: Training, micro: int) -> Batch:
    """Batch `micro` of the coming step, on the device; a function of the step alone."""
    number, stage, done = stage_at(training.config.train, training.at.step)
    plan = batch_plan(training, number, stage)
    batch = batch_at(training.data, plan, done * training.config.train.grad_accum_steps + micro)
    return Batch(
        batch.inputs_BT.to(training.device),
        batch.targets_BT.to(training.device),
        batch.starts_BT.to(training.device),
        batch.carry,
    )


def _evaluate(training: Training, show: Progress) -> dict[str, float]:
    """Loss and bits per byte of the held-out text; the best weights so far become the model."""
    at, config = training.at, training.config.train
    if training.validation is None:
        _publish(training, None)
        return {}
    result = _evaluation(training, training.validation, max_tokens=config.eval_tokens)
    show.say(
        f"step {at.step:>6,}  validation loss {result.loss:.4f}, "
        f"{result.bits_per_byte:.4f} bits per byte"
    )
    if not math.isfinite(result.loss):
        raise _diverged(training, f"validation loss {result.loss}")
    if result.bits_per_byte < at.best_bits_per_byte:
        at.best_bits_per_byte, at.evaluations_since_best = result.bits_per_byte, 0
        _publish(training, result)
    else:
        at.evaluations_since_best += 1
    return {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}


def _evaluation(training: Training, data: TokenData, *, max_tokens: int) -> Evaluation:
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
    }
    checkpoint.save_model(training.run, training.config, training.model, training.tokenizer, facts)


def _save(training: Training) -> None:
    tensors = {"random.cpu": torch.get_rng_state()}
    if training.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(training.device)
    if training.carried is not None:
        packed = pack_state(training.carried)
        tensors |= {f"{CARRIED}{name}": tensor for name, tensor in packed.items()}
    at = vars(training.at) | {"tokenizer_fingerprint": training.tokenizer.fingerprint}
    checkpoint.save_checkpoint(
        training.run, training.model, training.optimizer, progress=at, tensors=tensors
    )


def _sample(training: Training) -> str:
    """What the model writes now; its own generator, so that training is not disturbed."""
    sampling = replace(training.config.generate, max_tokens=SAMPLE_TOKENS, seed=training.at.step)
    pieces = complete(
        training.model,
        training.tokenizer,
        training.sample_prompt,
        sampling=sampling,
        plain=not training.has_records,
    )
    prompt = training.sample_prompt.strip()[:200]
    return f"sample       {prompt!r} -> {''.join(pieces)!r}"


def _finish(training: Training) -> TrainSummary:
    """Evaluate the best weights on everything held out, and say how to use them."""
    at, result = training.at, None
    path = training.run / "model.safetensors"
    if not path.exists():  # stopped before the first evaluation, and now told to do no more steps
        _publish(training, None)
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
    say(
        f"{reason:<12} {at.step:,} steps, {at.tokens:,} tokens in {at.seconds / 60:.1f} min, "
        f"{summary.tokens_per_second:,.0f} tokens/s"
    )
    if result is not None:
        said = ", ".join(f"{name} {value:.3f}" for name, value in training.floor.items())
        say(f"held out     {result.bits_per_byte:.4f} bits per byte ({said})")
    say(f"try it       ys run {training.config.run}")
    return summary


class _Stop:
    """Set by Ctrl-C or SIGTERM; the loop finishes its step, saves and leaves."""

    signal: int = 0

    def error(self, training: Training) -> UserError:
        """What to say on leaving; the exit code is 128 + the signal's number."""
        name = signal.Signals(self.signal).name
        return UserError(
            f"stopped by {name} at step {training.at.step:,} and saved",
            f"To go on, type: ys train --run {training.config.run}",
            exit_code=128 + self.signal,
        )


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """The first signal asks the loop to stop; a second one acts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }

    def ask(number: int, frame: Any) -> None:
        stop.signal = number
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
