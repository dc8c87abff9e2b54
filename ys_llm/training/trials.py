"""The runs of a comparison: each configuration with each seed, trained, measured and kept.

What is done is read from the runs' own folders: `held_out.json` of a run belongs to the weights
that are there, so that a comparison that was killed trains and measures only what is missing.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ys_llm.config.schema import Config
from ys_llm.config.sources import Resolved, load_config, to_mapping
from ys_llm.config.strict_reader import flatten, parse_dataclass
from ys_llm.config.yaml_io import dump_inline
from ys_llm.data.document_table import sorted_hashes
from ys_llm.data.records import Document
from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.data.split_cache import load_split
from ys_llm.errors import EXIT_USAGE, UserError, command_line
from ys_llm.evaluation.compare import (
    NO_INFLUENCE,
    code_version,
    hardware,
    setting_differences,
)
from ys_llm.evaluation.learning_curves import Curve
from ys_llm.evaluation.mentions import documents_of
from ys_llm.evaluation.recall import PART_TOKENS
from ys_llm.evaluation.token_losses import losses_of_documents
from ys_llm.evaluation.verdicts import RunResult
from ys_llm.model.costs import flops_per_token, state_bytes
from ys_llm.runs.folder import HELD_OUT, checkpoints, locked, weights_file
from ys_llm.runs.history import METRICS, read_metrics
from ys_llm.runs.model_files import LoadedRun, load_run, read_json
from ys_llm.system.files import sha256_of, write_atomically
from ys_llm.training.compute import previous_compute, process_settings, select_device
from ys_llm.training.loop import TrainSummary, train
from ys_llm.training.resume import latest_valid_checkpoint
from ys_llm.training.setup import data_command, saved_split, with_saved_choices
from ys_llm.training.trial_budget import TRAINING_FLOPS, Budget, with_budget
from ys_llm.training.trial_costs import generation_speed, step_memory

_FEWEST_EVALUATIONS = 3  # that make a curve
_HELD_OUT_BITS = "val_bits_per_byte"  # in the rows of metrics.jsonl with an evaluation
_BINS = 60  # of a curve of the training loss
_DIGITS = 4  # after the point of a part's nats: a part has hundreds


@dataclass(frozen=True)
class Trial:
    """One run of a comparison, and the command that trains it alone."""

    resolved: Resolved
    seed: int
    command: str

    @property
    def run(self) -> str:
        """The name of its folder."""
        return self.resolved.config.run


def plan_trial(
    name: str,
    path: Path,
    settings: Sequence[str],
    *,
    seed: int,
    budget: Budget | None = None,
    rate: float | None = None,
) -> Trial:
    """The configuration at `path`, called `name`, with these settings, this seed and this budget.

    Its run has the configuration's name, to which a budget, and a learning rate and a seed other
    than the configuration's own are appended.
    """
    config = load_config(path, overrides=settings).config
    run, own_rate = config.run, config.train.learning_rate
    rate = own_rate if rate is None else rate
    wanted = with_budget(config, budget) if budget else config
    suffixes = (
        budget.suffix if budget else "",
        "" if rate == own_rate else f"-lr{rate:g}",
        "" if seed == config.train.seed else f"-s{seed}",
    )
    wanted = replace(
        wanted,
        run=run + "".join(suffixes),
        train=replace(wanted.train, seed=seed, learning_rate=rate),
    )
    overrides = [*settings, *_overrides(config, wanted)]
    shown = [one for one in overrides if not one.startswith("run=")]
    flags = {"config": name, "run": None if wanted.run == run else wanted.run, "set": shown}
    resolved = replace(load_config(path, overrides=overrides), flags=flags)
    return Trial(resolved, seed, command_line("train", **flags))


def _overrides(config: Config, wanted: Config) -> list[str]:
    """What `--set` has to say for one configuration to become the other."""
    before, after = flatten(to_mapping(config)), flatten(to_mapping(wanted))
    return [
        f"{name}={dump_inline(value)}" for name, value in after.items() if before[name] != value
    ]


def run_trial(trial: Trial, runs_dir: Path) -> RunResult:
    """The result of a trial: what its run's folder has already, or trained and measured now.

    Raises UserError where the folder has a run of other settings, where nothing is held out, and
    where a signal came that training no longer needed.
    """
    config, folder = trial.resolved.config, runs_dir / trial.run
    check_same_settings(folder, trial)
    done = stored_result(folder)
    if done is not None:
        return done
    summary = train(trial.resolved, runs_dir=runs_dir)
    if summary.signal:
        raise UserError("was stopped when it was trained", exit_code=128 + summary.signal)
    if summary.val_loss is None:
        raise UserError(
            f"{config.run} has no validation text, so there is nothing to compare",
            "Set data.validation_fraction above 0, or give more text",
        )
    return _measure(trial, folder, summary)


def check_same_settings(folder: Path, trial: Trial) -> None:
    """Raise UserError where the run was trained with other settings than the comparison wants."""
    if not checkpoints(folder) or not (folder / "config.yaml").exists():
        return
    wanted = replace(with_saved_choices(folder, trial.resolved.config), run="the comparison")
    saved = replace(load_config(folder / "config.yaml").config, run=str(folder))
    found = setting_differences([saved, wanted], ignoring=NO_INFLUENCE)
    if found:
        raise UserError(
            f"{folder} was trained with other settings: {'; '.join(found.values())}",
            "Train it again with --clean (and without --tune), or give the configuration another "
            "`run:`",
            exit_code=EXIT_USAGE,
        )


def stored_result(folder: Path) -> RunResult | None:
    """What was measured of the weights that the run has now; None where that is to be done."""
    path, weights = folder / HELD_OUT, weights_file(folder)
    if not path.exists() or not weights.exists():
        return None
    try:
        result = parse_dataclass(RunResult, read_json(path), where=str(path))
    except UserError:  # damaged, or of another version
        return None
    return result if result.weights == sha256_of(weights) else None


def _measure(trial: Trial, folder: Path, summary: TrainSummary) -> RunResult:
    """Evaluate the published weights by document, and keep the result with the run."""
    config = load_config(folder / "config.yaml").config
    with locked(folder), process_settings(config.train):
        loaded = load_run(folder, device=select_device(config.train))
        split = load_split(
            config.data,
            record=saved_split(folder),
            command=data_command(trial.resolved),
            scratch=folder / "cache",
            cache_dir=folder / "cache",
        )
        data = load_or_tokenize(
            split.validation, loaded.tokenizer, cache_dir=folder / "cache", label="validation"
        )
        documents, nats = _losses(loaded, data)
        seq_len = config.train.plan[-1].seq_len
        result = RunResult(
            weights=sha256_of(weights_file(folder)),
            tokenizer=sha256_of(folder / "tokenizer.json"),
            held_out=_digest(split.validation),
            training=_digest(split.training),
            commit=code_version(),
            hardware=hardware(config.train.device),
            parameters=summary.parameters,
            state_bytes=state_bytes(loaded.model, batch_size=1, seq_len=seq_len),
            flops_per_token=flops_per_token(loaded.model, seq_len),
            steps=summary.steps,
            tokens=summary.tokens,
            seconds=summary.seconds,
            peak_bytes=_step_memory(folder, config, loaded),
            generated_per_second=generation_speed(loaded.model, first_id=loaded.tokenizer.end_id),
            names_again=summary.val_names_again_loss,
            bytes=data.n_bytes,
            documents=documents,
            nats=nats,
        )
        write_atomically(folder / HELD_OUT, json.dumps(asdict(result)), create_folder=False)
    return result


def _step_memory(folder: Path, config: Config, loaded: LoadedRun) -> int | None:
    """The memory of a training step, computed as the run was."""
    device, saved = select_device(config.train), latest_valid_checkpoint(folder)
    compute = previous_compute(saved.progress["environment"] if saved else {}, device)
    return step_memory(config, compute, vocab_size=loaded.tokenizer.vocab_size)


def _digest(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for hashes in sorted_hashes(documents):
        digest.update(hashes)
    return digest.hexdigest()


def _losses(loaded: LoadedRun, data: TokenShard) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Of each part of each document, the document's number, and nats from its own start on."""
    losses = losses_of_documents(loaded.model, documents_of(data), first_id=loaded.tokenizer.end_id)
    parts = [
        (number, round(float(part.sum()), _DIGITS))
        for number, loss in enumerate(losses)
        for part in np.split(loss, range(PART_TOKENS, len(loss), PART_TOKENS))
    ]
    return tuple(number for number, _ in parts), tuple(nats for _, nats in parts)


def learning_curves(
    runs: Sequence[tuple[str, str, RunResult]], runs_dir: Path
) -> tuple[list[Curve], str]:
    """The curves of runs, each given as (configuration, run, result), and what they measure.

    That is the held-out text where each run was evaluated a few times, and else the training loss.
    """
    rows = [read_metrics(runs_dir / run / METRICS) for _, run, _ in runs]
    evaluated = [[row for row in one if _HELD_OUT_BITS in row] for one in rows]
    is_held_out = min(len(one) for one in evaluated) >= _FEWEST_EVALUATIONS
    column = _HELD_OUT_BITS if is_held_out else "loss"
    curves = [
        _curve(configuration, points, result, column)
        for (configuration, _, result), points in zip(
            runs, evaluated if is_held_out else map(_binned, rows), strict=True
        )
    ]
    held_out, training = "Bits per byte of the held-out text", "Training loss, nats per token"
    return curves, held_out if is_held_out else training


def _binned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most _BINS rows, each the last of its bin, with the mean loss of the bin."""
    bins = np.array_split(np.array(rows, dtype=object), min(_BINS, max(1, len(rows))))
    return [
        {**one[-1], "loss": float(np.mean([row["loss"] for row in one]))}
        for one in bins
        if len(one)
    ]


def _curve(
    configuration: str, rows: Sequence[dict[str, Any]], result: RunResult, measure: str
) -> Curve:
    tokens = tuple(float(row["tokens"]) for row in rows)
    return Curve(
        configuration,
        tokens,
        tuple(float(row["seconds"]) for row in rows),
        tuple(TRAINING_FLOPS * result.flops_per_token * number for number in tokens),
        tuple(float(row[measure]) for row in rows),
    )
