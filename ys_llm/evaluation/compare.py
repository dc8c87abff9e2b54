"""When a comparison of runs is fair, and the table of its results.

Fair means: same data, split, tokenizer, evaluation, seed and hardware settings, and parameter
counts within 2 %. Whatever differs is named, and refused unless the user allows it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ys_llm import __version__
from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.sources import to_mapping
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.system.machine import inspect_machine

SAME: Mapping[str, tuple[str, ...]] = {
    "data": ("data.path", "data.reset_at_document"),
    "split": ("data.validation_fraction",),
    "tokenizer": ("tokenizer.kind", "tokenizer.vocab_size"),
    "evaluation": ("train.eval_tokens",),
    "seed": ("train.seed",),
    "hardware": ("train.device", "train.dtype", "train.threads"),
}
PARAMETERS = "parameters"
# Two architectures rarely have equal counts. With loss ~ parameters^-0.076 (Kaplan et al. 2020) 2 %
# of the parameters is worth 0.15 % of the loss, less than another seed changes.
PARAMETER_TOLERANCE = 0.02


@dataclass(frozen=True)
class Row:
    """One run of the comparison, with all that is needed to reproduce it."""

    run: str
    layers: str
    parameters: int
    tokens: int
    tokens_per_second: float
    loss: float
    bits_per_byte: float
    commit: str
    seed: int
    hardware: str
    command: str


def check_configs(configs: Sequence[Config], *, allowed: Collection[str]) -> None:
    """Raise UserError (2) unless the configurations make a fair comparison, before any training."""
    _check_names(configs)
    counts = {config.run: count_parameters(config) for config in configs}
    refuse(setting_differences(configs) | parameter_differences(counts), allowed=allowed)


def _check_names(configs: Sequence[Config]) -> None:
    names = [config.run for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) < 2:
        raise UserError(
            f"two configurations have the run name {twice[0]}"
            if twice
            else "a comparison needs at least two configurations",
            "Give two or more files, each with a `run:` of its own",
            exit_code=EXIT_USAGE,
        )


def setting_differences(configs: Sequence[Config]) -> dict[str, str]:
    """Aspect -> what differs in it, with the value of each run."""
    found: dict[str, str] = {}
    for aspect, names in SAME.items():
        for name in names:
            section, option = name.split(".")
            values = {config.run: to_mapping(config)[section][option] for config in configs}
            if len(set(values.values())) > 1:
                found[aspect] = f"{aspect}: {name} is {_by_run(values)}"
    return found


def parameter_differences(counts: Mapping[str, int]) -> dict[str, str]:
    """Like `setting_differences`, for parameter counts by run."""
    if max(counts.values()) <= min(counts.values()) * (1 + PARAMETER_TOLERANCE):
        return {}
    numbers = {run: f"{count:,}" for run, count in counts.items()}
    return {
        PARAMETERS: f"{PARAMETERS}: more than {PARAMETER_TOLERANCE:.0%} apart, {_by_run(numbers)}"
    }


def tokenizer_differences(runs: Sequence[Path]) -> dict[str, str]:
    """Compare the tokenizers that were used; a run folder may hold an older one."""
    hashes = {
        run.name: hashlib.sha256((run / "tokenizer.json").read_bytes()).hexdigest()[:12]
        for run in runs
    }
    if len(set(hashes.values())) == 1:
        return {}
    return {"tokenizer": f"tokenizer: the files tokenizer.json differ, {_by_run(hashes)}"}


def _by_run(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} in {run}" for run, value in values.items())


def refuse(differences: Mapping[str, str], *, allowed: Collection[str]) -> None:
    """Raise UserError that names every difference that is not allowed."""
    unfair = {aspect: text for aspect, text in differences.items() if aspect not in allowed}
    if unfair:
        flags = " ".join(f"--allow-different {aspect}" for aspect in unfair)
        raise UserError(
            "the runs cannot be compared fairly:\n  " + "\n  ".join(unfair.values()),
            f"Make them equal (--set NAME=VALUE changes all of them), or type {flags}",
            exit_code=EXIT_USAGE,
        )


def count_parameters(config: Config) -> int:
    """Count the parameters with the configured vocabulary, without allocating them."""
    with torch.device("meta"):
        return parameter_count(Model(config.model, vocab_size=config.tokenizer.vocab_size))


def describe_layers(config: ModelConfig) -> str:
    """The mixers, as often as each occurs: `4 NAME, 2 OTHER`."""
    names = config.mixer_names
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def code_version() -> str:
    """The commit of this checkout, `-dirty` where files differ from it; else the version of ys."""
    here = Path(__file__).parent
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    described = _git(here, "describe", "--always", "--dirty") if tracked else ""
    return described or f"ys {__version__}"


def _git(folder: Path, *words: str) -> str:
    try:
        result = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:  # there is no git
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def hardware(device: str) -> str:
    """Name the processor that trains: the GPU, or the CPU with its number of cores."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{inspect_machine().processor}, {os.cpu_count()} cores"


def markdown(rows: Sequence[Any]) -> str:
    """Lay out rows, dataclasses of one kind, as a Markdown table."""
    formats: dict[str, Callable[[Any], str]] = {
        "parameters": "{:,}".format,
        "tokens": "{:,}".format,
        "tokens_per_second": "{:,.0f}".format,
        "loss": "{:.4f}".format,
        "bits_per_byte": "{:.4f}".format,
        "accuracy": "{:.3f}".format,
        "standard_error": "{:.3f}".format,
        "chance": "{:.3f}".format,
        "command": "`{}`".format,
    }
    names = [field.name for field in fields(rows[0])]
    heads = [name.replace("_per_", "/").replace("_", " ") for name in names]
    cells = [[formats.get(name, str)(getattr(row, name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(names), *cells])
