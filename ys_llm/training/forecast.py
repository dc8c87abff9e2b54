"""`ys train --dry-run`: forecasts sizes, memory and time of a run; leaves nothing on disk.

Sizes are counted, memory is forecast (`memory.py`), and time is measured in a burst (`budget.py`).
Text is read and encoded as for training, the shards into a temporary folder.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ys_llm.config.sources import Resolved
from ys_llm.model.costs import flops_per_token, parameter_count, parameters_by_part, state_bytes
from ys_llm.training.budget import (
    duration,
    measure,
    minutes_line,
    steps_within,
    tokens_of,
    with_steps,
)
from ys_llm.training.compute import process_settings, select_backends
from ys_llm.training.header import rows_lines
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
    has_saved_steps,
    source_of,
    with_saved_choices,
)
from ys_llm.training.trainer import Run, batches_of_epoch

_MAPPED_AT_ONCE = 1 << 16  # bytes: one access to a mapped file brings in the pages around it


@dataclass(frozen=True)
class Preparation:
    """A run that is ready to train; how long this took, and how much memory.

    `is_measured`: the steps that its minutes come to are known from an earlier session.
    `peak_growth` is how far memory rose above what it was before, `growth` what stayed.
    """

    run: Run
    is_measured: bool
    seconds: float
    peak_growth: int
    growth: int


def dry_run(resolved: Resolved, *, runs_dir: Path) -> str:
    """The forecast, one fact per line. Raises UserError wherever training would."""
    folder = runs_dir / resolved.config.run
    reset_peak()
    base = resident_bytes()
    check_model(resolved.config)
    check_checkpoints_exist(folder, resolved)
    resolved = replace(resolved, config=with_saved_choices(folder, resolved.config))
    check_config(folder, resolved)
    with (
        process_settings(resolved.config.train),
        tempfile.TemporaryDirectory(prefix="ys-dry-run-") as scratch,
    ):
        return "\n".join(_forecast(_prepare(resolved, folder, Path(scratch), base), Path(scratch)))


def _prepare(resolved: Resolved, folder: Path, scratch: Path, base: int) -> Preparation:
    began, config = time.perf_counter(), resolved.config
    source = source_of(resolved, config, folder, scratch=scratch)
    run, _ = build(config, folder, source, cache=scratch / "cache")
    peak_growth = max(0, peak_bytes(torch.device("cpu")) - base)
    del source
    release_freed_memory()
    growth = max(0, resident_bytes() - base)
    run = replace(run, compute=select_backends(run.config.train, run.model, run.compute))
    is_measured = has_saved_steps(folder, config)
    return Preparation(run, is_measured, time.perf_counter() - began, peak_growth, growth)


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
    batches = batches_of_epoch(run)
    forward = flops_per_token(model, stage.seq_len) / 1e6
    state = state_bytes(model, batch_size=1, seq_len=stage.seq_len)
    yield f"parameters   {parameter_count(model):,}: {parts}"
    yield f"FLOPs        {forward:,.1f} million per token forward, 3 times that in training"
    yield f"state        {state:,} bytes per sequence after {stage.seq_len:,} tokens"
    yield (
        f"epoch        {data.n_inputs:,} tokens, "
        f"{batches / config.train.grad_accum_steps:,.1f} steps"
    )
    yield from rows_lines(run)


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
    run, costs = prepared.run, measure(prepared.run, scratch)
    config = run.config
    if config.train.minutes is not None and not prepared.is_measured:
        config = with_steps(config, steps_within(60 * config.train.minutes, costs, config))
        yield minutes_line(config.train, costs)
    parts = costs.seconds(config.train)
    total, stepping = prepared.seconds + sum(parts.values()), parts.pop("steps")
    yield (
        f"time         {duration(total)}: preparing {duration(prepared.seconds)}, "
        f"{config.train.total_steps:,} steps {duration(stepping)}, "
        + ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items())
    )
    yield f"speed        {tokens_of(config.train) / stepping:,.0f} tokens/s"
