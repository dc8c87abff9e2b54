"""Going on: what a run remembers, what may have changed since, and which checkpoint is taken.

A run that is killed at any instant and started again gives, on the same CPU, bit for bit what it
would have given. Whatever the loop decides from is therefore in a checkpoint, in `rollbacks.json`,
or a pure function of the step. Where the circumstances have changed, the header says so.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config, to_mapping
from ys_llm.config.strict_reader import flatten
from ys_llm.data.records import Document
from ys_llm.data.split import Split
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.runs.checkpoint import (
    Checkpoint,
    CorruptCheckpointError,
    checkpoints,
    read_checkpoint,
    read_json,
)
from ys_llm.runs.folder import SUPERSEDED, archive
from ys_llm.system.files import write_atomically
from ys_llm.system.machine import inspect_machine
from ys_llm.training.metrics import log_line, read_metrics

_ROLLBACKS = "rollbacks.json"

# What a run that has begun may not change, and why; all else may.
FIXED = {
    "model.": "the weights have the shape of the old one",
    "tokenizer.": "token ids mean nothing under another vocabulary",
    "data.validation_fraction": "text that was held out would be trained on, or the reverse",
}
FREE_ALL_THE_SAME = ("model.dropout",)
# What may change, but decides which text a step reads.
ORDER = (
    "data.path",
    "data.batching",
    "train.seed",
    "train.seq_len",
    "train.batch_size",
    "train.grad_accum_steps",
    "train.stages",
)


@dataclass
class TrainProgress:
    """Where a training stands: all that a checkpoint must remember besides weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    saving_seconds: float = 0.0
    best_bits_per_byte: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    recent_losses: list[float] = field(default_factory=list)
    dtype: str = ""
    backend: str = ""


@dataclass(frozen=True)
class Rollback:
    """Once undone: training went back to `back_to`; piece `skipped` of `stage` is not read again.

    `step` is the one whose numbers went bad; from `back_to` on the learning rate is lower.
    """

    step: int
    back_to: int
    stage: int
    skipped: int
    reason: str


def progression_of(saved: Checkpoint) -> TrainProgress:
    """Where the checkpoint's training stood."""
    missing = [f.name for f in fields(TrainProgress) if f.name not in saved.progress]
    if missing:
        raise UserError(
            f"{saved.path}/progress.json lacks {missing[0]}",
            "Use the ys that wrote it, or begin anew: ys train clean",
        )
    at = TrainProgress(**{f.name: saved.progress[f.name] for f in fields(TrainProgress)})
    odd = [name for name, value in vars(TrainProgress()).items() if not _is_like(value, at, name)]
    if not odd and saved.path.name != f"step-{at.step:08d}":
        odd = ["step"]
    if not isinstance(saved.progress.get("circumstances", {}), dict):
        odd = ["circumstances"]
    if odd:
        raise UserError(
            f"{saved.path}/progress.json holds no {odd[0]} that a training can go on from",
            f"Remove {saved.path} to go on from the one before, or begin anew: ys train clean",
        )
    return at


def _is_like(default: Any, at: TrainProgress, name: str) -> bool:
    """Whether a value is of its field's type, and no number below zero or not a number."""
    value = getattr(at, name)
    if isinstance(default, list):
        return isinstance(value, list) and all(type(item) is float for item in value)
    if isinstance(default, str):
        return isinstance(value, str)
    wanted = (int, float) if isinstance(default, float) else (int,)
    return type(value) in wanted and value >= 0


def latest_valid_checkpoint(run: Path) -> Checkpoint | None:
    """The last checkpoint that is what was written; damaged ones are named and moved away.

    None where there are none. Raises UserError where all are damaged.
    """
    damaged: dict[Path, CorruptCheckpointError] = {}
    for path in reversed(checkpoints(run)):
        try:
            saved = read_checkpoint(path)
        except CorruptCheckpointError as error:
            damaged[path] = error
            continue
        for bad, why in damaged.items():  # not before: with none left, training would begin anew
            log_line(f"damaged      {why}; moved to {archive(run, bad)}")
        return saved
    for why in damaged.values():
        log_line(f"damaged      {why}")
    if damaged:
        raise UserError(
            f"no checkpoint of {run} is whole: all {len(damaged)} are damaged",
            f"The last best model still works: ys run {run.name}. To begin anew: ys train clean",
        )
    return None


def go_back(run: Path, step: int) -> None:
    """Make the checkpoint of `step` the last one; newer ones and their metrics are left behind."""
    found = {int(path.name.removeprefix("step-")): path for path in checkpoints(run)}
    if step not in found:
        there = ", ".join(f"{known:,}" for known in found) or "none"
        raise UserError(
            f"{run} has no checkpoint of step {step:,}",
            f"Choose one of: {there}. How many are kept: train.keep_checkpoints, "
            "train.keep_checkpoint_every",
            exit_code=EXIT_USAGE,
        )
    newer = [path for known, path in found.items() if known > step]
    if not newer:
        return
    try:
        read_checkpoint(found[step])
    except CorruptCheckpointError as error:
        raise UserError(str(error), "Choose another step") from error
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["step"] > step]
    name = f"metrics-after-{step:08d}.jsonl"
    write_atomically(run / name, "".join(json.dumps(row) + "\n" for row in rows))
    archive(run, run / name)
    for path in reversed(newer):  # newest first: a kill on the way leaves an unbroken line
        archive(run, path)
    log_line(f"going back   to step {step:,}; {len(newer)} newer in {run / SUPERSEDED}")


def rollbacks(run: Path) -> list[Rollback]:
    """What has been undone so far; it holds whichever checkpoint training goes on from."""
    path = run / _ROLLBACKS
    if not path.exists():
        return []
    try:
        return [Rollback(**item) for item in read_json(path, needed=["rollbacks"])["rollbacks"]]
    except TypeError as error:
        raise UserError(
            f"{path} cannot be read ({error})", f"Remove it to forget what was undone: rm {path}"
        ) from error


def write_rollbacks(run: Path, undone: Sequence[Rollback]) -> None:
    """Replace the list, in one step."""
    text = json.dumps({"rollbacks": [asdict(item) for item in undone]}, indent=2)
    write_atomically(run / _ROLLBACKS, text + "\n")


def check_config(run: Path, config: Config) -> list[str]:
    """What differs from the run's own configuration, one line each.

    Raises UserError, naming each, where the run could not go on as what it is.
    """
    if not (run / "tokenizer.json").exists() or not (run / "config.yaml").exists():
        return []
    before = flatten(to_mapping(load_config(run / "config.yaml").config))
    now = flatten(to_mapping(config))
    changed = {
        name: f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }
    begun = bool(checkpoints(run))
    refused = [
        f"{line} ({why})"
        for name, line in changed.items()
        if (why := reason_fixed(name)) and (begun or name.startswith("tokenizer."))
    ]
    if refused:
        raise UserError(
            f"{run} cannot go on with another configuration: {'; '.join(refused)}",
            f"Take its own {run}/config.yaml, choose another --run, or train anew: "
            f"ys train clean all",
            exit_code=EXIT_USAGE,
        )
    return list(_told(changed)) if begun else []


def reason_fixed(name: str) -> str:
    """Why a run that has begun may not change this setting; "" where it may."""
    if name in FREE_ALL_THE_SAME:
        return ""
    return next((why for prefix, why in FIXED.items() if name.startswith(prefix)), "")


def _told(changed: Mapping[str, str]) -> Iterator[str]:
    yield from (line for name, line in changed.items() if name != "run")
    if any(name.startswith(ORDER) for name in changed):
        yield "the order of the text is another one: step N goes on with batch N of the new order"


def machine_of(device: torch.device) -> dict[str, Any]:
    """What computes, as far as the best choice of dtype and kernels depends on it."""
    return {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "processor": inspect_machine().processor,
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }


def circumstances(split: Split, at: TrainProgress, device: torch.device) -> dict[str, Any]:
    """What the bits of a run depend on besides its configuration."""
    return {
        **machine_of(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": at.backend,
        "dtype": at.dtype,
        "training text": _described(split.training),
        "held-out text": _described(split.validation),
    }


def _described(documents: Sequence[Document]) -> str:
    """A line that is the same for the same texts: how many, how much, and a hash over all."""
    digest = hashlib.blake2b(
        "".join(sorted(d.content_hash for d in documents)).encode(), digest_size=8
    )
    size = sum(document.n_bytes for document in documents)
    return f"{len(documents):,} documents, {size:,} bytes, {digest.hexdigest()}"


def changed_circumstances(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is another than when the run was saved, one line each; and what follows from it."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    lines = [f"{name} was {before[name]} and is now {now[name]}" for name in changed]
    if any(name.endswith("text") for name in changed):
        lines.append(
            "each document is still on the side of the split that its content gives it; the order "
            "is drawn anew: step N goes on with batch N of it, so some text comes sooner again"
        )
    elif changed:
        lines.append("from here on the run is not bit for bit what it would have been")
    return lines
