"""The child process of `memory.py`: trains real steps on random tokens and prints their peaks.

Reads a request as JSON on stdin, prints {"base_bytes", "built_bytes", "other_bytes",
"steps": [[batch size, peak]]}. A separate process, because peaks are measured per process.
"""

import copy
import json
import resource
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import from_mapping
from ys_llm.data.shards import TokenShard
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.evaluation.bits_per_byte import EVALUATION_ROWS, evaluate_tokens
from ys_llm.model.costs import state_bytes
from ys_llm.model.language_model import Model
from ys_llm.runs.checkpoint import save_checkpoint
from ys_llm.training.compute import Compute, process_settings
from ys_llm.training.memory import keep_freed_memory, release_freed_memory
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.steps import forward_backward, optimizer_step
from ys_llm.training.trainer import Run, TrainingData, TrainState

ENOUGH_GROWTH = 160_000_000  # bytes between two sizes: so that allocator noise is a few percent
_STEPS = 2  # at each size: from the second on moments and a carried state exist


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Peaks of growing batch sizes, then of an evaluation and a checkpoint."""
    config, seq_len = from_mapping(request["config"]), request["seq_len"]
    compute = Compute(torch.device(request["device"]), request["dtype"], request["backends"])
    with process_settings(config.train):
        base, steps = peak_bytes(compute.device), list[tuple[int, int]]()
        run = new_run(config, compute, vocab_size=request["vocab_size"], seq_len=seq_len)
        built = resident_bytes()
        size, largest = request["sizes"]
        while True:
            try:
                train_steps(run, seq_len, size)
            except (MemoryError, torch.OutOfMemoryError):
                break
            steps.append((size, peak_bytes(compute.device)))
            growth = steps[-1][1] - (steps[-2][1] if len(steps) > 1 else steps[-1][1])
            if size >= largest or growth >= ENOUGH_GROWTH:
                break
            size = min(2 * size, largest)
        other = _evaluate_and_save(run, seq_len, request["evaluated_tokens"])
    return {"base_bytes": base, "built_bytes": built, "steps": steps, "other_bytes": other}


def new_run(config: Config, compute: Compute, *, vocab_size: int, seq_len: int) -> Run:
    """The model and its optimizer over random tokens, a document about every 100 of them."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, 64 * seq_len + 101)
    tokens[::100] = 0  # <end>
    starts = np.flatnonzero(tokens[:-1] == 0)
    shard = TokenShard(tokens, starts, np.full(len(starts), 100))
    data = TrainingData(shard, shard, has_records=False, sample_prompt="", baselines={})
    model = Model(config.model, vocab_size=vocab_size, backends=config.train.backend)
    model = model.to(compute.device).train()
    if compute.backends:
        model.select_backends(
            batch_size=1,
            precision=compute.dtype or "fp32",
            previous=compute.backends,
        )
    optimizer = make_optimizer(model, config.train)
    tokenizer = train_tokenizer([], kind="bytes", vocab_size=258)
    # A reference is taken to be as large as the model.
    reference = copy.deepcopy(model) if config.train.reference_run else None
    return Run(config, Path(), tokenizer, data, model, optimizer, compute, reference=reference)


def train_steps(run: Run, seq_len: int, batch_size: int) -> None:
    """A few steps of this shape."""
    train = replace(
        run.config.train, stages=(), seq_len=seq_len, batch_size=batch_size, max_steps=_STEPS
    )
    sized, state = replace(run, config=replace(run.config, train=train)), TrainState()
    for _ in range(_STEPS):
        optimizer_step(sized, state, forward_backward(sized, state))


def _evaluate_and_save(run: Run, seq_len: int, evaluated_tokens: int) -> int:
    """The peak after an evaluation of two windows a row, a checkpoint, and the last evaluation.

    That one is of a copy of the model, which training loads at its end. Adds twice what a state
    that grows with time takes over the full length of an evaluation's rows: it exists before and
    after it has grown.
    """
    release_freed_memory()
    reset_peak()  # else it is that of the largest batch that was tried
    with run.compute.autocast():
        evaluate_tokens(run.model, run.data.training, seq_len=seq_len)
    release_freed_memory()
    with tempfile.TemporaryDirectory(prefix="ys-memory-") as folder:
        save_checkpoint(Path(folder), run.model, run.optimizer, progress={"step": 0}, tensors={})
    release_freed_memory()
    evaluate_tokens(copy.deepcopy(run.model), run.data.training, seq_len=seq_len)
    full_row = seq_len + evaluated_tokens // EVALUATION_ROWS
    full, measured = (
        state_bytes(run.model, batch_size=EVALUATION_ROWS, seq_len=length)
        for length in (full_row, min(full_row, 3 * seq_len))
    )
    return peak_bytes(run.device) + 2 * (full - measured)


def peak_bytes(device: torch.device) -> int:
    """The peak memory of this process so far.

    On Linux from /proc: there ru_maxrss starts at the peak of the process that spawned this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """The memory of this process now."""
    return psutil.Process().memory_info().rss


def reset_peak() -> None:
    """Let `peak_bytes` count from here on; where the system cannot, it counts from the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Read the request from stdin, print the measurements."""
    keep_freed_memory()  # as `ys train` does
    print(json.dumps(measure(json.load(sys.stdin))))
