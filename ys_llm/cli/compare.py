"""`ys compare`: train configurations one after another and tabulate them, if that is fair."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ys_llm.cli.common import RUNS_DIR
from ys_llm.errors import UsageError, UserError, command_line

if TYPE_CHECKING:
    from ys_llm.config.sources import Resolved
    from ys_llm.evaluation.compare import Row
    from ys_llm.training.task_training import TaskRow

EXAMPLES = """\
examples:
  ys compare configs/a.yaml configs/b.yaml
  ys compare a.yaml b.yaml --set train.max_steps=2000 --allow-different parameters
  ys compare a.yaml b.yaml --task recall --steps 500   small tasks of memory instead of text

Fair means: same data, split, tokenizer, evaluation, seed and hardware settings, and parameter
counts within 2 %. What differs is named and nothing is trained, unless --allow-different permits
it. A run that exists is resumed. YS_* in the environment is not read, so that the command in each
row reproduces that row.
"""
TASKS = ("recall", "copying", "selective_copying")
DIFFERENCES = ("data", "split", "tokenizer", "evaluation", "seed", "hardware", "parameters")


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys compare`."""

    configs: list[str]
    set: list[str]
    allow_different: list[str]
    clean: bool
    out: Path | None
    task: Literal["recall", "copying", "selective_copying"] | None
    steps: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys compare`."""
    add = parser.add_argument
    add("configs", metavar="NAME_OR_FILE", nargs="+", help="a shipped configuration or a YAML file")
    add("--set", metavar="A.B=VALUE", action="append", default=[], help="one setting, for all runs")
    add(
        "--allow-different",
        metavar="WHAT",
        action="append",
        default=[],
        choices=DIFFERENCES,
        help=f"compare although this differs ({', '.join(DIFFERENCES)}); may be repeated",
    )
    add("--clean", action="store_true", help="remove the runs' models first instead of resuming")
    add("--out", metavar="FILE", type=Path, help="the rows as JSON (default: runs/compare.json)")
    task = "train each model on a task of memory instead of its text, and show accuracy by size"
    add("--task", choices=TASKS, help=task)
    add("--steps", metavar="N", type=int, default=500, help="steps of --task (default: 500)")


def run(arguments: Arguments) -> int:
    """Check, train, check again what only training shows, and print the table."""
    from ys_llm.config.shipped import find_config
    from ys_llm.config.sources import load_config
    from ys_llm.evaluation.compare import (
        check_configs,
        parameter_differences,
        refuse,
        tokenizer_differences,
    )

    if arguments.steps < 1:
        raise UsageError(f"--steps must be at least 1, found {arguments.steps}")
    loaded = {
        name: load_config(find_config(name), overrides=arguments.set) for name in arguments.configs
    }
    check_configs([one.config for one in loaded.values()], allowed=arguments.allow_different)
    if arguments.task:
        _show([row for one in loaded.values() for row in _task(one, arguments)], arguments)
        return 0
    rows = []
    for name, resolved in loaded.items():
        command = command_line("train", config=name, set=arguments.set)
        rows.append(_train(resolved, command, clean=arguments.clean))
    trained = parameter_differences({row.run: row.parameters for row in rows})
    used = tokenizer_differences([RUNS_DIR / row.run for row in rows])
    refuse(trained | used, allowed=arguments.allow_different)
    _show(rows, arguments)
    return 0


def _show(rows: Sequence[Any], arguments: Arguments) -> None:
    """Write the rows, and print them as a table."""
    from ys_llm.evaluation.compare import markdown
    from ys_llm.system.files import write_atomically

    table = json.dumps([asdict(row) for row in rows], indent=2) + "\n"
    write_atomically(arguments.out or RUNS_DIR / "compare.json", table)
    print(markdown(rows))


def _task(resolved: Resolved, arguments: Arguments) -> Iterator[TaskRow]:
    from ys_llm.evaluation.tasks.synthetic import TASKS
    from ys_llm.training.task_training import compare_on_task

    assert arguments.task is not None
    return compare_on_task(resolved.config, TASKS[arguments.task], steps=arguments.steps)


def _train(resolved: Resolved, command: str, *, clean: bool) -> Row:
    """Train one configuration, or resume its run; returns its row of the table."""
    from ys_llm.evaluation.compare import Row, code_version, describe_layers, hardware
    from ys_llm.runs.folder import list_removals, remove
    from ys_llm.training.loop import train

    config = resolved.config
    if clean:
        remove(list_removals(RUNS_DIR / config.run, "model", corpus=Path(config.data.path)))
    summary = train(resolved, runs_dir=RUNS_DIR)
    if summary.val_loss is None or summary.val_bits_per_byte is None:
        raise UserError(
            f"{config.run} has no validation text, so there is nothing to compare",
            "Set data.validation_fraction above 0, or give more text",
        )
    return Row(
        run=config.run,
        layers=describe_layers(config.model),
        parameters=summary.parameters,
        tokens=summary.tokens,
        tokens_per_second=summary.tokens_per_second,
        loss=summary.val_loss,
        bits_per_byte=summary.val_bits_per_byte,
        commit=code_version(),
        seed=config.train.seed,
        hardware=hardware(config.train.device),
        command=command,
    )
