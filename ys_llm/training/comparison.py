"""A comparison from its first run to its last: rates, seeds by turns, and what they have shown."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.errors import (
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    UserError,
)
from ys_llm.evaluation.compare import check_results, describe_layers
from ys_llm.evaluation.verdicts import (
    Comparison,
    Contender,
    ContenderRun,
    RunResult,
    TriedRate,
    compare,
)
from ys_llm.runs.folder import list_removals, remove
from ys_llm.training.metrics import log_line
from ys_llm.training.rate_search import RateSearch, search_rate
from ys_llm.training.shared_text import share
from ys_llm.training.step_times import StepTime, time_steps, timing_note
from ys_llm.training.trial_budget import Budget
from ys_llm.training.trials import Trial, check_same_settings, plan_trial, run_trial

_STOPPED = (EXIT_INTERRUPTED, EXIT_TERMINATED, 129)  # by Ctrl-C, SIGTERM, a closed terminal


@dataclass(frozen=True)
class Entrant:
    """A configuration as it was named, its file, and what it says with the settings for all."""

    name: str
    path: Path
    config: Config


@dataclass(frozen=True)
class Plan:
    """What is trained: every entrant with every seed, after a search of its rate where `tune`.

    `settings` are for all of them, `allowed` what may differ. `again` is the command that goes on
    after a stop, `more_seeds` one that trains more. A budget of seconds needs `timed`.
    """

    entrants: tuple[Entrant, ...]
    settings: tuple[str, ...]
    seeds: int
    budget: Budget | None
    tune: bool
    allowed: tuple[str, ...]
    again: str
    more_seeds: str
    step_times: Mapping[str, StepTime] = field(default_factory=dict)  # by run, where seconds count

    def trial(self, entrant: Entrant, seed: int, rate: float) -> Trial:
        """One run of it."""
        budget = self.budget
        if budget and budget.unit == "seconds":
            seconds = self.step_times[entrant.config.run].seconds
            budget = replace(budget, step_seconds=seconds)
        return plan_trial(
            entrant.name, entrant.path, self.settings, seed=seed, budget=budget, rate=rate
        )

    def trials(self) -> list[list[Trial]]:
        """The runs of each seed, from the configurations' own seed on."""
        first = self.entrants[0].config.train.seed
        return [
            [self.trial(one, seed, one.config.train.learning_rate) for one in self.entrants]
            for seed in range(first, first + self.seeds)
        ]


@dataclass(frozen=True)
class Progress:
    """What a comparison has found after a seed, with the entrants' rates, and results by run."""

    comparison: Comparison
    entrants: tuple[Entrant, ...]
    results: Mapping[str, RunResult]


def timed(plan: Plan, runs_dir: Path, *, anew: bool) -> Plan:
    """The plan with the time of each one's step, where its budget counts seconds."""
    if plan.budget is None or plan.budget.unit != "seconds":
        return plan
    resolved = [load_config(one.path, overrides=plan.settings) for one in plan.entrants]
    return replace(plan, step_times=time_steps(resolved, runs_dir, anew=anew))


def clean(plan: Plan, runs_dir: Path) -> None:
    """Remove the models of all its runs."""
    for trial in (trial for of_seed in plan.trials() for trial in of_seed):
        corpus = Path(trial.resolved.config.data.path)
        remove(list_removals(runs_dir / trial.run, "model", corpus=corpus))


def run_comparison(plan: Plan, runs_dir: Path) -> Iterator[Progress]:
    """Train all entrants with one seed, then with the next: cut short, there are whole seeds.

    What is trained and measured already is not done again. Raises UserError where the runs turn out
    not to be comparable, or where training is stopped.
    """
    searches = _search_rates(plan, runs_dir) if plan.tune else {}
    plan = replace(plan, entrants=tuple(_with_rate(one, searches) for one in plan.entrants))
    trials = plan.trials()
    for trial in (trial for of_seed in trials for trial in of_seed):
        check_same_settings(runs_dir / trial.run, trial)
    notes = [f"{run}: {one.text}." for run, one in searches.items()]
    if plan.step_times and plan.budget:
        notes.append(timing_note(plan.step_times, plan.budget.amount))
    results: dict[str, RunResult] = {}
    diverged: dict[str, str] = {}
    for number, of_seed in enumerate(trials, 1):
        for entrant, trial in zip(plan.entrants, of_seed, strict=True):
            if entrant.config.run not in diverged:
                log_line(f"compare      {trial.run}, seed {trial.seed}")
                _train_or_leave_out(plan, entrant, trial, runs_dir, results, diverged)
        check_results(results, allowed=plan.allowed)
        contenders = [
            _contender(entrant, [of_seed[index] for of_seed in trials[:number]], results)
            for index, entrant in enumerate(plan.entrants)
            if entrant.config.run not in diverged
        ]
        found = compare(
            contenders,
            budget=plan.budget.text if plan.budget else None,
            more_seeds=plan.more_seeds,
            notes=[*diverged.values(), *notes],
            rates=[rate for run, one in searches.items() for rate in _tried(run, one)],
        )
        yield Progress(found, plan.entrants, results)


def _search_rates(plan: Plan, runs_dir: Path) -> dict[str, RateSearch]:
    """Search the learning rate of every entrant with the first seed; by its run's name."""

    finished: list[str] = []

    def score(entrant: Entrant, rate: float) -> float:
        """Bits per byte with this rate."""
        trial = plan.trial(entrant, entrant.config.train.seed, rate)
        check_same_settings(runs_dir / trial.run, trial)
        log_line(f"compare      {trial.run}, learning rate {rate:g}")
        try:
            bits = _train(plan, trial, runs_dir, finished).bits_per_byte
        except UserError as error:
            if error.exit_code != EXIT_DIVERGED:
                raise
            return math.inf
        finished.append(trial.run)
        return bits

    found: dict[str, RateSearch] = {}
    for one in plan.entrants:
        search = search_rate(partial(score, one), one.config.train.learning_rate)
        log_line(f"compare      {one.config.run}: {search.text}")
        found[one.config.run] = search
    return found


def _tried(run: str, search: RateSearch) -> Iterator[TriedRate]:
    for rate, score in sorted(search.tried.items()):
        bits = score if math.isfinite(score) else None
        yield TriedRate(run, rate, bits, rate == search.rate)


def _with_rate(entrant: Entrant, searches: Mapping[str, RateSearch]) -> Entrant:
    config = entrant.config
    if config.run not in searches:
        return entrant
    train = replace(config.train, learning_rate=searches[config.run].rate)
    return replace(entrant, config=replace(config, train=train))


def _train_or_leave_out(
    plan: Plan,
    entrant: Entrant,
    trial: Trial,
    runs_dir: Path,
    results: dict[str, RunResult],
    diverged: dict[str, str],
) -> None:
    """The trial's result; an entrant that diverges is left out, while two others are left."""
    try:
        results[trial.run] = _train(plan, trial, runs_dir, results)
    except UserError as error:
        if error.exit_code != EXIT_DIVERGED or len(plan.entrants) - len(diverged) < 3:
            raise
        run = entrant.config.run
        diverged[run] = f"{run} is left out: {error.problem}."
        log_line(f"compare      {diverged[run]}")


def _train(plan: Plan, trial: Trial, runs_dir: Path, finished: Iterable[str]) -> RunResult:
    """The result of a trial; where it is stopped, the command that goes on with the comparison.

    What it would prepare as runs that are `finished` have, it takes from them.
    """
    share(runs_dir / trial.run, trial.resolved.config, [runs_dir / run for run in finished])
    try:
        return run_trial(trial, runs_dir)
    except UserError as error:
        if error.exit_code not in _STOPPED:
            raise
        fix = f"To go on with the comparison, type: {plan.again}"
        raise UserError(f"{trial.run} {error.problem}", fix, exit_code=error.exit_code) from error


def _contender(
    entrant: Entrant, trials: Sequence[Trial], results: Mapping[str, RunResult]
) -> Contender:
    runs = [
        ContenderRun(trial.run, trial.seed, trial.command, results[trial.run]) for trial in trials
    ]
    config = entrant.config
    return Contender(
        config.run, describe_layers(config.model), config.train.learning_rate, tuple(runs)
    )
