"""What the first process prepares, and the others take from it: settings, text, model, progress.

The first one reads the corpus and opens the checkpoint; the run's folder is its alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ys_llm.config.schema import Config
from ys_llm.config.sources import from_mapping, to_mapping
from ys_llm.data.split import SplitRecord
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import EXIT_USAGE, UserError, command_line
from ys_llm.model.language_model import Model
from ys_llm.model.lora import add_learned_parts
from ys_llm.model.state import flatten, to_device, unflatten
from ys_llm.runs.checkpoint import Checkpoint, optimizer_tensors
from ys_llm.runs.model_files import weights
from ys_llm.training.compute import Compute, compile_kernels, select_device
from ys_llm.training.memory import release_freed_memory
from ys_llm.training.metrics import log_line
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.ranks.examples import (
    described_tuning,
    received_examples,
    send_examples,
)
from ys_llm.training.ranks.group import Ranks
from ys_llm.training.ranks.join import call_others
from ys_llm.training.ranks.parallel import replicated
from ys_llm.training.ranks.shard import assign, part_like, shard
from ys_llm.training.ranks.text import described_text, opened_text
from ys_llm.training.resume import Rollback, TrainProgress
from ys_llm.training.trainer import (
    Run,
    TrainingData,
    TrainState,
    Tuning,
    random_state,
    restore_checkpoint,
    set_random_state,
)


def lead(run: Run, record: SplitRecord, *, is_timed: bool, is_new: bool) -> None:
    """Tell the others what they need to build the same run.

    `is_timed`: a burst of steps comes next; `is_new`: a first checkpoint is saved before the loop.

    Raises UserError (2) for a run that so many processes cannot share.
    """
    ranks = run.ranks
    if ranks.is_alone:
        return
    check_shareable(run.config, ranks)
    call_others(ranks)
    ranks.tell(
        {
            "config": to_mapping(run.config),
            "tokenizer": run.tokenizer.saved,
            "text": described_text(run.data, record) if run.tuning is None else None,
            "tuning": described_tuning(run),
            "dtype": run.compute.dtype,
            "backends": dict(run.compute.backends),
            "is_timed": is_timed,
            "is_new": is_new,
        }
    )
    send_examples(run)
    ranks.wait()  # until every machine has the text
    log_line(_ranks_line(run))


def follow(ranks: Ranks, runs_dir: Path) -> tuple[Run, Mapping[str, Any]]:
    """The run that the first process leads, with weights of no meaning yet; and what it tells."""
    told: dict[str, Any] = ranks.tell({})
    config, tokenizer = from_mapping(told["config"]), Tokenizer(told["tokenizer"])
    folder = runs_dir / config.run
    data, tuning = _text_of(ranks, config, tokenizer, told, folder / "cache")
    device = select_device(config.train)
    torch.manual_seed(config.train.seed)
    model = Model(config.model, vocab_size=tokenizer.vocab_size, backends=config.train.backend)
    add_learned_parts(model, config.sft, 0 if tuning is None else tuning.new_tokens)
    compute = Compute(device, told["dtype"], told["backends"])
    _use_backends(model.to(device), compute, ranks)
    run = Run(
        config,
        folder,
        tokenizer,
        data,
        model.train(),
        make_optimizer(model, config.train),
        compute,
        tuning=tuning,
        ranks=ranks,
    )
    return run, told


def _text_of(
    ranks: Ranks, config: Config, tokenizer: Tokenizer, told: Mapping[str, Any], cache: Path
) -> tuple[TrainingData, Tuning | None]:
    """What a process that is not the first reads; all wait until every machine has it."""
    if told["tuning"] is None:
        return opened_text(ranks, config, tokenizer, told["text"], cache), None
    data, tuning = received_examples(ranks, told["tuning"])
    ranks.wait()
    return data, tuning


def begin_together(run: Run, state: TrainState) -> Run:
    """The run with what makes its steps common: all have weights and progress of the first."""
    if run.ranks.is_alone:
        return run
    whole: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    if run.ranks.is_first:  # another would keep whole weights beside its parts
        whole, moments = weights(run.model), optimizer_tensors(run.model, run.optimizer)
    if run.config.train.shard:
        shard(run.model, run.ranks, run.device)
        run = replace(run, optimizer=make_optimizer(run.model, run.config.train))
    else:
        run = replace(run, parallel=replicated(run.model, run.ranks))
    run = replace(run, is_connected=True)
    _take(run, state, whole, moments)
    whole.clear()
    release_freed_memory()
    return run


def restore_together(run: Run, state: TrainState, saved: Checkpoint | None) -> None:
    """Restore run and state of all processes from a checkpoint, which the first one has read."""
    if saved is not None:
        restore_checkpoint(run, state, saved)
    if not run.ranks.is_alone:
        given = ({}, {}) if saved is None else (saved.weights, saved.moments)
        _take(run, state, *given)


def check_shareable(config: Config, ranks: Ranks) -> None:
    """Raise UserError (2) where a batch, or what is done with it, cannot be divided."""
    fewest = min(stage.batch_size for stage in config.train.plan)
    if fewest < ranks.size:
        raise UserError(
            f"{ranks.size} processes share batches of {fewest} rows, and each needs at least one",
            f"Start at most {fewest}, or type --set train.batch_size={ranks.size}: it counts the "
            "rows of all processes together.",
            exit_code=EXIT_USAGE,
        )
    if config.train.shard:
        _check_shardable(config)
    if config.train.reference_run:
        raise UserError(
            "train.reference_run selects tokens of a whole batch, and several processes share it",
            "Train in one process: "
            + command_line("train", run=config.run, set=["train.reference_run="]),
            exit_code=EXIT_USAGE,
        )


def _check_shardable(config: Config) -> None:
    """Raise UserError (2) for what FSDP2 is not used with."""
    problems = {
        "train.minutes, whose burst of steps needs a copy": config.train.minutes is not None,
        "train.optimizer: muon, which needs whole matrices": config.train.optimizer == "muon",
        "model.layer_order, which applies a block again": bool(config.model.layer_order),
    }
    if found := [what for what, is_set in problems.items() if is_set]:
        raise UserError(
            f"train.shard does not go with {', or '.join(found)}",
            f"Without shares: {command_line('train', run=config.run, set=['train.shard=false'])}",
            exit_code=EXIT_USAGE,
        )


def _ranks_line(run: Run) -> str:
    ranks, stage = run.ranks, run.config.train.plan[0]
    machines = -(-ranks.size // ranks.local_size)
    where = "this machine" if machines == 1 else f"{machines} machines"
    rows = stage.batch_size // ranks.size
    share = (
        f"{rows} of {stage.batch_size} rows"
        if stage.batch_size % ranks.size == 0
        else (f"{rows} or {rows + 1} of {stage.batch_size} rows")
    )
    weights = ", and a share of the weights" if run.config.train.shard else ""
    return f"processes    {ranks.size} on {where}, each with {share}{weights}"


def _use_backends(model: Model, compute: Compute, ranks: Ranks) -> None:
    """Take the backends of the first process; UserError where one cannot run here."""
    if compute.device.type == "cpu":
        compile_kernels()
    selected = model.select_backends(
        batch_size=1,
        precision=compute.dtype or "fp32",
        previous=compute.backends,
        timed=False,
    )
    for mixer, (backend, reason) in selected.items():
        if backend != compute.backends[mixer]:
            raise UserError(
                f"{mixer} runs as {compute.backends[mixer]} in process 0, and as {backend} here "
                f"({reason})",
                f"Type --set train.backend='{{{mixer}: {backend}}}' on every machine, or see what "
                f"this one lacks: {command_line('doctor')}",
            )


def _take(
    run: Run, state: TrainState, whole: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> None:
    """Give all processes what the first has: weights, moments, progress, its rows of the state.

    The first one has the `whole` weights and `moments`, by name; those of the others are ignored.
    """
    ranks = run.ranks
    with torch.no_grad():
        for name, own in weights(run.model).items():
            given = whole[name].detach() if ranks.is_first else torch.empty(own.shape)
            ranks.share(given)
            if run.is_sharded:
                assign(own, given)
            else:
                own.copy_(given)
    _take_moments(run, moments)
    told: dict[str, Any] = ranks.tell(
        {"progress": vars(state.progress), "rollbacks": [asdict(r) for r in state.rollbacks]}
    )
    if not ranks.is_first:
        state.progress = TrainProgress(**told["progress"])
        state.rollbacks = [Rollback(**rollback) for rollback in told["rollbacks"]]
    set_random_state(ranks.share_tensors(random_state(run.device)), run.device)
    if ranks.tell(state.carried is not None):
        carried = ranks.share_tensors({} if state.carried is None else flatten(state.carried))
        whole = unflatten(carried, like=run.model.init_state(1))
        state.carried = to_device(ranks.own_rows(whole), run.device)
    else:
        state.carried = None


def _take_moments(run: Run, whole: Mapping[str, Tensor]) -> None:
    """The optimizer's moments; a parameter without a gradient so far has none."""
    ranks = run.ranks
    shapes = ranks.tell({name: list(moment.shape) for name, moment in whole.items()})
    parameters = dict(run.model.named_parameters())
    run.optimizer.state.clear()
    for full_name, shape in shapes.items():
        key, _, name = full_name.partition(".")
        given = whole[full_name] if ranks.is_first else torch.empty(shape)
        ranks.share(given)
        parameter = parameters[name]
        own = part_like(parameter, given) if shape and run.is_sharded else given
        run.optimizer.state[parameter][key] = own.to(parameter.device)
