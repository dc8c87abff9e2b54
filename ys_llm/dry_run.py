"""`ys train --dry-run`: what a training would take, told beforehand; nothing is left on the disk.

Sizes are counted, memory is predicted (`memory.py`), and time is measured in a burst: a few real
steps of each stage, a part of an evaluation and one checkpoint, each multiplied by how often the
plan has it. Text is read and encoded as for the training, the shards into a temporary folder.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ys_llm.assemble import build, settle_arithmetic, with_batch_size_of
from ys_llm.checkpoint import save_checkpoint
from ys_llm.config import Config, Resolved
from ys_llm.corpus import read_documents, split_documents
from ys_llm.data import batches_per_epoch, evaluation_span
from ys_llm.evaluate import evaluate_tokens
from ys_llm.measure import flops_per_token, parameter_count, parameters_by_part, state_bytes
from ys_llm.memory import Predictor, available_bytes, peak_of
from ys_llm.resume import check_config
from ys_llm.train import gradients, learn
from ys_llm.training import Training, batch_plan, random_state

BURST_SECONDS = 4.0  # of steps for each stage
FEWEST_STEPS, WARM_STEPS = 3, 1
EVALUATED_TOKENS = 30_000  # of one evaluation, scaled to all of its tokens
# Lengths and batch sizes that the author of "Why Snakes" trained with, by his programs and notes.
SNAKES_SETTINGS = (
    (16, 1024),
    (64, 256),
    (128, 32),
    (256, 72),
    (512, 32),
    (512, 64),
    (1024, 12),
)


def dry_run(resolved: Resolved, *, runs_dir: Path) -> str:
    """The forecast, a fact a line. Raises UserError for whatever training would refuse."""
    run = runs_dir / resolved.config.run
    config = with_batch_size_of(run, resolved.config)
    check_config(run, config)
    with tempfile.TemporaryDirectory(prefix="ys-dry-run-") as folder:
        began = time.perf_counter()
        training = _prepared(config, run, cache=Path(folder) / "cache")
        prepared_seconds = time.perf_counter() - began
        predictor = Predictor(
            training.config,
            training.model,
            dtype=training.at.dtype,
            validation_tokens=0 if training.validation is None else training.validation.n_inputs,
        )
        lines = [*_sizes(training), *_memory(training, predictor)]
        free = available_bytes(training.device)
        if predictor.predict().training > free:
            lines.append(f"time         not measured: more memory than the {_size(free)} free")
        else:
            lines += _times(training, Path(folder), prepared_seconds)
        lines += _table(predictor)
    return "\n".join(lines)


def _prepared(config: Config, run: Path, *, cache: Path) -> Training:
    split = split_documents(
        read_documents(Path(config.data.path)), validation_fraction=config.data.validation_fraction
    )
    training = build(config, run, split, cache=cache)
    settle_arithmetic(training)
    return training


def _sizes(training: Training) -> Iterator[str]:
    config, model, data = training.config, training.model, training.data
    stage = config.train.plan[0]
    parts = ", ".join(f"{part} {n:,}" for part, n in parameters_by_part(model).items())
    epoch = batches_per_epoch(data, batch_plan(training, 0, stage)) / config.train.grad_accum_steps
    forward = flops_per_token(model, stage.seq_len) / 1e6
    state = state_bytes(model, batch_size=1, seq_len=stage.seq_len)
    yield f"parameters   {parameter_count(model):,}: {parts}"
    yield f"FLOPs        {forward:,.1f} million per token forward, 3 times that in training"
    yield f"state        {state:,} bytes per sequence after {stage.seq_len:,} tokens"
    yield f"epoch        {data.n_inputs:,} tokens, {epoch:,.1f} steps"


def _memory(training: Training, predictor: Predictor) -> Iterator[str]:
    memory = predictor.predict()
    parts = ", ".join(f"{part} {_size(n)}" for part, n in memory.parts.items() if n)
    free = _size(available_bytes(training.device))
    yield f"memory       training {_size(memory.training)} at most, {free} free ({parts})"
    yield f"             using the model {_size(memory.inference)}"


def _times(training: Training, folder: Path, prepared_seconds: float) -> Iterator[str]:
    config = training.config.train
    saving = _saving_seconds(training, folder)
    steps = [_step_seconds(training, number) for number in range(len(config.plan))]
    stepping = sum(stage.steps * seconds for stage, seconds in zip(config.plan, steps, strict=True))
    evaluating = _evaluation_seconds(training)
    saves = -(-config.total_steps // config.checkpoint_interval) + 1
    total = prepared_seconds + stepping + evaluating + saves * saving
    tokens = sum(s.steps * s.seq_len * s.batch_size for s in config.plan) * config.grad_accum_steps
    yield (
        f"time         {_duration(total)}: preparing {_duration(prepared_seconds)}, "
        f"{config.total_steps:,} steps {_duration(stepping)}, "
        f"evaluations {_duration(evaluating)}, checkpoints {_duration(saves * saving)}"
    )
    yield f"speed        {tokens / stepping:,.0f} tokens/s"


def _step_seconds(training: Training, number: int) -> float:
    """Median seconds of a few real steps of a stage, after a warm-up."""
    plan = training.config.train.plan
    seconds: list[float] = []
    training.at.step = sum(stage.steps for stage in plan[:number])
    training.carried = None
    ends = time.perf_counter() + BURST_SECONDS
    for done in range(min(plan[number].steps, 1000)):
        tried = gradients(training)
        seconds.append(learn(training, tried)["step_seconds"])
        if done >= WARM_STEPS + FEWEST_STEPS and time.perf_counter() > ends:
            break
    return statistics.median(seconds[WARM_STEPS:] or seconds)


def _evaluation_seconds(training: Training) -> float:
    """All evaluations of the plan, and the last one over everything held out."""
    if training.validation is None:
        return 0.0
    config, held_out = training.config.train, training.validation
    part, _ = evaluation_span(held_out, max_tokens=EVALUATED_TOKENS)
    began = time.perf_counter()
    with training.autocast():
        evaluate_tokens(
            training.model,
            held_out,
            seq_len=config.plan[-1].seq_len,
            max_tokens=EVALUATED_TOKENS,
            reset_at_document=training.config.data.reset_at_document,
        )
    per_token = (time.perf_counter() - began) / part
    evaluations = -(-config.total_steps // config.eval_interval)
    return per_token * (evaluations * _evaluated_tokens(training) + held_out.n_inputs)


def _evaluated_tokens(training: Training) -> int:
    if training.validation is None:
        return 0
    limit = training.config.train.eval_tokens
    return evaluation_span(training.validation, max_tokens=limit)[0]


def _saving_seconds(training: Training, folder: Path) -> float:
    began = time.perf_counter()
    tensors, progress = random_state(training.device), {"step": 0}
    save_checkpoint(
        folder / "run", training.model, training.optimizer, progress=progress, tensors=tensors
    )
    return 3 * (time.perf_counter() - began)  # no moments yet, and they are twice the weights


def _table(predictor: Predictor) -> Iterator[str]:
    yield "at other lengths and batch sizes, those of the snakes programs:"
    yield f"{'seq_len':>10} {'batch_size':>11} {'memory':>10}"
    for seq_len, batch_size in SNAKES_SETTINGS:
        size = _size(peak_of(predictor.parts(seq_len, batch_size)))
        yield f"{seq_len:>10,} {batch_size:>11,} {size:>10}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
