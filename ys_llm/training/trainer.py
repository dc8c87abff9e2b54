"""What a training is made of, which text its next step reads, and how it is saved and taken up."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ys_llm.config.schema import Config, Stage, TrainConfig
from ys_llm.data.batches import Batch, BatchPlan, batch_at
from ys_llm.data.shards import TokenShard
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, flatten, tensors_of, to_device, unflatten
from ys_llm.runs.checkpoint import (
    Checkpoint,
    check_tokenizer,
    remove_superseded,
    restore,
    save_checkpoint,
)
from ys_llm.training import optimizer, resume
from ys_llm.training.resume import Rollback, TrainProgress

_CARRIED = "carried."  # prefix of the carried state among a checkpoint's tensors


@dataclass
class Training:
    """Everything the loop works on."""

    config: Config
    run: Path
    model: Model
    optimizer: torch.optim.AdamW
    tokenizer: Tokenizer
    data: TokenShard
    validation: TokenShard | None
    has_records: bool
    sample_prompt: str
    device: torch.device
    at: TrainProgress = field(default_factory=TrainProgress)
    carried: State | None = None
    undone: list[Rollback] = field(default_factory=list)
    floor: dict[str, float] = field(default_factory=dict)  # bits per byte that a model has to beat
    circumstances: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)  # of the documents, as in the card

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole plan."""
        return self.config.train.total_steps

    @property
    def stopped_early(self) -> bool:
        """Whether the patience is at its end; a run goes on once it is given more."""
        return 0 < self.config.train.patience <= self.at.evaluations_since_best

    @property
    def finished(self) -> bool:
        """Whether there is no step left to do."""
        return self.at.step >= self.total_steps or self.stopped_early

    def autocast(self) -> torch.autocast:
        """bf16 operands where the run's dtype says so; weights and state stay float32."""
        enabled = self.at.dtype == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def learning_rate(self) -> float:
        """The schedule's rate for the next step, lower for a while after each rollback.

        The first time for `rollback_steps` beyond the step that went bad, then 4 and 16 times as
        long: one bad text needs no lower rate for good, a rate that is too high does.
        """
        config, step = self.config.train, self.at.step
        rate = optimizer.learning_rate(step, config, total_steps=self.total_steps)
        for number, item in enumerate(self.undone):
            if item.back_to <= step < item.step + config.rollback_steps * 4**number:
                rate *= config.rollback_lr_factor
        return rate


class Place(NamedTuple):
    """Where in the text the next step reads: piece `piece` of stage `number`, in steps."""

    number: int
    stage: Stage
    piece: int
    after_gap: bool  # the piece before it is one that is skipped


def place(training: Training) -> Place:
    """The piece of the next step: a function of the step, past the pieces that are skipped."""
    number, stage, piece = stage_at(training.config.train, training.at.step)
    skipped = {item.skipped for item in training.undone if item.stage == number}
    for gap in sorted(skipped):
        piece += gap <= piece
    return Place(number, stage, piece, piece - 1 in skipped)


def stage_at(config: TrainConfig, step: int) -> tuple[int, Stage, int]:
    """Number and stage that step belongs to, and the steps of the stage before it."""
    for number, stage in enumerate(config.plan):
        if step < stage.steps:
            return number, stage, step
        step -= stage.steps
    raise AssertionError(f"step {step} beyond the plan")


def batch_plan(training: Training, number: int, stage: Stage) -> BatchPlan:
    """The order of batches of stage `number`."""
    config = training.config
    return BatchPlan(
        config.data.batching,
        stage.seq_len,
        stage.batch_size,
        config.train.seed + number,  # stages must not all begin with the same windows
        training.tokenizer.end_id,
    )


def next_batch(training: Training, micro: int) -> Batch:
    """Batch `micro` of the coming step, on the device."""
    number, stage, piece, after_gap = place(training)
    plan = batch_plan(training, number, stage)
    batch = batch_at(training.data, plan, piece * training.config.train.grad_accum_steps + micro)
    return Batch(
        batch.inputs_BT.to(training.device),
        batch.targets_BT.to(training.device),
        batch.starts_BT.to(training.device),
        batch.carry and not (after_gap and micro == 0),
    )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of every generator that training draws from."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def set_random_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators back to where `random_state` found them."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


def save(training: Training) -> None:
    """A checkpoint of this step; those that it supersedes go."""
    began = time.perf_counter()
    tensors, config = random_state(training.device), training.config.train
    if training.carried is not None:
        carried = flatten(training.carried)
        tensors |= {f"{_CARRIED}{name}": tensor for name, tensor in carried.items()}
    progress = vars(training.at) | {
        "tokenizer_fingerprint": training.tokenizer.fingerprint,
        "circumstances": training.circumstances,
    }
    save_checkpoint(
        training.run, training.model, training.optimizer, progress=progress, tensors=tensors
    )
    remove_superseded(
        training.run,
        newest=config.keep_checkpoints,
        every=config.keep_checkpoint_every,
        best_step=training.at.best_step,
    )
    training.at.saving_seconds += time.perf_counter() - began


def restore_checkpoint(training: Training, saved: Checkpoint) -> None:
    """Make the training what it was when this checkpoint was saved."""
    fingerprint = str(saved.progress.get("tokenizer_fingerprint"))
    check_tokenizer(training.run, training.tokenizer, fingerprint)
    training.at = resume.progression_of(saved)
    restore(saved, training.model, training.optimizer)
    training.undone = resume.rollbacks(training.run)
    try:
        _take_up_tensors(training, saved)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{saved.path}/tensors.safetensors is not what a training goes on from ({error})",
            f"Remove {saved.path} to go on from the one before, or begin anew: ys train clean",
        ) from error


def _take_up_tensors(training: Training, saved: Checkpoint) -> None:
    """The random generators and the carried state."""
    set_random_state(saved.tensors, training.device)
    if training.device.type == "cuda" and "random.cuda" not in saved.tensors:
        # Checkpoint on a CPU: from the seed alone, dropout would begin again with its first masks.
        torch.cuda.manual_seed(training.config.train.seed + training.at.step)
    carried = {
        name.removeprefix(_CARRIED): tensor
        for name, tensor in saved.tensors.items()
        if name.startswith(_CARRIED)
    }
    training.carried = None
    if carried:
        state = unflatten(carried, like=training.model.init_state(1))
        if _has_rows_of_next_batch(training, state):
            training.carried = to_device(state, training.device)


def _has_rows_of_next_batch(training: Training, state: State) -> bool:
    """Not so where the plan was changed, or is at its end."""
    if training.at.step >= training.total_steps:
        return False
    _, stage, _ = stage_at(training.config.train, training.at.step)
    return all(len(tensor) == stage.batch_size for tensor in tensors_of(state))
