"""Resuming: what a checkpoint stores, what may change between sessions, which one is loaded.

A run that is killed at any instant and started again gives, on the same CPU, the same bits as an
uninterrupted one. Whatever the loop's decisions depend on is therefore in a checkpoint, in
`rollbacks.json`, or a pure function of the step. Where the environment has changed, the header
says so.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ys_llm.config.sources import Resolved, load_config, to_mapping
from ys_llm.config.strict_reader import flatten
from ys_llm.data.document_table import sorted_hashes, total_bytes
from ys_llm.data.records import Document
from ys_llm.data.split import Split
from ys_llm.errors import EXIT_USAGE, UserError, command_line
from ys_llm.runs.checkpoint import Checkpoint, CorruptCheckpointError, read_checkpoint
from ys_llm.runs.folder import CHECKPOINTS, SUPERSEDED, archive, checkpoints, is_half_cleaned
from ys_llm.runs.history import METRICS, ROLLBACKS, read_metrics
from ys_llm.runs.model_files import read_json
from ys_llm.system.files import write_atomically
from ys_llm.training.compute import Compute, machine_identity
from ys_llm.training.metrics import log_line

# What may not change once a run has a checkpoint, and why; everything else may.
FIXED = {
    "model.": "the weights have the old shape",
    "tokenizer.": "token ids mean nothing under another vocabulary",
    "train.optimizer": "the saved moments are those of the other one",
    "sft.method": "the checkpoint holds what the other one trains",
    "sft.lora.": "the adapters have the old shape",
    "data.validation_fraction": "held-out text would be trained on, or the reverse",
}
NOT_FIXED = (
    "model.dropout",
    "model.size",
    "sft.lora.dropout",
)  # the size is a name for other settings
# What may change, although it determines which text a step reads.
ORDER = (
    "data.path",
    "data.format",
    "data.on_bad_record",
    "data.on_bad_shard",
    "data.batching",
    "data.long_documents",
    "train.seed",
    "train.seq_len",
    "train.batch_size",
    "train.grad_accum_steps",
    "train.stages",
)
# Keys of a checkpoint's progress.json besides "format" and the fields of TrainProgress.
TOKENIZER_FINGERPRINT, ENVIRONMENT, PIECES = "tokenizer_fingerprint", "environment", "pieces"


@dataclass
class TrainProgress:
    """The counters and losses of a run, saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    saving_seconds: float = 0.0
    best_bits_per_byte: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    recent_losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Rollback:
    """One rollback: training returned to step `back_to` because step `step` failed.

    Batch `skipped` of stage `stage` is not read again; from `back_to` on the learning rate is lower
    for a while.
    """

    step: int
    back_to: int
    stage: int
    skipped: int
    reason: str


def parse_progress(saved: Checkpoint) -> TrainProgress:
    """The progress of a checkpoint; UserError where progress.json lacks a field or has a wrong one.

    Its checksum has been verified, so another program wrote a wrong value.
    """
    missing = [f.name for f in fields(TrainProgress) if f.name not in saved.progress]
    if missing:
        raise UserError(
            f"{saved.path}/progress.json lacks {missing[0]}",
            f"Use the ys that wrote it, or start again: {_clean(saved.path.parent.parent)}",
        )
    progress = TrainProgress(**{f.name: saved.progress[f.name] for f in fields(TrainProgress)})
    wrong = [
        name for name, value in vars(TrainProgress()).items() if not _fits(value, progress, name)
    ]
    if not wrong and saved.path.name != f"step-{progress.step:08d}":
        wrong = ["step"]
    if not isinstance(saved.progress.get(ENVIRONMENT, {}), dict):
        wrong = [ENVIRONMENT]
    if wrong:
        raise UserError(
            f"{saved.path}/progress.json has an invalid {wrong[0]}",
            f"Remove {saved.path} to resume from the checkpoint before it, or start again: "
            f"{_clean(saved.path.parent.parent)}",
        )
    return progress


def _clean(folder: Path) -> str:
    """The command that starts a run from the beginning, with its saved configuration."""
    return command_line("train", "clean", run=folder.name)


def _clean_as(resolved: Resolved, *words: str) -> str:
    """The command that starts a run from the beginning, with the configuration that was typed."""
    return resolved.train_command("clean", *words, run=resolved.config.run, init_from=None)


def _fits(default: Any, progress: TrainProgress, name: str) -> bool:
    """Whether a value has its field's type, and is neither negative nor NaN."""
    value = getattr(progress, name)
    if isinstance(default, list):
        return isinstance(value, list) and all(type(item) is float for item in value)
    expected = (int, float) if isinstance(default, float) else (int,)
    return type(value) in expected and value >= 0


def latest_valid_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run; newer, damaged ones are named and archived.

    None where there are none. Raises UserError where all are damaged; they are then left in place,
    or training would silently start again.
    """
    damaged: dict[Path, CorruptCheckpointError] = {}
    for path in reversed(checkpoints(folder)):
        try:
            saved = read_checkpoint(path)
        except CorruptCheckpointError as error:
            damaged[path] = error
            continue
        for bad, problem in damaged.items():
            log_line(f"damaged      {problem}; moved to {archive(folder, bad)}")
        return saved
    for problem in damaged.values():
        log_line(f"damaged      {problem}")
    if damaged:
        raise UserError(
            f"all {len(damaged)} checkpoints of {folder} are damaged",
            f"The best model so far still works: {command_line('run', folder.name)}. "
            f"To start again: {_clean(folder)}",
        )
    return None


def check_resume_step(folder: Path, step: int) -> None:
    """Raise UserError where the run has no valid checkpoint of this step."""
    steps = {_step_of(path): path for path in checkpoints(folder)}
    if step not in steps:
        found = ", ".join(f"{known:,}" for known in steps) or "none"
        raise UserError(
            f"{folder} has no checkpoint of step {step:,}",
            f"Choose one of: {found}. How many are kept: train.keep_checkpoints, "
            "train.keep_checkpoint_every",
            exit_code=EXIT_USAGE,
        )
    try:
        read_checkpoint(steps[step])
    except CorruptCheckpointError as error:
        raise UserError(str(error), "Choose another step.") from error


def rewind(folder: Path, step: int) -> None:
    """Make the checkpoint of `step` the latest; newer ones and their metrics are archived."""
    check_resume_step(folder, step)
    newer = [path for path in checkpoints(folder) if _step_of(path) > step]
    if not newer:
        return
    rows = [row for row in read_metrics(folder / METRICS) if row["step"] > step]
    name = f"metrics-after-{step:08d}.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(folder / name, text, create_folder=False)
    archive(folder, folder / name)
    for path in reversed(newer):  # newest first: a kill in between leaves no gap
        archive(folder, path)
    log_line(f"rewinding    to step {step:,}; {len(newer)} newer moved to {folder / SUPERSEDED}")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def read_rollbacks(folder: Path) -> list[Rollback]:
    """All rollbacks of a run so far, whichever checkpoint it resumes from."""
    path = folder / ROLLBACKS
    if not path.exists():
        return []
    try:
        return [Rollback(**item) for item in read_json(path, needed=["rollbacks"])["rollbacks"]]
    except TypeError as error:
        raise UserError(
            f"{path} cannot be read ({error})", f"Remove it to forget the rollbacks: rm {path}"
        ) from error


def write_rollbacks(folder: Path, rollbacks: Sequence[Rollback]) -> None:
    """Replace the list atomically."""
    text = json.dumps({"rollbacks": [asdict(item) for item in rollbacks]}, indent=2)
    write_atomically(folder / ROLLBACKS, text + "\n", create_folder=False)


def check_checkpoints_exist(folder: Path, resolved: Resolved) -> None:
    """Raise UserError where a run has results but no checkpoint: step 0 would overwrite them."""
    names = ("model.safetensors", "config.json", "metrics.jsonl")
    found = [name for name in names if (folder / name).exists()]
    if not found or checkpoints(folder) or is_half_cleaned(folder):
        return
    start = {"init_from": folder.name, "data": resolved.config.data.path}
    from_weights = resolved.train_command(**start, run=None, config=None)
    fixes = [
        f"Put them back into {folder}/{CHECKPOINTS}",
        *([f"start a new run from its weights: {from_weights}"] if names[0] in found else []),
        f"remove these files and start again: {_clean_as(resolved)}",
    ]
    raise UserError(
        f"{folder} has {', '.join(found)}, but no checkpoint to resume from",
        ", or ".join(fixes),
    )


def check_config(folder: Path, resolved: Resolved) -> list[str]:
    """What differs from the run's saved configuration, one line each.

    Raises UserError, naming each, for changes that a run with a checkpoint does not allow.
    """
    if not (folder / "tokenizer.json").exists() or not (folder / "config.yaml").exists():
        return []
    before = flatten(to_mapping(load_config(folder / "config.yaml").config))
    now = flatten(to_mapping(resolved.config))
    changed = {
        name: f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }
    has_checkpoint = bool(checkpoints(folder))
    refused = [
        f"{line} ({reason})"
        for name, line in changed.items()
        if (reason := reason_fixed(name)) and (has_checkpoint or name.startswith("tokenizer."))
    ]
    if refused:
        raise UserError(
            f"{folder} cannot resume with another configuration: {'; '.join(refused)}",
            f"Use its own {folder}/config.yaml, choose another --run, or start again: "
            f"{_clean_as(resolved, 'all')}",
            exit_code=EXIT_USAGE,
        )
    return list(_change_lines(changed)) if has_checkpoint else []


def reason_fixed(name: str) -> str:
    """Why this setting may not change once a run has a checkpoint; "" where it may."""
    if name in NOT_FIXED:
        return ""
    return next((reason for prefix, reason in FIXED.items() if name.startswith(prefix)), "")


def _change_lines(changed: Mapping[str, str]) -> Iterator[str]:
    yield from (line for name, line in changed.items() if name != "run")
    if any(name.startswith(ORDER) for name in changed):
        yield "the text comes in another order: step N reads batch N of the new order"


def environment_of(split: Split, compute: Compute, *, processes: int = 1) -> dict[str, Any]:
    """What the bits of a run depend on besides its configuration."""
    return {
        **machine_identity(compute.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "backends": dict(compute.backends),
        "dtype": compute.dtype,
        "training text": _fingerprint(split.training),
        "held-out text": _fingerprint(split.validation),
    }


def _fingerprint(documents: Sequence[Document]) -> str:
    """Number, size and a hash of the documents, in any order."""
    digest = hashlib.blake2b(digest_size=8)
    for hashes in sorted_hashes(documents):
        digest.update(hashes)
    size = total_bytes(documents)
    return f"{len(documents):,} documents, {size:,} bytes, {digest.hexdigest()}"


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs from when the run was saved, one line each, and what follows from it."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    lines = [
        f"{name} was {_as_text(before[name])} and is now {_as_text(now[name])}" for name in changed
    ]
    if any(name.endswith("text") for name in changed):
        lines.append(
            "each document stays on its side of the split; the order is drawn again: step N reads "
            "batch N of the new order, so some text repeats sooner"
        )
    elif changed:
        lines.append("from here on the run is not bit for bit what it would have been")
    return lines


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {choice}" for name, choice in value.items())
    return str(value)
