"""`ys train --dry-run`: forecasts sizes, memory and time of a run; leaves nothing on disk.

Sizes are counted, memory is forecast (`memory.py`), and time is measured in a burst: a few real
steps of each stage, a part of an evaluation and one checkpoint, each multiplied by how often the
plan has it. Text is read and encoded as for training, the shards into a temporary folder.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import Resolved
from ys_llm.data.batches import batches_per_epoch, evaluation_span
from ys_llm.data.split import load_split
from ys_llm.evaluation.bits_per_byte import EVALUATION_ROWS, evaluate_tokens
from ys_llm.model.costs import flops_per_token, parameter_count, parameters_by_part, state_bytes
from ys_llm.runs.checkpoint import save_checkpoint
from ys_llm.training.compute import process_settings, select_backends
from ys_llm.training.memory import (
    FORECAST_ERROR,
    available_bytes,
    forecast_memory,
    release_freed_memory,
)
from ys_llm.training.memory_probe import peak_bytes, reset_peak, resident_bytes
from ys_llm.training.resume import check_checkpoints_exist, check_config
from ys_llm.training.setup import (
    build,
    check_model,
    data_command,
    saved_split,
    with_saved_batch_size,
)
from ys_llm.training.steps import forward_backward, optimizer_step
from ys_llm.training.trainer import Run, TrainState, batch_plan, random_state

BURST_SECONDS = 4.0  # of steps for each stage, after a first one that warms up
_MAPPED_AT_ONCE = 1 << 16  # bytes: one access to a mapped file brings in the pages around it
EVALUATED_TOKENS = 30_000  # of one evaluation, scaled to all of its tokens


@dataclass(frozen=True)
class Preparation:
    """A run that is ready to train; how long this took, and how much memory.

    `peak_growth` is how far memory rose above what it was before, `growth` what stayed.
    """

    run: Run
    seconds: float
    peak_growth: int
    growth: int


def dry_run(resolved: Resolved, *, runs_dir: Path) -> str:
    """The forecast, one fact per line. Raises UserError wherever training would."""
    folder = runs_dir / resolved.config.run
    reset_peak()
    base = resident_bytes()
    check_model(resolved.config)
    check_checkpoints_exist(folder, resolved.config)
    config = with_saved_batch_size(folder, resolved.config)
    check_config(folder, config)
    with (
        process_settings(config.train),
        tempfile.TemporaryDirectory(prefix="ys-dry-run-") as scratch,
    ):
        return "\n".join(_forecast(_prepare(config, folder, Path(scratch), base), Path(scratch)))


def _prepare(config: Config, folder: Path, scratch: Path, base: int) -> Preparation:
    began = time.perf_counter()
    split = load_split(
        config.data,
        record=saved_split(folder),
        command=data_command(config),
        scratch=scratch,
    )
    run, _ = build(config, folder, split, cache=scratch / "cache")
    peak_growth = max(0, peak_bytes(torch.device("cpu")) - base)
    del split
    release_freed_memory()
    growth = max(0, resident_bytes() - base)
    run = replace(run, compute=select_backends(run.config.train, run.model, run.compute))
    return Preparation(run, time.perf_counter() - began, peak_growth, growth)


def _forecast(prepared: Preparation, scratch: Path) -> Iterator[str]:
    yield from _sizes(prepared.run)
    needed, free = _peak_memory(prepared), available_bytes(prepared.run.device)
    yield (
        f"memory       about {needed / 1e9:,.2f} GB, +-{FORECAST_ERROR:.0%}, reading the corpus "
        f"included; {'unknown' if free is None else f'{free / 1e9:,.2f} GB'} free"
    )
    if free is not None and needed > free:
        yield "time         not measured: the training needs more memory than is free"
    else:
        yield from _times(prepared, scratch)


def _sizes(run: Run) -> Iterator[str]:
    config, model, data = run.config, run.model, run.data.training
    stage = config.train.plan[0]
    parts = ", ".join(f"{part} {n:,}" for part, n in parameters_by_part(model).items())
    batches = batches_per_epoch(data, batch_plan(config, run.tokenizer, 0))
    forward = flops_per_token(model, stage.seq_len) / 1e6
    state = state_bytes(model, batch_size=1, seq_len=stage.seq_len)
    yield f"parameters   {parameter_count(model):,}: {parts}"
    yield f"FLOPs        {forward:,.1f} million per token forward, 3 times that in training"
    yield f"state        {state:,} bytes per sequence after {stage.seq_len:,} tokens"
    yield (
        f"epoch        {data.n_inputs:,} tokens, "
        f"{batches / config.train.grad_accum_steps:,.1f} steps"
    )


def _peak_memory(prepared: Preparation) -> int:
    """The greatest forecast peak of all stages, and of reading the corpus."""
    run, peaks = prepared.run, list[int]()
    validation = run.data.validation
    largest: dict[int, int] = {}
    for stage in run.config.train.plan:
        largest[stage.seq_len] = max(stage.batch_size, largest.get(stage.seq_len, 0))
    for seq_len, batch_size in largest.items():
        forecast = forecast_memory(
            run.config,
            run.compute,
            vocab_size=run.tokenizer.vocab_size,
            seq_len=seq_len,
            sizes=(1, batch_size),
            validation_tokens=0 if validation is None else validation.n_inputs,
        )
        peaks.append(forecast.peak_bytes(batch_size))
        if run.device.type == "cpu":
            # This process has read the corpus and built the model; the measured one only built it.
            kept = prepared.growth - (forecast.built_bytes - forecast.base_bytes)
            peaks[-1] += max(0, kept) + _mapped_bytes(run)
            peaks.append(forecast.base_bytes + prepared.peak_growth)
    return max(peaks)


def _mapped_bytes(run: Run) -> int:
    """How much of the shards the run reads at most: mapped pages count as its memory."""
    training, validation = run.data.training.tokens, run.data.validation
    window = _MAPPED_AT_ONCE + run.config.train.plan[-1].seq_len * training.itemsize
    rows = sum(stage.steps * stage.batch_size for stage in run.config.train.plan)
    read = min(training.nbytes, rows * run.config.train.grad_accum_steps * window)
    return int(read + (0 if validation is None else validation.tokens.nbytes))


def _times(prepared: Preparation, scratch: Path) -> Iterator[str]:
    run, config = prepared.run, prepared.run.config.train
    seconds = [_step_seconds(run, index) for index in range(len(config.plan))]
    stepping = sum(stage.steps * each for stage, each in zip(config.plan, seconds, strict=True))
    saved, evaluated = _saving_seconds(run, scratch), -(-config.total_steps // config.eval_interval)
    evaluating = _evaluation_seconds(run, evaluated)
    # Each evaluation is assumed to be the best so far: its weights, a third of a checkpoint, are
    # published, and a checkpoint is saved.
    both = config.total_steps // math.lcm(config.eval_interval, config.checkpoint_interval)
    saves = 1 + evaluated + config.total_steps // config.checkpoint_interval - both
    saving = saved * (saves + evaluated / 3)
    total = prepared.seconds + stepping + evaluating + saving
    tokens = sum(s.steps * s.seq_len * s.batch_size for s in config.plan) * config.grad_accum_steps
    yield (
        f"time         {_duration(total)}: preparing {_duration(prepared.seconds)}, "
        f"{config.total_steps:,} steps {_duration(stepping)}, "
        f"evaluations {_duration(evaluating)}, checkpoints {_duration(saving)}"
    )
    yield f"speed        {tokens / stepping:,.0f} tokens/s"


def _step_seconds(run: Run, stage_index: int) -> float:
    """Median seconds of real steps of a stage, without the first, which warms up."""
    plan, state, seconds = run.config.train.plan, TrainState(), list[float]()
    state.progress.step = sum(stage.steps for stage in plan[:stage_index])
    ends = time.perf_counter() + BURST_SECONDS
    for _ in range(plan[stage_index].steps):
        gradients = forward_backward(run, state)
        seconds.append(optimizer_step(run, state, gradients)["step_seconds"])
        if len(seconds) > 1 and time.perf_counter() > ends:
            break
    return statistics.median(seconds[1:] or seconds)


def _evaluation_seconds(run: Run, evaluations: int) -> float:
    """Seconds of this many evaluations, and of the last one over all held-out text."""
    held_out, config = run.data.validation, run.config.train
    if held_out is None:
        return 0.0
    seq_len = config.plan[-1].seq_len
    began = time.perf_counter()
    with run.compute.autocast():
        result = evaluate_tokens(
            run.model,
            held_out,
            seq_len=seq_len,
            max_tokens=EVALUATED_TOKENS,
            reset_at_document=run.config.data.reset_at_document,
        )
    per_token = (time.perf_counter() - began) / _tokens_read(result.tokens, seq_len)
    one = evaluation_span(held_out, max_tokens=config.eval_tokens)[0]
    read = evaluations * _tokens_read(one, seq_len) + _tokens_read(held_out.n_inputs, seq_len)
    return per_token * read


def _tokens_read(scored: int, seq_len: int) -> int:
    """Each row of an evaluation reads one sequence length before the tokens that it scores."""
    return scored + seq_len * max(1, min(EVALUATION_ROWS, scored // seq_len))


def _saving_seconds(run: Run, scratch: Path) -> float:
    """One checkpoint, written to the temporary folder."""
    began = time.perf_counter()
    tensors = random_state(run.device)
    save_checkpoint(scratch, run.model, run.optimizer, progress={"step": 0}, tensors=tensors)
    return time.perf_counter() - began


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
