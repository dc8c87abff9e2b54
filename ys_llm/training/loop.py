"""`train` runs a configuration to its end, resuming where it stopped.

`setup.py` prepares what the loop needs. An iteration of `_loop`: batches, forward and
backward, clip, optimizer step, one row of metrics; at intervals an evaluation, a checkpoint, a
sample of text.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ys_llm.config.sources import Resolved
from ys_llm.errors import EXIT_INTERRUPTED, UserError, command_line
from ys_llm.model.costs import parameter_count
from ys_llm.runs import model_files
from ys_llm.runs.folder import REPORT, checkpoints, is_trained, locked
from ys_llm.system.lock import HeldLock
from ys_llm.system.place import Place
from ys_llm.system.signals import StopRequest, stop_requested
from ys_llm.training.compute import process_settings
from ys_llm.training.elastic.join import Elastic
from ys_llm.training.elastic.steps import check_may_roll_back, counts, may_begin, replica
from ys_llm.training.header import baseline_text
from ys_llm.training.memory import release_freed_memory
from ys_llm.training.metrics import Metrics, Progress, log_line
from ys_llm.training.more_time import more_time_line
from ys_llm.training.ranks.group import ALONE, Ranks
from ys_llm.training.ranks.join import SAME_SIGNAL_SECONDS, joined
from ys_llm.training.ranks.whole import whole_model
from ys_llm.training.recall_curve import names_again
from ys_llm.training.recovery.non_finite import (
    NonFiniteError,
    check_gradients,
    check_weights,
    roll_back,
)
from ys_llm.training.reporting import Reporter, reporting
from ys_llm.training.samples import sample_text
from ys_llm.training.setup import set_up, set_up_as_told
from ys_llm.training.steps import forward_backward, optimizer_step
from ys_llm.training.trainer import (
    Run,
    TrainState,
    check_folder,
    is_due,
    is_finished,
    noticing_moves,
    save,
    stopped_early,
)
from ys_llm.training.tuned_run import (
    base_facts,
    evaluate_held_out,
    further_text,
    save_initial_state,
)


@dataclass(frozen=True)
class TrainSummary:
    """The result of training; bits per byte and loss are those of the best weights.

    `signal` is one that came when the last step had begun, and that therefore stopped nothing.
    """

    run: Path
    parameters: int
    steps: int
    tokens: int
    seconds: float
    val_loss: float | None
    val_bits_per_byte: float | None
    baselines: dict[str, float]
    val_names_again_loss: float | None = None
    signal: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Training speed, without evaluations and checkpoints."""
        return self.tokens / max(self.seconds, 1e-9)


def train(
    resolved: Resolved,
    *,
    runs_dir: Path = Path("runs"),
    resume_step: int | None = None,
    place: Place | None = None,
    elastic: Elastic | None = None,
) -> TrainSummary:
    """Train as configured in `runs_dir/<run>`, resuming from its latest checkpoint if it has one.

    `resume_step` first rewinds the run to the checkpoint of that step; `place` makes this process
    one of several, of which the first alone reads and writes the folder, and `elastic` a replica
    among others. Signal handlers, threads and torch's global settings are restored afterwards.
    Raises UserError: unusable configuration (exit code 2), data or files (1), divergence (5), stop
    by a signal (128 + signal).
    """
    config, folder = resolved.config, runs_dir / resolved.config.run
    with (
        joined(place, config.train) as ranks,
        locked(folder) if ranks.is_first else nullcontext() as lock,
        process_settings(config.train, ranks.local_size),
    ):
        step = None if ranks.restarts else resume_step  # started again, the run goes on
        return _train(resolved, folder, lock, step, ranks, elastic)


def _train(
    resolved: Resolved,
    folder: Path,
    lock: HeldLock | None,
    resume_step: int | None,
    ranks: Ranks,
    elastic: Elastic | None,
) -> TrainSummary:
    """Set up, loop and finish; what is connected to other processes is gone when it returns."""
    with noticing_moves(folder, lock):
        if lock is None:
            run, state = set_up_as_told(ranks, folder.parent)
        else:
            run, state = set_up(resolved, folder, lock, resume_step=resume_step, ranks=ranks)
        path = folder / "metrics.jsonl" if ranks.is_first else None
        metrics = Metrics(path, keep_to_step=state.progress.step)
    display = Progress(begin=state.progress.step, total=run.total_steps)
    with reporting(run, state, resolved.origins) as reporter:
        with (
            replica(run, state, elastic) as run,
            closing(metrics),
            closing(display),
            _readable_errors(run, state),
            _stop_requested(ranks) as stop,
        ):
            _loop(run, state, metrics, display, reporter, stop)
        return replace(_finish(run, state, reporter), signal=stop.signal)


def _stop_requested(ranks: Ranks) -> AbstractContextManager[StopRequest]:
    """A launcher may pass a signal on that every process has been sent already: both count once."""
    message = "finishing this step, then saving; press again to stop now"
    once = 0.0 if ranks.is_alone else SAME_SIGNAL_SECONDS
    return stop_requested(message if ranks.is_first else "", same_seconds=once)


@contextmanager
def _readable_errors(run: Run, state: TrainState) -> Iterator[None]:
    """Turn a second Ctrl-C, a moved folder and a shortage of memory into one line for the user."""
    try:
        yield
    except UserError:
        check_folder(run.folder, run.lock)  # a write that failed for it says less
        raise
    except KeyboardInterrupt as error:
        check_folder(run.folder, run.lock)
        saved = [path.name.removeprefix("step-") for path in checkpoints(run.folder)]
        raise UserError(
            f"stopped immediately; the latest checkpoint is that of step {int(max(saved)):,}",
            f"To resume from it, type: {command_line('train', run=run.config.run)}",
            exit_code=EXIT_INTERRUPTED,
        ) from error
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory after step {state.progress.step:,}",
            "Reduce train.batch_size or train.seq_len, or set train.batch_size=auto; to see what "
            "a run needs, type: " + command_line("train", run=run.config.run, dry_run=True),
        ) from error


def _loop(
    run: Run,
    state: TrainState,
    metrics: Metrics,
    display: Progress,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    config, progress = run.config.train, state.progress
    while not is_finished(run, state):
        if not may_begin(run, state, stop):
            continue
        gradients = forward_backward(run, state)
        if not counts(run, state):
            continue
        loss, request = run.ranks.agree(gradients.loss, stop)
        gradients = gradients._replace(loss=loss)
        try:
            check_gradients(run, state, gradients)
            row = optimizer_step(run, state, gradients)
            progress, last = state.progress, state.progress.step == run.total_steps
            speed = gradients.tokens / row["step_seconds"]
            display.step(row, speed=speed, seconds_left=_seconds_left(run, state))
            reporter.poll()
            stopping = request.signal  # read once: a signal from here on waits for the next step
            saving = stopping or last or is_due(run, progress.step, config.checkpoint_interval)
            evaluating = last or is_due(run, progress.step, config.eval_interval)
            if saving or evaluating:
                check_weights(run)
                release_freed_memory()
            if evaluating:
                row |= _evaluate(run, state, display)
        except NonFiniteError as error:
            check_may_roll_back(run, state, error)
            roll_back(run, state, gradients, reason=str(error))
            metrics.truncate(state.progress.step)
            display.move_to(state.progress.step)
            continue
        if is_due(run, progress.step, config.sample_interval) and not last:
            row["sample"] = _sample(run, state, display)
        check_folder(run.folder, run.lock)
        metrics.write(row)
        if saving or progress.best_step == progress.step or stopped_early(run, state):
            metrics.sync()
            save(run, state)
        if saving or evaluating:
            measured = run.model if evaluating and not run.is_sharded else None
            reporter.refresh(measured=measured)
        if stopping:
            _publish_if_none(run, state)
            ending = UserError(
                f"stopped by {request.name} at step {progress.step:,}, saved",
                f"To resume, type: {command_line('train', run=run.config.run)}",
                exit_code=request.exit_code,
            )
            raise run.ranks.ending(ending, request.exit_code)


def _seconds_left(run: Run, state: TrainState) -> float:
    """Seconds that the remaining steps will take at the mean speed so far."""
    progress = state.progress
    return (run.total_steps - progress.step) * progress.seconds / progress.step


def _evaluate(run: Run, state: TrainState, display: Progress) -> dict[str, float]:
    """Loss and bits per byte of the held-out text; the best weights so far are published."""
    progress, config = state.progress, run.config.train
    if run.data.validation is None:
        _publish(run, state, None)
        return {}
    result, further = evaluate_held_out(run, max_tokens=config.eval_tokens)
    if not math.isfinite(result.loss):
        raise NonFiniteError(f"validation loss {result.loss}")
    model = whole_model(run)
    names = {} if model is None else names_again(run, model)
    display.log_line(
        f"step {progress.step:>6,}  validation loss {result.loss:.4f}, "
        f"{result.bits_per_byte:.4f} bits per byte{further_text(run, further)}"
        + "".join(f", names again {loss:.2f}" for loss in names.values())
    )
    if result.bits_per_byte < progress.best_bits_per_byte:
        progress.best_bits_per_byte, progress.best_step = result.bits_per_byte, progress.step
        progress.evaluations_since_best = 0
        _publish(run, state, result.bits_per_byte)
    else:
        progress.evaluations_since_best += 1
    found = {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}
    return {**found, **further, **names}


def _publish(run: Run, state: TrainState, bits_per_byte: float | None) -> None:
    """Make these weights the run's model, which the first process does."""
    model = whole_model(run)
    if model is None:
        return
    check_folder(run.folder, run.lock)
    facts = {
        "step": state.progress.step,
        "tokens": state.progress.tokens,
        "parameters": parameter_count(model),
        "val_bits_per_byte": None if bits_per_byte is None else round(bits_per_byte, 4),
        "has_records": run.data.has_records,
        "sources": run.data.sources,
        **base_facts(run),
    }
    model_files.save_model(run.folder, run.config, model, run.tokenizer, facts)
    save_initial_state(run)


def _publish_if_none(run: Run, state: TrainState) -> None:
    """A run stopped before its first evaluation gets a model to try, too."""
    if run.ranks.tell(not is_trained(run.folder)):
        _publish(run, state, None)


def _sample(run: Run, state: TrainState, display: Progress) -> str:
    model = whole_model(run)
    if model is None:
        return ""
    text = sample_text(replace(run, model=model), seed=state.progress.step)
    display.log_line(f"sample       {run.data.sample_prompt.strip()[:200]!r} -> {text!r}")
    return text


def _finish(run: Run, state: TrainState, reporter: Reporter) -> TrainSummary:
    """Evaluate the best weights on all held-out text, as `ys eval` does, and log how to use them.

    Returns the summary. Of several processes the first does so, when the others have left.
    """
    check_folder(run.folder, run.lock)
    _publish_if_none(run, state)
    progress, result = state.progress, None
    names, further = dict[str, float](), dict[str, float]()
    if run.data.validation is not None and run.ranks.is_first:
        release_freed_memory()
        loaded = model_files.load_run(run.folder, device=str(run.device))
        result, further = evaluate_held_out(replace(run, model=loaded.model, ranks=ALONE))
        names = names_again(run, loaded.model)
        reporter.describe_end(loaded.model, asdict(result) | names)
        check_folder(run.folder, run.lock)
    summary = TrainSummary(
        run.folder,
        parameter_count(run.model),
        progress.step,
        progress.tokens,
        progress.seconds,
        None if result is None else result.loss,
        None if result is None else result.bits_per_byte,
        dict(run.data.baselines),
        names.get("val_names_again_loss"),
    )
    log_line(
        f"{'stopped early' if stopped_early(run, state) else 'done':<12} {progress.step:,} steps, "
        f"{progress.tokens:,} tokens in {progress.seconds / 60:.1f} min, "
        f"{summary.tokens_per_second:,.0f} tokens/s; "
        f"checkpoints took {progress.saving_seconds:.1f} s"
    )
    if result is not None:
        log_line(
            f"held out     {result.bits_per_byte:.4f} bits per byte in fp32"
            + further_text(run, further)
            + "".join(f", names again {loss:.2f}" for loss in names.values())
            + (f" (baselines: {baseline_text(run)})" if run.data.baselines else "")
        )
    log_line(f"report       {run.folder / REPORT}")
    if run.config.train.minutes is not None:
        log_line(more_time_line(run.config, run.folder))
    log_line(f"try it       {command_line('run', run.config.run)}")
    return summary
