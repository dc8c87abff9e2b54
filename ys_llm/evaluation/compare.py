"""When a comparison of configurations is fair, and the table of its results.

Fair means: no setting differs but those of the mixers (which ones, their options, the convolution
before them, their backends), of the widths and the depth, and the learning rate that a mixer needs;
and parameter counts are within 2 %. Whatever else differs is named, and refused unless the user
allows it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ys_llm import __version__
from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.sizes import AUTO
from ys_llm.config.sources import to_mapping
from ys_llm.config.strict_reader import flatten
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.evaluation.verdicts import RunResult, Spread
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.system.machine import inspect_machine
from ys_llm.system.sizes import human_size

# Settings, or sections of them, that a comparison may compare.
COMPARED = (
    "model.layers",
    "model.options",
    "model.convolution",
    "model.d_model",
    "model.d_mlp",
    "model.n_layers",
    "model.size",  # a name for the widths; the batch size that it also sets is compared
    "train.learning_rate",
    "train.backend",
)
# Settings that change no weight and no measurement.
NO_INFLUENCE = (
    "run",
    "generate",
    "train.checkpoint_interval",
    "train.keep_checkpoints",
    "train.keep_checkpoint_every",
    "train.sample_interval",
    "train.sample_prompt",
    "train.memory_limit_gb",
)
# Without the same held-out text, no document of one run has a partner in the other.
NEVER_DIFFERENT = ("data.path", "data.format", "data.validation_fraction", "held-out text")
PARAMETERS, TOKENIZER = "parameters", "tokenizer"
# Two architectures rarely have equal counts. With loss ~ parameters^-0.076 (Kaplan et al. 2020) 2 %
# of the parameters is worth 0.15 % of the loss, less than another seed changes.
PARAMETER_TOLERANCE = 0.02


def check_configs(
    configs: Sequence[Config], *, allowed: Collection[str], replaced: Collection[str] = ()
) -> None:
    """Raise UserError (2) unless the configurations make a fair comparison, before any training.

    `replaced` are settings that the comparison sets itself.
    """
    _check_allowed(allowed)
    _check_names(configs)
    _check_not_automatic(configs)
    found = setting_differences(configs, ignoring=(*COMPARED, *NO_INFLUENCE, *replaced))
    counts = {config.run: count_parameters(config) for config in configs}
    sizes = parameter_differences(counts)
    if sizes:
        hints = [hint for config in configs[1:] if (hint := _size_hint(config, configs[0]))]
        sizes[PARAMETERS] += "".join(f"; {hint}" for hint in hints)
    refuse(found | sizes, allowed=allowed)


def _size_hint(config: Config, first: Config) -> str:
    """The width of the MLPs that gives as many parameters as the first configuration has."""
    width, model = fitting_width(config, count_parameters(first)), config.model
    if width in (None, model.d_mlp):
        return ""
    return f"model.d_mlp: {width} in {config.run} would make it as large as {first.run}"


def fitting_width(config: Config, parameters: int) -> int | None:
    """The `model.d_mlp` with which the model has about so many parameters; None if there is none.

    Parameters are linear in it.
    """
    model = config.model
    wider = replace(config, model=replace(model, d_mlp=model.d_mlp + 1))
    count = count_parameters(config)
    for_one = count_parameters(wider) - count
    if not model.d_mlp or not for_one:
        return None
    width = model.d_mlp + round((parameters - count) / for_one)
    return width if width > 0 else None


def _check_allowed(allowed: Collection[str]) -> None:
    known = [*settings_of(Config()), PARAMETERS]
    for word in allowed:
        if not any(covers(word, name) for name in known):
            raise UserError(
                f"--allow-different {word}: there is no such setting",
                f"Give a setting such as train.seed, a section such as data, or {PARAMETERS}",
                exit_code=EXIT_USAGE,
            )


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


def _check_not_automatic(configs: Sequence[Config]) -> None:
    """What a run would choose by its own measurement differs from run to run."""
    for config in configs:
        for name, fix in (("model.size", "small"), ("train.batch_size", "32")):
            if settings_of(config)[name] == AUTO:
                raise UserError(
                    f"{name} is {AUTO} in {config.run}, which may come out different for each run",
                    f"Type --set {name}={fix}, for example",
                    exit_code=EXIT_USAGE,
                )


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting under its dotted name."""
    return flatten(to_mapping(config))


def covers(name: str, setting: str) -> bool:
    """Whether `name` is the setting itself or a section that holds it."""
    return setting == name or setting.startswith(f"{name}.")


def setting_differences(
    configs: Sequence[Config], *, ignoring: Collection[str] = ()
) -> dict[str, str]:
    """Setting -> what differs in it, with the value of each run."""
    settings = {config.run: settings_of(config) for config in configs}
    names = dict.fromkeys(name for one in settings.values() for name in one)
    found: dict[str, str] = {}
    for name in names:
        values = {run: one.get(name) for run, one in settings.items()}
        differs = any(value != values[configs[0].run] for value in values.values())
        if differs and not any(covers(other, name) for other in ignoring):
            found[name] = f"{name} is {_by_run(values)}"
    return found


def parameter_differences(counts: Mapping[str, int]) -> dict[str, str]:
    """Like `setting_differences`, for parameter counts by run."""
    if max(counts.values()) <= min(counts.values()) * (1 + PARAMETER_TOLERANCE):
        return {}
    numbers = {run: f"{count:,}" for run, count in counts.items()}
    return {
        PARAMETERS: f"{PARAMETERS}: more than {PARAMETER_TOLERANCE:.0%} apart, {_by_run(numbers)}"
    }


def check_results(results: Mapping[str, RunResult], *, allowed: Collection[str]) -> None:
    """Raise UserError unless the runs, by name, had the same text, tokens and sizes in fact."""
    counts = {run: result.parameters for run, result in results.items()}
    refuse(
        _hash_differences("held-out text", {run: one.held_out for run, one in results.items()})
        | _hash_differences("data", {run: one.training for run, one in results.items()})
        | _hash_differences(TOKENIZER, {run: one.tokenizer for run, one in results.items()})
        | parameter_differences(counts),
        allowed=allowed,
    )


def _hash_differences(name: str, hashes: Mapping[str, str]) -> dict[str, str]:
    """Like `setting_differences`, for what runs have used, known by a hash."""
    if len(set(hashes.values())) == 1:
        return {}
    shown = {run: digest[:12] for run, digest in hashes.items()}
    return {name: f"{name}: not the same for all runs, {_by_run(shown)}"}


def _by_run(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} in {run}" for run, value in values.items())


def refuse(differences: Mapping[str, str], *, allowed: Collection[str]) -> None:
    """Raise UserError that names every difference that is not allowed."""
    unfair = {
        name: text
        for name, text in differences.items()
        if name in NEVER_DIFFERENT or not any(covers(word, name) for word in allowed)
    }
    if not unfair:
        return
    flags = [f"--allow-different {name}" for name in unfair if name not in NEVER_DIFFERENT]
    fix = "Make them equal (--set NAME=VALUE changes all of them)"
    if len(flags) == len(unfair):
        fix += f", or type {' '.join(flags)}"
    raise UserError(
        "the runs cannot be compared fairly:\n  " + "\n  ".join(unfair.values()),
        fix,
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


def markdown(rows: Sequence[Any], *, leaving_out: Collection[str] = ()) -> str:
    """Lay out rows, dataclasses of one kind, as a Markdown table."""
    names = [field.name for field in fields(rows[0]) if field.name not in leaving_out]
    heads = [name.replace("_per_", "/").replace("_", " ") for name in names]
    cells = [[cell(name, getattr(row, name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(names), *cells])


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


_FORMATS: Mapping[str, Callable[[Any], str]] = {
    "parameters": "{:,}".format,
    "state_bytes": "{:,}".format,
    "flops_per_token": "{:,}".format,
    "peak_memory": lambda size: human_size(round(size)),
    "generated_per_second": "{:,.0f}".format,
    "tokens": "{:,.0f}".format,
    "seconds": "{:,.1f}".format,
    "tokens_per_second": "{:,.0f}".format,
    "bits_per_byte": "{:.4f}".format,
    "names_again": "{:.3f}".format,
    "difference": "{:+.4f}".format,
    "p_over_documents": _p_value,
    "p_over_seeds": _p_value,
    "seed_deviation": "{:.4f}".format,
    "trained": ("no", "yes").__getitem__,
    "chosen": ("no", "yes").__getitem__,
    "learning_rate": "{:g}".format,
    "accuracy": "{:.3f}".format,
    "standard_error": "{:.3f}".format,
    "chance": "{:.3f}".format,
}


def cell(name: str, value: Any) -> str:
    """The value of a column as text; a mean stands before its deviation over seeds."""
    if value is None:
        return "-"
    form = _FORMATS.get(name, str)
    if isinstance(value, Spread):
        deviation = "" if value.deviation is None else f" ± {form(value.deviation)}"
        return f"{form(value.mean)}{deviation}"
    return form(value)
