"""Train several configurations one after another and show them side by side, if that is fair.

python -m ys_llm.evaluation.compare configs/a.yaml configs/b.yaml [--set a.b=c]
        [--allow-different WHAT]

Fair means: same data, split, tokenizer, evaluation, seed and hardware settings, and parameter
counts within 2 %. What differs is named, and nothing is trained, unless that difference is the
point (--allow-different). The environment's YS_* settings are not read, so that the command in
each row makes the row again.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ys_llm.config.schema import Config
from ys_llm.config.sources import Resolved, load_config, to_mapping
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.system.files import write_atomically

SAME: Mapping[str, tuple[str, ...]] = {
    "data": ("data.path", "data.reset_at_document"),
    "split": ("data.validation_fraction",),
    "tokenizer": ("tokenizer.kind", "tokenizer.vocab_size"),
    "evaluation": ("train.eval_tokens",),
    "seed": ("train.seed",),
    "hardware": ("train.device", "train.dtype", "train.threads"),
}
PARAMETERS = "parameters"
# Two kinds of model rarely come out equal. With loss ~ parameters^-0.076 (Kaplan et al. 2020) 2 %
# of the parameters is worth 0.15 % of the loss, less than another seed changes.
PARAMETER_TOLERANCE = 0.02


@dataclass(frozen=True)
class Row:
    """One run of the comparison, with all that is needed to make it again."""

    run: str
    parameters: int
    tokens: int
    tokens_per_second: float
    loss: float
    bits_per_byte: float
    commit: str
    seed: int
    hardware: str
    command: str


def setting_differences(configs: Sequence[Config]) -> dict[str, str]:
    """Aspect -> what differs in it, with the value of each run."""
    found: dict[str, str] = {}
    for aspect, names in SAME.items():
        for name in names:
            section, option = name.split(".")
            values = {config.run: to_mapping(config)[section][option] for config in configs}
            if len(set(values.values())) > 1:
                found[aspect] = f"{aspect}: {name} is " + shown(values)
    return found


def parameter_differences(counts: Mapping[str, int]) -> dict[str, str]:
    """Like `setting_differences`, for parameter counts by run."""
    if max(counts.values()) <= min(counts.values()) * (1 + PARAMETER_TOLERANCE):
        return {}
    numbers = {run: f"{count:,}" for run, count in counts.items()}
    return {PARAMETERS: f"{PARAMETERS}: over {PARAMETER_TOLERANCE:.0%} apart, {shown(numbers)}"}


def shown(values: Mapping[str, Any]) -> str:
    """Each run's value, in one line."""
    return ", ".join(f"{value} in {run}" for run, value in values.items())


def refuse(differences: Mapping[str, str], *, allowed: Collection[str]) -> None:
    """Raise UserError that names every difference that is not allowed."""
    unfair = {aspect: text for aspect, text in differences.items() if aspect not in allowed}
    if unfair:
        flags = " ".join(f"--allow-different {aspect}" for aspect in unfair)
        raise UserError(
            "the runs are not like for like:\n  " + "\n  ".join(unfair.values()),
            f"Make them equal (--set NAME=VALUE reaches all of them), or type {flags}",
            exit_code=EXIT_USAGE,
        )


def check_names(configs: Sequence[Config]) -> None:
    """Raise UserError where two configurations would train in one folder."""
    names = [config.run for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) < 2:
        raise UserError(
            f"the run {twice[0]} is there twice" if twice else "one run is no comparison",
            "Give two or more files, each with a `run:` of its own",
            exit_code=EXIT_USAGE,
        )


def count_parameters(config: Config) -> int:
    """Count what the model would have with all of its vocabulary; no memory is taken for it."""
    import torch

    from ys_llm.model.costs import parameter_count
    from ys_llm.model.language_model import Model

    with torch.device("meta"):
        return parameter_count(Model(config.model, vocab_size=config.tokenizer.vocab_size))


def commit() -> str:
    """Name the commit of this checkout, `-dirty` where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def hardware(device: str) -> str:
    """Name the processor that trains: the GPU, or the CPU with its number of cores."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text(encoding="utf-8").splitlines() if processors.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def train_row(resolved: Resolved, *, command: str, runs_dir: Path, clean: bool) -> Row:
    """Train one configuration, or go on with its run, and measure it."""
    from ys_llm.runs.folder import list_removals, remove
    from ys_llm.training.loop import train

    config = resolved.config
    if clean:
        run = runs_dir / config.run
        remove(list_removals(run, "model", corpus=Path(config.data.path)))
    summary = train(resolved, runs_dir=runs_dir)
    if summary.val_loss is None or summary.val_bits_per_byte is None:
        raise UserError(
            f"{config.run} has no validation text, so there is nothing to compare",
            "Set data.validation_fraction above 0, or give more text",
        )
    return Row(
        run=config.run,
        parameters=summary.parameters,
        tokens=summary.tokens,
        tokens_per_second=summary.tokens_per_second,
        loss=summary.val_loss,
        bits_per_byte=summary.val_bits_per_byte,
        commit=commit(),
        seed=config.train.seed,
        hardware=hardware(config.train.device),
        command=command,
    )


def tokenizer_differences(runs: Sequence[str], *, runs_dir: Path) -> dict[str, str]:
    """Compare the tokenizers that were really used; a run folder may hold an older one."""
    hashes = {
        run: hashlib.sha256((runs_dir / run / "tokenizer.json").read_bytes()).hexdigest()[:12]
        for run in runs
    }
    if len(set(hashes.values())) == 1:
        return {}
    return {"tokenizer": "tokenizer: the files tokenizer.json differ, " + shown(hashes)}


def markdown(rows: Sequence[Row]) -> str:
    """Lay out the rows as a Markdown table."""
    formats: dict[str, Callable[[Any], str]] = {
        "parameters": "{:,}".format,
        "tokens": "{:,}".format,
        "tokens_per_second": "{:,.0f}".format,
        "loss": "{:.4f}".format,
        "bits_per_byte": "{:.4f}".format,
        "command": "`{}`".format,
    }
    names = [field.name for field in fields(Row)]
    heads = [name.replace("_per_", "/").replace("_", " ") for name in names]
    cells = [[formats.get(name, str)(getattr(row, name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(names), *cells])


def compare(arguments: argparse.Namespace) -> list[Row]:
    """Check that the comparison is fair, train each run, and check what only training tells."""
    loaded = {path: load_config(path, overrides=arguments.set) for path in arguments.configs}
    configs = [resolved.config for resolved in loaded.values()]
    check_names(configs)
    counts = {config.run: count_parameters(config) for config in configs}
    allowed = arguments.allow_different
    refuse(setting_differences(configs) | parameter_differences(counts), allowed=allowed)
    settings = [word for text in arguments.set for word in ("--set", text)]
    rows = [
        train_row(
            resolved,
            command=shlex.join(["ys", "train", "--config", str(path), *settings]),
            runs_dir=arguments.runs_dir,
            clean=arguments.clean,
        )
        for path, resolved in loaded.items()
    ]
    real = parameter_differences({row.run: row.parameters for row in rows})
    used = tokenizer_differences([row.run for row in rows], runs_dir=arguments.runs_dir)
    refuse(real | used, allowed=allowed)
    return rows


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    lines = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(prog="compare.py", description=lines[0], epilog=lines[-1])
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="a YAML file a run")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="for every run")
    parser.add_argument(
        "--allow-different",
        action="append",
        default=[],
        choices=[*SAME, PARAMETERS],
        help="compare although this differs; may be given more than once",
    )
    parser.add_argument("--clean", action="store_true", help="train anew, do not go on with a run")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="default: runs")
    parser.add_argument("--out", type=Path, help="default: compare.json in the folder of runs")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Run the comparison; the exit code is that of `ys`."""
    arguments = read_arguments(words)
    try:
        rows = compare(arguments)
        out = arguments.out or arguments.runs_dir / "compare.json"
        write_atomically(out, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    except UserError as error:
        for line in str(error).splitlines():
            print(f"compare.py: {line}", file=sys.stderr)
        return error.exit_code
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
