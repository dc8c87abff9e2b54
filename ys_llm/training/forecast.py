"""`ys train --dry-run`: what a training would take, told beforehand; nothing is left on the disk.

Sizes are counted, memory is predicted (`memory.py`), and time is measured in a burst: a few real
steps of each stage, a part of an evaluation and one checkpoint, each multiplied by how often the
plan has it. Text is read and encoded as for the training, the shards into a temporary folder.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import Resolved
from ys_llm.data.batches import batches_per_epoch, evaluation_span
from ys_llm.data.split import load_split
from ys_llm.evaluation.bits_per_byte import evaluate_tokens
from ys_llm.model.costs import flops_per_token, parameter_count, parameters_by_part, state_bytes
from ys_llm.runs.checkpoint import save_checkpoint
from ys_llm.training.loop import gradients, learn
from ys_llm.training.memory import EVALUATED_ROWS, Memory, Predictor, available_bytes, peak_of
from ys_llm.training.resume import check_config
from ys_llm.training.setup import build, keep_freed_memory, select_backends, with_batch_size_of
from ys_llm.training.trainer import Training, batch_plan, random_state

BURST_SECONDS = 4.0  # of steps for each stage, after a first one that warms up
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
    keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.set_flush_denormal(True)  # as in training, whose speed this is to tell
    try:
        with tempfile.TemporaryDirectory(prefix="ys-dry-run-") as folder:
            return "\n".join(_forecast(config, run, Path(folder)))
    finally:
        torch.set_flush_denormal(False)


def _forecast(config: Config, run: Path, folder: Path) -> Iterator[str]:
    began = time.perf_counter()
    training = _prepared(config, run, cache=folder / "cache")
    prepared_seconds = time.perf_counter() - began
    predictor = Predictor(
        training.config,
        training.model,
        dtype=training.at.dtype,
        validation_tokens=0 if training.validation is None else training.validation.n_inputs,
    )
    memory, free = predictor.predict(), available_bytes(training.device)
    yield from _sizes(training)
    yield from _memory(memory, free)
    if memory.training > free:
        yield "time         not measured: it takes more memory than is free"
    else:
        yield from _times(training, folder, prepared_seconds)
    yield from _table(predictor)


def _prepared(config: Config, run: Path, *, cache: Path) -> Training:
    training = build(config, run, load_split(config.data), cache=cache)
    select_backends(training)
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


def _memory(memory: Memory, free: int) -> Iterator[str]:
    parts = ", ".join(f"{part} {_size(n)}" for part, n in memory.parts.items() if n)
    yield f"memory       training {_size(memory.training)} at most, {_size(free)} free ({parts})"
    yield f"             using the model {_size(memory.inference)}"


def _times(training: Training, folder: Path, prepared_seconds: float) -> Iterator[str]:
    config = training.config.train
    each = [_step_seconds(training, number) for number in range(len(config.plan))]
    stepping = sum(stage.steps * seconds for stage, seconds in zip(config.plan, each, strict=True))
    saved, evaluated = (
        _saving_seconds(training, folder),
        -(-config.total_steps // config.eval_interval),
    )
    evaluating = _evaluation_seconds(training, evaluated)
    # Each evaluation is taken to be the best so far: its weights, a third of a checkpoint, are
    # published, and a checkpoint is saved.
    both = config.total_steps // math.lcm(config.eval_interval, config.checkpoint_interval)
    saves = 1 + evaluated + config.total_steps // config.checkpoint_interval - both
    saving = saved * (saves + evaluated / 3)
    total = prepared_seconds + stepping + evaluating + saving
    tokens = sum(s.steps * s.seq_len * s.batch_size for s in config.plan) * config.grad_accum_steps
    yield (
        f"time         {_duration(total)}: preparing {_duration(prepared_seconds)}, "
        f"{config.total_steps:,} steps {_duration(stepping)}, "
        f"evaluations {_duration(evaluating)}, checkpoints {_duration(saving)}"
    )
    yield f"speed        {tokens / stepping:,.0f} tokens/s"


def _step_seconds(training: Training, number: int) -> float:
    """Median seconds of real steps of a stage, after a first one that warms up."""
    plan = training.config.train.plan
    seconds: list[float] = []
    training.at.step = sum(stage.steps for stage in plan[:number])
    training.carried = None
    ends = time.perf_counter() + BURST_SECONDS
    for _ in range(plan[number].steps):
        tried = gradients(training)
        seconds.append(learn(training, tried)["step_seconds"])
        if len(seconds) > 1 and time.perf_counter() > ends:
            break
    return statistics.median(seconds[1:] or seconds)


def _evaluation_seconds(training: Training, evaluations: int) -> float:
    """So many evaluations, and the last one over everything held out."""
    if training.validation is None:
        return 0.0
    config, held_out = training.config.train, training.validation
    seq_len = config.plan[-1].seq_len
    began = time.perf_counter()
    with training.autocast():
        result = evaluate_tokens(
            training.model,
            held_out,
            seq_len=seq_len,
            max_tokens=EVALUATED_TOKENS,
            reset_at_document=training.config.data.reset_at_document,
        )
    per_token = (time.perf_counter() - began) / _tokens_read(result.tokens, seq_len)
    one, last = _evaluated_tokens(training), held_out.n_inputs
    read = evaluations * _tokens_read(one, seq_len) + _tokens_read(last, seq_len)
    return per_token * read


def _tokens_read(scored: int, seq_len: int) -> int:
    """Each row of an evaluation reads one length before the tokens that it scores."""
    return scored + seq_len * max(1, min(EVALUATED_ROWS, scored // seq_len))


def _evaluated_tokens(training: Training) -> int:
    if training.validation is None:
        return 0
    limit = training.config.train.eval_tokens
    return evaluation_span(training.validation, max_tokens=limit)[0]


def _saving_seconds(training: Training, folder: Path) -> float:
    """One checkpoint, written where the others would not be."""
    began = time.perf_counter()
    tensors, progress = random_state(training.device), {"step": training.at.step}
    save_checkpoint(
        folder / "run", training.model, training.optimizer, progress=progress, tensors=tensors
    )
    return time.perf_counter() - began


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
