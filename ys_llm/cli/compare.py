"""`ys compare`: train configurations with several seeds, and say which is better, if it is fair."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ys_llm.cli.common import RUNS_DIR
from ys_llm.errors import UsageError, command_line

if TYPE_CHECKING:
    from ys_llm.config.schema import Config
    from ys_llm.evaluation.verdicts import Comparison
    from ys_llm.training.comparison import Entrant, Progress
    from ys_llm.training.task_training import TaskRow
    from ys_llm.training.trial_budget import Budget

EXAMPLES = """\
examples:
  ys compare default llama --seeds 3            a table, a verdict, and runs/compare.html
  ys compare a.yaml b.yaml --seeds 3 --budget seconds=600 --tune
  ys compare a.yaml b.yaml --set train.max_steps=2000 --allow-different parameters
  ys compare a.yaml b.yaml --task mqar --steps 500   a small task instead of text

Fair means: the configurations differ in mixers, widths, depth and learning rate alone, and in
parameters by at most 2 %. What else differs is named and nothing is trained, unless
--allow-different permits it. What is trained already is not trained again: after Ctrl-C or a crash,
type the same command. YS_* in the environment is not read, so that the command of each run
reproduces it.
"""
TASKS = ("mqar", "copying", "selective_copying", "passkey", "parity", "s3", "s5")


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys compare`."""

    configs: list[str]
    set: list[str]
    seeds: int
    budget: str | None
    tune: bool
    allow_different: list[str]
    clean: bool
    out: Path | None
    page: Path | None
    json: bool
    keep: str | None
    task: str | None
    steps: int

    def command(self, **changes: object) -> str:
        """The same comparison again, with these flags changed, for a message to advise."""
        flags: dict[str, object] = {
            "seeds": self.seeds if self.seeds > 1 else None,
            "budget": self.budget,
            "tune": self.tune,
            "set": self.set,
            "allow_different": self.allow_different,
            "out": self.out,
            "page": self.page,
            "json": self.json,
            "keep": self.keep,
        }
        return command_line("compare", *self.configs, **{**flags, **changes})


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys compare`."""
    add = parser.add_argument
    add("configs", metavar="NAME_OR_FILE", nargs="+", help="a shipped configuration or a YAML file")
    add("--set", metavar="A.B=VALUE", action="append", default=[], help="one setting, for all runs")
    seeds = "train each configuration with N seeds, from its own on (default: 1)"
    add("--seeds", metavar="N", type=int, default=1, help=seeds)
    budget = (
        "tokens=N, flops=N, or the steps that fit in seconds=N of training on this machine, timed "
        "before, instead of their own steps"
    )
    add("--budget", metavar="UNIT=N", help=budget)
    tune = "first find each configuration's learning rate: half of it, twice, and on from there"
    add("--tune", action="store_true", help=tune)
    different = "compare although this setting or section differs, or `parameters`; may be repeated"
    add("--allow-different", metavar="WHAT", action="append", default=[], help=different)
    add("--clean", action="store_true", help="remove the runs' models first instead of resuming")
    add("--out", metavar="FILE", type=Path, help="all figures (default: runs/compare.json)")
    page = "tables, verdict and curves as one HTML file (default: runs/compare.html)"
    add("--page", metavar="FILE", type=Path, help=page)
    add("--json", action="store_true", help="print all figures instead of tables")
    keep = "note in runs/experiments.jsonl that this configuration, by its run's name, was chosen"
    add("--keep", metavar="NAME", help=keep)
    task = "train each model on a small task instead of its text, and show accuracy by size"
    add("--task", choices=TASKS, help=task)
    add("--steps", metavar="N", type=int, default=500, help="steps of --task (default: 500)")


def run(arguments: Arguments) -> int:
    """Check, train, check again what only training shows, and print tables and verdicts."""
    from ys_llm.evaluation.compare import check_configs
    from ys_llm.training.trial_budget import REPLACED, parse_budget

    for name in ("steps", "seeds"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} must be at least 1, found {getattr(arguments, name)}")
    if arguments.tune and arguments.clean:
        raise UsageError("--tune uses what is trained; give it configurations with another `run:`")
    budget = parse_budget(arguments.budget) if arguments.budget else None
    entrants = _entrants(arguments)
    configs = [one.config for one in entrants]
    names = [config.run for config in configs]
    if arguments.keep not in (None, *names):
        raise UsageError(f"--keep must be one of {', '.join(names)}, found {arguments.keep}")
    replaced = REPLACED if budget else ()
    check_configs(configs, allowed=arguments.allow_different, replaced=replaced)
    if arguments.task:
        _run_task(configs, arguments)
        return 0
    _compare(entrants, budget, arguments)
    return 0


def _entrants(arguments: Arguments) -> list[Entrant]:
    from ys_llm.config.shipped import find_config
    from ys_llm.config.sources import load_config
    from ys_llm.training.comparison import Entrant

    paths = {name: find_config(name) for name in arguments.configs}
    return [
        Entrant(name, paths[name], load_config(paths[name], overrides=arguments.set).config)
        for name in arguments.configs
    ]


def _run_task(configs: Sequence[Config], arguments: Arguments) -> None:
    from ys_llm.evaluation.compare import markdown

    if arguments.seeds > 1 or arguments.budget or arguments.tune:
        raise UsageError("--task has --steps of one seed, and no --seeds, --budget or --tune")
    rows = [row for config in configs for row in _task_rows(config, arguments)]
    text = _write([asdict(row) for row in rows], arguments)
    print(text if arguments.json else markdown(rows))


def _task_rows(config: Config, arguments: Arguments) -> Iterator[TaskRow]:
    from ys_llm.evaluation.tasks.trained import TASKS
    from ys_llm.training.task_training import compare_on_task

    assert arguments.task is not None
    return compare_on_task(config, TASKS[arguments.task], steps=arguments.steps)


def _write(value: Any, arguments: Arguments) -> str:
    """Write all figures as JSON; returns the text."""
    from ys_llm.system.files import write_atomically

    text = json.dumps(value, indent=2)
    write_atomically(arguments.out or RUNS_DIR / "compare.json", text + "\n")
    return text


def _compare(entrants: Sequence[Entrant], budget: Budget | None, arguments: Arguments) -> None:
    """Train, write the figures and the page after each seed, and print what was shown."""
    from ys_llm.training.comparison import Plan, clean, run_comparison, timed

    plan = Plan(
        tuple(entrants),
        tuple(arguments.set),
        arguments.seeds,
        budget,
        arguments.tune,
        tuple(arguments.allow_different),
        again=arguments.command(),
        more_seeds=arguments.command(seeds=max(3, 2 * arguments.seeds), keep=None),
    )
    plan = timed(plan, RUNS_DIR, anew=arguments.clean)
    if arguments.clean:
        clean(plan, RUNS_DIR)
    for progress in run_comparison(plan, RUNS_DIR):
        text = _write(asdict(progress.comparison), arguments)
        _write_page(progress, arguments)
    _record(progress, arguments)
    print(text if arguments.json else _tables(progress.comparison))


def _write_page(progress: Progress, arguments: Arguments) -> None:
    from ys_llm.evaluation.compare_page import page
    from ys_llm.system.files import write_atomically
    from ys_llm.training.trials import learning_curves

    rows, results = progress.comparison.runs, progress.results
    curves, measure = learning_curves(
        [(row.configuration, row.run, results[row.run]) for row in rows], RUNS_DIR
    )
    text = page(progress.comparison, curves, measure=measure)
    write_atomically(arguments.page or RUNS_DIR / "compare.html", text)


def _record(progress: Progress, arguments: Arguments) -> None:
    """The comparison's line in the ledger."""
    from ys_llm.evaluation.compare import setting_differences, settings_of
    from ys_llm.evaluation.ledger import record

    comparison, entrants = progress.comparison, progress.entrants
    names = setting_differences([one.config for one in entrants], ignoring=["run"])
    entry = {
        "configurations": [
            {
                "name": one.name,
                "run": one.config.run,
                "settings": {name: settings_of(one.config).get(name) for name in names},
            }
            for one in entrants
        ],
        "set": arguments.set,
        "allow_different": arguments.allow_different,
        "seeds": comparison.seeds,
        "budget": comparison.budget,
        "commit": list(dict.fromkeys(row.commit for row in comparison.runs)),
        "hardware": list(dict.fromkeys(row.hardware for row in comparison.runs)),
        "runs": {run: result.weights[:12] for run, result in progress.results.items()},
        "bits_per_byte": {one.run: one.bits_per_byte.mean for one in comparison.configurations},
        "verdicts": [asdict(one) for one in comparison.verdicts],
    }
    record(RUNS_DIR / "experiments.jsonl", entry, keep=arguments.keep)


def _tables(comparison: Comparison) -> str:
    """The means, the verdicts and what they come to."""
    from ys_llm.evaluation.compare import markdown

    rates = {one.learning_rate for one in comparison.configurations}
    tables = [
        markdown(
            comparison.configurations, leaving_out=["learning_rate"] if len(rates) == 1 else []
        ),
        markdown(comparison.verdicts),
        *([markdown(comparison.rates)] if comparison.rates else []),
        "\n".join(comparison.conclusion),
    ]
    return "\n\n".join(tables)
