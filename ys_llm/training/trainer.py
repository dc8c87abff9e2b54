"""What a run consists of, which batch its next step reads, and its checkpoints."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ys_llm.config.schema import Config, Stage, TrainConfig, in_steps
from ys_llm.data.batches import Batch, BatchPlan, batch_at, batches_per_epoch, joined
from ys_llm.data.examples import Pairs
from ys_llm.data.padded import documents_of_batch, padded_batch
from ys_llm.data.shards import Int64Array, TokenShard
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError, command_line
from ys_llm.inference.prefix_file import Fingerprint
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, flatten, tensors_of, to_device, unflatten
from ys_llm.runs.adapters import Base
from ys_llm.runs.checkpoint import (
    Checkpoint,
    path_of_step,
    remove_superseded,
    restore,
    save_checkpoint,
    write_checkpoint,
)
from ys_llm.runs.model_files import check_tokenizer
from ys_llm.system.lock import HeldLock
from ys_llm.training.compute import Compute
from ys_llm.training.elastic.replicas import Replicas
from ys_llm.training.ranks.group import ALONE, Ranks
from ys_llm.training.ranks.shard import whole_files
from ys_llm.training.resume import (
    ENVIRONMENT,
    PIECES,
    TOKENIZER_FINGERPRINT,
    Rollback,
    TrainProgress,
    parse_progress,
    read_rollbacks,
)

# Prefixes of the carried states among a checkpoint's tensors.
_CARRIED, _REFERENCE_CARRIED = "carried.", "reference_carried."


@dataclass(frozen=True)
class TrainingData:
    """The encoded corpus and what is known about its text."""

    training: TokenShard
    validation: TokenShard | None
    has_records: bool  # some documents are a prompt and its answer
    sample_prompt: str
    baselines: Mapping[str, float]  # bits per byte of the held-out text, by predictor
    sources: Sequence[Mapping[str, Any]] = ()  # what made the documents, for the model card
    described: Mapping[str, Any] = field(default_factory=dict)  # sizes and split, for the report


@dataclass(frozen=True)
class Tuning:
    """What a run that is fine-tuned has besides others.

    `replay` is the text of the base that is mixed in, `held_out` that on which forgetting is
    measured, with the base's own bits per byte of it. `reference` has the base's log-probabilities
    of all pairs, and `held_out_reference` those of the held-out ones.
    """

    base: Base
    replay: TokenShard | None = None
    held_out: TokenShard | None = None
    base_bits_per_byte: float = math.nan
    pairs: Pairs | None = None
    held_out_pairs: Pairs | None = None
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    held_out_reference: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None  # of the base, where its initial state is learned
    new_tokens: int = 0  # that the base does not have


@dataclass(frozen=True)
class Run:
    """What is fixed from the first step to the last; in model and optimizer only tensors change.

    `environment` is what the bits of the run depend on besides its configuration.
    """

    config: Config
    folder: Path
    tokenizer: Tokenizer
    data: TrainingData
    model: Model
    optimizer: torch.optim.Optimizer
    compute: Compute
    environment: Mapping[str, Any] = field(default_factory=dict)
    lock: HeldLock | None = None  # on the folder; None where nothing is written to it
    reference: Model | None = None  # that selects the tokens to train, or a teacher
    tuning: Tuning | None = None  # where a base is fine-tuned
    ranks: Ranks = ALONE
    parallel: nn.Module | None = None  # the model as several processes train it
    replicas: Replicas | None = None  # of this training, that come and go
    is_connected: bool = False  # to the other processes: weights are common from here on

    @property
    def is_sharded(self) -> bool:
        """Whether this process has a part of the weights only."""
        return self.config.train.shard and self.is_connected

    @property
    def trained(self) -> nn.Module:
        """What a step calls: the model, or what adds up its gradients over all processes."""
        return self.model if self.parallel is None else self.parallel

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return self.config.train.total_steps

    @property
    def device(self) -> torch.device:
        """Where the model and its batches are."""
        return self.compute.device


@dataclass
class TrainState:
    """What a step changes besides weights and moments.

    `carried` is the state after the last batch where the next one continues it, detached, and
    `reference_carried` that of the reference; of several processes each has that of its rows.
    """

    progress: TrainProgress = field(default_factory=TrainProgress)
    carried: State | None = None
    reference_carried: State | None = None
    rollbacks: list[Rollback] = field(default_factory=list)
    pieces: int | None = None  # read by all replicas together; None = one a step


def stopped_early(run: Run, state: TrainState) -> bool:
    """Whether early stopping has triggered; more patience lets the run continue."""
    return 0 < run.config.train.patience <= state.progress.evaluations_since_best


def is_finished(run: Run, state: TrainState) -> bool:
    """Whether no step is left."""
    return state.progress.step >= run.total_steps or stopped_early(run, state)


def is_due(run: Run, step: int, interval: float) -> bool:
    """Whether what happens every `interval` (steps, or a share of them; 0 = never) follows step."""
    steps = in_steps(interval, run.total_steps)
    return steps > 0 and step % steps == 0


class BatchPosition(NamedTuple):
    """Which text a step reads: batches of `stage` from `batch_index` * grad_accum_steps on."""

    stage_index: int
    stage: Stage
    batch_index: int
    after_gap: bool  # the batches before these are skipped, so that no state can be carried


def batch_position(run: Run, state: TrainState) -> BatchPosition:
    """The position of the next step: a function of the step and of what rollbacks skip."""
    index, stage, batch_index = stage_at(run.config.train, state.progress.step)
    if run.replicas is not None:
        batch_index = run.replicas.piece
    skipped = {rollback.skipped for rollback in state.rollbacks if rollback.stage == index}
    for gap in sorted(skipped):
        batch_index += gap <= batch_index
    return BatchPosition(index, stage, batch_index, batch_index - 1 in skipped)


def stage_at(config: TrainConfig, step: int) -> tuple[int, Stage, int]:
    """Index and stage that step belongs to, and how many of the stage's steps precede it."""
    for index, stage in enumerate(config.plan):
        if step < stage.steps:
            return index, stage, step
        step -= stage.steps
    raise AssertionError(f"step {step} beyond the plan")


def batch_plan(config: Config, tokenizer: Tokenizer, stage_index: int) -> BatchPlan:
    """The order of the batches of a stage."""
    stage = config.train.plan[stage_index]
    return BatchPlan(
        config.data.batching,
        stage.seq_len,
        stage.batch_size,
        config.train.seed + stage_index,  # stages must not all start with the same windows
        tokenizer.end_id,
        config.data.long_documents,
    )


def next_batch(run: Run, state: TrainState, micro_step: int) -> Batch:
    """Batch `micro_step` of the coming step, or this process' rows of it, on the device."""
    stage_index, _, batch_index, after_gap = batch_position(run, state)
    plan = batch_plan(run.config, run.tokenizer, stage_index)
    index = batch_index * run.config.train.grad_accum_steps + micro_step
    batch = _batch_of(run, plan, index)
    if not run.ranks.is_alone:
        batch = batch.part(run.ranks.rows(plan.batch_size))
    batch = batch.to(run.device)
    return replace(batch, carry=batch.carry and not (after_gap and micro_step == 0))


def _batch_of(run: Run, plan: BatchPlan, index: int) -> Batch:
    """Rows of packed documents; of one document each, where they begin from a learned state.

    With `sft.replay` the last rows are text of the base.
    """
    if run.model.initial_state is not None:
        n_documents = len(run.data.training.document_offsets)
        documents = documents_of_batch(n_documents, plan.batch_size, index, plan.seed)
        return padded_batch(run.data.training, documents, plan.seq_len)
    if run.tuning is None or run.tuning.replay is None:
        return batch_at(run.data.training, plan, index)
    n_rows = replayed_rows(run.config, plan.batch_size)
    own = replace(plan, batch_size=plan.batch_size - n_rows)
    base = replace(plan, batch_size=n_rows, batching="shuffled")
    return joined(batch_at(run.data.training, own, index), batch_at(run.tuning.replay, base, index))


def is_padded(run: Run) -> bool:
    """Whether each row of a batch has one example, filled up; else they are packed."""
    is_of_pairs = run.tuning is not None and run.tuning.pairs is not None
    return run.model.initial_state is not None or is_of_pairs


def batches_of_epoch(run: Run) -> int:
    """Batches of the first stage after which all text was read."""
    plan, data = batch_plan(run.config, run.tokenizer, 0), run.data.training
    if is_padded(run):
        return -(-len(data.document_offsets) // plan.batch_size)
    own = replace(plan, batch_size=plan.batch_size - replayed_rows(run.config, plan.batch_size))
    return batches_per_epoch(data, own)


def replayed_rows(config: Config, batch_size: int) -> int:
    """Rows of a batch that are text of the base; at least one, where there are any."""
    if not config.sft.replay:
        return 0
    return min(batch_size - 1, max(1, round(config.sft.replay * batch_size)))


def pairs_of_step(run: Run, state: TrainState, micro_step: int) -> Int64Array:
    """The preference pairs that a batch of the coming step compares, by their numbers."""
    stage_index, stage, batch_index, _ = batch_position(run, state)
    assert run.tuning is not None and run.tuning.pairs is not None
    index = batch_index * run.config.train.grad_accum_steps + micro_step
    seed = run.config.train.seed + stage_index
    return documents_of_batch(len(run.tuning.pairs.ids), stage.batch_size, index, seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of every generator that training draws from."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def set_random_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


def check_folder(folder: Path, lock: HeldLock | None) -> None:
    """Raise UserError where the run's folder was moved or deleted: a write would recreate it."""
    if lock is not None and not lock.is_at_path():
        raise UserError(
            f"{folder} was moved or deleted while it was being trained",
            f"Move it back, and resume from its latest checkpoint: "
            f"{command_line('train', run=folder.name)}",
        )


@contextmanager
def noticing_moves(folder: Path, lock: HeldLock | None) -> Iterator[None]:
    """Where a write fails because the run's folder was moved or deleted, say that instead."""
    try:
        yield
    except UserError:
        check_folder(folder, lock)
        raise


def save(run: Run, state: TrainState) -> None:
    """Write a checkpoint of this step and remove those that it supersedes.

    Of several processes the first writes, with the rows that the others send it.
    """
    check_folder(run.folder, run.lock)
    began = time.perf_counter()
    tensors = random_state(run.device)
    for prefix, carried in (
        (_CARRIED, state.carried),
        (_REFERENCE_CARRIED, state.reference_carried),
    ):
        whole = None if carried is None else run.ranks.gather_rows(carried)
        if whole is not None:
            tensors |= {f"{prefix}{name}": tensor for name, tensor in flatten(whole).items()}
    progress = vars(state.progress) | {
        TOKENIZER_FINGERPRINT: run.tokenizer.fingerprint,
        ENVIRONMENT: run.environment,
    }
    if run.replicas is not None:
        progress[PIECES] = run.replicas.pieces
    if run.is_sharded:
        files = whole_files(run.model, run.optimizer, run.ranks) | {"tensors": tensors}
        if run.ranks.is_first:
            write_checkpoint(path_of_step(run.folder, state.progress.step), files, progress)
    elif run.ranks.is_first:
        save_checkpoint(run.folder, run.model, run.optimizer, progress=progress, tensors=tensors)
    if run.ranks.is_first:
        remove_old(run, state)
    state.progress.saving_seconds += time.perf_counter() - began


def remove_old(run: Run, state: TrainState) -> None:
    """Remove the checkpoints that the settings do not keep."""
    remove_superseded(
        run.folder,
        newest=run.config.train.keep_checkpoints,
        every=run.config.train.keep_checkpoint_every,
        best_step=state.progress.best_step,
    )


def restore_checkpoint(run: Run, state: TrainState, saved: Checkpoint) -> None:
    """Restore run and state from this checkpoint."""
    fingerprint = str(saved.progress.get(TOKENIZER_FINGERPRINT))
    check_tokenizer(run.folder, run.tokenizer, fingerprint)
    state.progress = parse_progress(saved)
    state.pieces = saved.progress.get(PIECES)
    if not run.is_sharded:  # else each process takes its part from the first one
        restore(saved, run.model, run.optimizer)
    state.rollbacks = read_rollbacks(run.folder)
    try:
        _restore_tensors(run, state, saved)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{saved.path}/tensors.safetensors is not a training state ({error})",
            f"Remove {saved.path} to resume from the checkpoint before it, or start again: "
            + command_line("train", "clean", run=run.folder.name),
        ) from error


def _restore_tensors(run: Run, state: TrainState, saved: Checkpoint) -> None:
    """The random generators and the carried states."""
    set_random_state(saved.tensors, run.device)
    if run.device.type == "cuda" and "random.cuda" not in saved.tensors:
        # Saved on a CPU: the seed alone would repeat the dropout masks of the first steps.
        torch.cuda.manual_seed(run.config.train.seed + state.progress.step)
    state.carried = _restored(run, state, saved, _CARRIED, run.model)
    state.reference_carried = None
    if run.reference is not None:
        arguments = (run, state, saved, _REFERENCE_CARRIED, run.reference)
        state.reference_carried = _restored(*arguments)


def _restored(
    run: Run, state: TrainState, saved: Checkpoint, prefix: str, model: Model
) -> State | None:
    """The carried state under this prefix, where there is one and the next batch continues it."""
    carried = {
        name.removeprefix(prefix): tensor
        for name, tensor in saved.tensors.items()
        if name.startswith(prefix)
    }
    if not carried:
        return None
    restored = unflatten(carried, like=model.init_state(1))
    if not _has_rows_of_next_batch(run, state, restored):
        return None
    return to_device(restored, run.device)


def _has_rows_of_next_batch(run: Run, state: TrainState, carried: State) -> bool:
    """False where the plan was changed or is complete."""
    if state.progress.step >= run.total_steps:
        return False
    _, stage, _ = stage_at(run.config.train, state.progress.step)
    return all(len(tensor) == stage.batch_size for tensor in tensors_of(carried))
