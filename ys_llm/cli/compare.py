"""`ys compare`: train configurations with several seeds, and say which is better, if it is fair."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ys_llm.cli.common import RUNS_DIR
from ys_llm.errors import (
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    UsageError,
    UserError,
    command_line,
)

if TYPE_CHECKING:
    from ys_llm.config.schema import Config
    from ys_llm.evaluation.verdicts import Comparison, RunResult
    from ys_llm.training.rate_search import RateSearch
    from ys_llm.training.task_training import TaskRow
    from ys_llm.training.trial_budget import Budget
    from ys_llm.training.trials import Trial

EXAMPLES = """\
examples:
  ys compare default llama --seeds 3            a table, a verdict, and runs/compare.html
  ys compare a.yaml b.yaml --seeds 3 --budget seconds=600 --tune
  ys compare a.yaml b.yaml --set train.max_steps=2000 --allow-different parameters
  ys compare a.yaml b.yaml --task recall --steps 500   a small task instead of text

Fair means: the configurations differ in mixers, widths, depth and learning rate alone, and in
parameters by at most 2 %. What else differs is named and nothing is trained, unless
--allow-different permits it. What is trained already is not trained again: after Ctrl-C or a crash,
type the same command. YS_* in the environment is not read, so that the command of each run
reproduces it.
"""
TASKS = ("recall", "copying", "selective_copying", "parity", "s3", "s5")
_STOPPED = (EXIT_INTERRUPTED, EXIT_TERMINATED, 129)  # by Ctrl-C, SIGTERM, a closed terminal


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
    task: Literal["recall", "copying", "selective_copying", "parity", "s3", "s5"] | None
    steps: int

    def flags(self) -> dict[str, object]:
        """The same comparison again, for a command to advise."""
        return {
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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys compare`."""
    add = parser.add_argument
    add("configs", metavar="NAME_OR_FILE", nargs="+", help="a shipped configuration or a YAML file")
    add("--set", metavar="A.B=VALUE", action="append", default=[], help="one setting, for all runs")
    seeds = "train each configuration with N seeds, from its own on (default: 1)"
    add("--seeds", metavar="N", type=int, default=1, help=seeds)
    budget = "tokens=N, seconds=N or flops=N of training for each run, instead of their own steps"
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
    configs = _configs(arguments)
    names = [config.run for config in configs]
    if arguments.keep not in (None, *names):
        raise UsageError(f"--keep must be one of {', '.join(names)}, found {arguments.keep}")
    replaced = REPLACED if budget else ()
    check_configs(configs, allowed=arguments.allow_different, replaced=replaced)
    if arguments.task:
        _run_task(configs, arguments)
        return 0
    _compare(configs, budget, arguments)
    return 0


def _configs(arguments: Arguments) -> list[Config]:
    from ys_llm.config.shipped import find_config
    from ys_llm.config.sources import load_config

    return [
        load_config(find_config(name), overrides=arguments.set).config for name in arguments.configs
    ]


def _run_task(configs: Sequence[Config], arguments: Arguments) -> None:
    from ys_llm.evaluation.compare import markdown

    if arguments.seeds > 1 or arguments.budget or arguments.tune:
        raise UsageError("--task has --steps of one seed, and no --seeds, --budget or --tune")
    rows = [row for config in configs for row in _task_rows(config, arguments)]
    text = _write([asdict(row) for row in rows], arguments)
    print(text if arguments.json else markdown(rows))


def _task_rows(config: Config, arguments: Arguments) -> Iterator[TaskRow]:
    from ys_llm.evaluation.tasks.synthetic import TASKS
    from ys_llm.training.task_training import compare_on_task

    assert arguments.task is not None
    return compare_on_task(config, TASKS[arguments.task], steps=arguments.steps)


def _write(value: Any, arguments: Arguments) -> str:
    """Write all figures as JSON; returns the text."""
    from ys_llm.system.files import write_atomically

    text = json.dumps(value, indent=2)
    write_atomically(arguments.out or RUNS_DIR / "compare.json", text + "\n")
    return text


def _compare(configs: Sequence[Config], budget: Budget | None, arguments: Arguments) -> None:
    """All configurations with one seed, then with the next: cut short, it has whole seeds.

    The figures so far are written after each seed.
    """
    from ys_llm.evaluation.compare import check_results
    from ys_llm.training.trials import check_same_settings

    seeds = [configs[0].train.seed + offset for offset in range(arguments.seeds)]
    if arguments.clean:
        trials = [_trials(configs, seed, budget, arguments) for seed in seeds]
        _clean(trial.resolved.config for of_seed in trials for trial in of_seed)
    searches = _tune(configs, budget, arguments) if arguments.tune else {}
    configs = [_with_rate(config, searches) for config in configs]
    trials = [_trials(configs, seed, budget, arguments) for seed in seeds]
    for trial in (trial for of_seed in trials for trial in of_seed):
        check_same_settings(RUNS_DIR / trial.run, trial)
    results: dict[str, RunResult] = {}
    diverged: dict[str, str] = {}
    for number, of_seed in enumerate(trials, 1):
        _train_seed(configs, of_seed, results, diverged, arguments)
        check_results(results, allowed=arguments.allow_different)
        notes = [*diverged.values(), *(f"{run}: {one.text}." for run, one in searches.items())]
        comparison = _comparison(
            [config for config in configs if config.run not in diverged],
            [_without(configs, of_seed, diverged) for of_seed in trials[:number]],
            results,
            notes,
            arguments,
        )
        text = _write(asdict(comparison), arguments)
        _write_page(comparison, results, arguments)
    _record(configs, comparison, results, arguments)
    print(text if arguments.json else _tables(comparison))


def _train_seed(
    configs: Sequence[Config],
    trials: Sequence[Trial],
    results: dict[str, RunResult],
    diverged: dict[str, str],
    arguments: Arguments,
) -> None:
    """Train every configuration with one seed; one that diverges is left out from then on."""
    from ys_llm.training.metrics import log_line

    for config, trial in zip(configs, trials, strict=True):
        if config.run in diverged:
            continue
        log_line(f"compare      {trial.run}, seed {trial.seed}")
        try:
            results[trial.run] = _train(trial, arguments)
        except UserError as error:
            if error.exit_code != EXIT_DIVERGED or len(configs) - len(diverged) < 3:
                raise
            diverged[config.run] = f"{config.run} is left out: {error.problem}."
            log_line(f"compare      {diverged[config.run]}")


def _without(
    configs: Sequence[Config], trials: Sequence[Trial], diverged: Mapping[str, str]
) -> list[Trial]:
    pairs = zip(configs, trials, strict=True)
    return [trial for config, trial in pairs if config.run not in diverged]


def _tune(
    configs: Sequence[Config], budget: Budget | None, arguments: Arguments
) -> dict[str, RateSearch]:
    """Search the learning rate of every configuration with the first seed, by its run's name."""
    from ys_llm.training.metrics import log_line
    from ys_llm.training.rate_search import search_rate

    def score(name: str, config: Config, rate: float) -> float:
        """Bits per byte with this rate."""
        trial = _trial(name, config.train.seed, budget, rate, arguments)
        log_line(f"compare      {trial.run}, learning rate {rate:g}")
        try:
            return _train(trial, arguments).bits_per_byte
        except UserError as error:
            if error.exit_code != EXIT_DIVERGED:
                raise
            return math.inf

    return {
        config.run: search_rate(partial(score, name, config), config.train.learning_rate)
        for name, config in zip(arguments.configs, configs, strict=True)
    }


def _with_rate(config: Config, searches: Mapping[str, RateSearch]) -> Config:
    if config.run not in searches:
        return config
    return replace(config, train=replace(config.train, learning_rate=searches[config.run].rate))


def _trials(
    configs: Sequence[Config], seed: int, budget: Budget | None, arguments: Arguments
) -> list[Trial]:
    return [
        _trial(name, seed, budget, config.train.learning_rate, arguments)
        for name, config in zip(arguments.configs, configs, strict=True)
    ]


def _trial(name: str, seed: int, budget: Budget | None, rate: float, arguments: Arguments) -> Trial:
    from ys_llm.config.shipped import find_config
    from ys_llm.training.trials import plan_trial

    path = find_config(name)
    return plan_trial(name, path, arguments.set, seed=seed, budget=budget, rate=rate)


def _clean(configs: Iterable[Config]) -> None:
    from ys_llm.runs.folder import list_removals, remove

    for config in configs:
        remove(list_removals(RUNS_DIR / config.run, "model", corpus=Path(config.data.path)))


def _train(trial: Trial, arguments: Arguments) -> RunResult:
    """The result of a trial; where it is stopped, the command that goes on with the comparison."""
    from ys_llm.training.trials import run_trial

    try:
        return run_trial(trial, RUNS_DIR)
    except UserError as error:
        if error.exit_code not in _STOPPED:
            raise
        again = command_line("compare", *arguments.configs, **arguments.flags())
        fix = f"To go on with the comparison, type: {again}"
        raise UserError(f"{trial.run} {error.problem}", fix, exit_code=error.exit_code) from error


def _comparison(
    configs: Sequence[Config],
    trials: Sequence[Sequence[Trial]],
    results: Mapping[str, RunResult],
    notes: Sequence[str],
    arguments: Arguments,
) -> Comparison:
    """What the seeds so far have shown: `trials` has the trials of each seed, as the configs."""
    from ys_llm.evaluation.compare import describe_layers
    from ys_llm.evaluation.verdicts import Contender, ContenderRun, compare

    contenders = [
        Contender(
            config.run,
            describe_layers(config.model),
            config.train.learning_rate,
            tuple(
                ContenderRun(trial.run, trial.seed, trial.command, results[trial.run])
                for trial in of_config
            ),
        )
        for config, of_config in zip(configs, zip(*trials, strict=True), strict=True)
    ]
    more = {**arguments.flags(), "seeds": max(3, 2 * arguments.seeds)}
    more_seeds = command_line("compare", *arguments.configs, **more)
    return compare(
        contenders,
        budget=arguments.budget,
        more_seeds=more_seeds,
        notes=notes,
    )


def _write_page(
    comparison: Comparison, results: Mapping[str, RunResult], arguments: Arguments
) -> None:
    from ys_llm.evaluation.compare_page import page
    from ys_llm.system.files import write_atomically
    from ys_llm.training.trials import learning_curves

    runs = [(row.configuration, row.run, results[row.run]) for row in comparison.runs]
    curves, measure = learning_curves(runs, RUNS_DIR)
    write_atomically(
        arguments.page or RUNS_DIR / "compare.html", page(comparison, curves, measure=measure)
    )


def _record(
    configs: Sequence[Config],
    comparison: Comparison,
    results: Mapping[str, RunResult],
    arguments: Arguments,
) -> None:
    """The comparison's line in the ledger."""
    from ys_llm.evaluation.compare import setting_differences, settings_of
    from ys_llm.evaluation.ledger import record

    names = setting_differences(configs, ignoring=["run"])
    settings = [{name: settings_of(one).get(name) for name in names} for one in configs]
    entry = {
        "configurations": [
            {"name": name, "run": config.run, "settings": own}
            for name, config, own in zip(arguments.configs, configs, settings, strict=True)
        ],
        "set": arguments.set,
        "allow_different": arguments.allow_different,
        "seeds": comparison.seeds,
        "budget": comparison.budget,
        "commit": list(dict.fromkeys(row.commit for row in comparison.runs)),
        "hardware": list(dict.fromkeys(row.hardware for row in comparison.runs)),
        "runs": {run: result.weights[:12] for run, result in results.items()},
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
        "\n".join(comparison.conclusion),
    ]
    return "\n\n".join(tables)
