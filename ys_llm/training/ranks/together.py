"""What the first process prepares, and the others take from it: settings, text, model, progress.

The first one reads the corpus and opens the checkpoint; the run's folder is its alone.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import from_mapping, to_mapping
from ys_llm.data.split import SplitRecord
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import EXIT_USAGE, UserError, command_line
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten, to_device, unflatten
from ys_llm.runs.checkpoint import Checkpoint
from ys_llm.runs.model_files import weights
from ys_llm.training.compute import Compute, compile_kernels, select_device
from ys_llm.training.metrics import log_line
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.ranks.group import Ranks
from ys_llm.training.ranks.join import call_others
from ys_llm.training.ranks.parallel import replicated
from ys_llm.training.ranks.text import described_text, opened_text
from ys_llm.training.resume import Rollback, TrainProgress
from ys_llm.training.trainer import (
    Run,
    TrainState,
    random_state,
    restore_checkpoint,
    set_random_state,
)


def lead(run: Run, record: SplitRecord, *, is_timed: bool) -> None:
    """Tell the others what they need to build the same run; `is_timed`: a burst comes next.

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
            "text": described_text(run.data, record),
            "dtype": run.compute.dtype,
            "backends": dict(run.compute.backends),
            "is_timed": is_timed,
        }
    )
    ranks.wait()  # until every machine has the text
    log_line(_ranks_line(run))


def follow(ranks: Ranks, runs_dir: Path) -> tuple[Run, bool]:
    """The run that the first process leads, with weights of no meaning yet; and `is_timed`."""
    told: dict[str, Any] = ranks.tell({})
    config, tokenizer = from_mapping(told["config"]), Tokenizer(told["tokenizer"])
    folder = runs_dir / config.run
    data = opened_text(ranks, config, tokenizer, told["text"], folder / "cache")
    device = select_device(config.train)
    torch.manual_seed(config.train.seed)
    model = Model(config.model, vocab_size=tokenizer.vocab_size, backends=config.train.backend)
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
        ranks=ranks,
    )
    return run, told["is_timed"]


def begin_together(run: Run, state: TrainState) -> Run:
    """The run with what makes its steps common: all have weights and progress of the first."""
    if run.ranks.is_alone:
        return run
    run = replace(run, parallel=replicated(run.model, run.ranks))
    _take(run, state)
    return run


def restore_together(run: Run, state: TrainState, saved: Checkpoint | None) -> None:
    """Restore run and state of all processes from a checkpoint, which the first one has read."""
    if saved is not None:
        restore_checkpoint(run, state, saved)
    if not run.ranks.is_alone:
        _take(run, state)


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
    if config.train.reference_run:
        raise UserError(
            "train.reference_run selects tokens of a whole batch, and several processes share it",
            "Train in one process: "
            + command_line("train", run=config.run, set=["train.reference_run="]),
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
    return f"processes    {ranks.size} on {where}, each with {share}"


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


def _take(run: Run, state: TrainState) -> None:
    """Give all processes what the first has: weights, moments, progress, its rows of the state."""
    ranks = run.ranks
    with torch.no_grad():
        for tensor in weights(run.model).values():
            ranks.share(tensor)
    _take_moments(run)
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


def _take_moments(run: Run) -> None:
    """The optimizer's moments; a parameter without a gradient so far has none."""
    ranks, moments = run.ranks, run.optimizer.state
    parameters = dict(run.model.named_parameters())
    kept = {
        name: {key: list(moment.shape) for key, moment in moments[parameter].items()}
        for name, parameter in parameters.items()
        if parameter in moments
    }
    kept = ranks.tell(kept)
    if not ranks.is_first:
        moments.clear()
    for name, shapes in kept.items():
        for key, shape in shapes.items():
            parameter = parameters[name]
            if not ranks.is_first:
                moments[parameter][key] = torch.zeros(shape, device=parameter.device)
            ranks.share(moments[parameter][key])
