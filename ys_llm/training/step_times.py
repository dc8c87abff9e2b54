"""Seconds of a training step of each contender of a comparison, timed by turns before any trains.

In each of a few rounds every contender trains for a moment in its turn: its own model on the real
text, with its batch, threads, dtype and backends, so that what else the machine does meets all of
them. The median of a turn counts, after steps that warm up, and then the least of the rounds, for
other work only adds. They are kept in a file, so that what was planned once stays planned.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import Resolved
from ys_llm.config.strict_reader import parse_dataclass
from ys_llm.errors import UserError
from ys_llm.evaluation.compare import NO_INFLUENCE, covers, hardware, settings_of
from ys_llm.runs.model_files import read_json
from ys_llm.system.files import write_atomically
from ys_llm.training.budget import seconds_of, step_seconds, tokens_of
from ys_llm.training.compute import process_settings, select_backends
from ys_llm.training.memory import release_freed_memory
from ys_llm.training.metrics import log_line
from ys_llm.training.setup import build, source_of
from ys_llm.training.tuning import Source

FILE = "step_times.json"
ROUNDS = 3
TURN_SECONDS = 1.0  # of steps, for each stage of each contender
UNSTEADY = 0.1  # a spread from which on the machine was not quiet
# A step takes as long with any seed, rate and number of steps.
_NOT_TIMED = (
    *NO_INFLUENCE,
    "train.seed",
    "train.learning_rate",
    "train.max_steps",
    "train.minutes",
)


@dataclass(frozen=True)
class StepTime:
    """How long a step takes: `seconds` of each stage, the least of the rounds, and what ran it.

    `spread` is the slowest round over the fastest, minus 1; `threads`, `dtype` and `backends` are
    those of the steps, `timed` is the day.
    """

    run: str
    seconds: tuple[float, ...]
    rounds: tuple[tuple[float, ...], ...]
    spread: float
    tokens_per_second: float
    timed: str
    hardware: str
    torch: str
    threads: int
    dtype: str | None
    backends: Mapping[str, str]


@dataclass(frozen=True)
class _Turn:
    """Seconds of a step of each stage in one round, and what computed them."""

    seconds: tuple[float, ...]
    threads: int
    dtype: str | None
    backends: Mapping[str, str]


def time_steps(
    contenders: Sequence[Resolved], runs_dir: Path, *, anew: bool = False
) -> dict[str, StepTime]:
    """The step time of each contender, by its run's name: kept in `runs_dir`, or timed now.

    Those that are new are timed beside those of before, and put on the scale of what those took
    then. `anew` times all of them again. Raises UserError where training would.
    """
    path = runs_dir / FILE
    kept = _read(path)
    before = {} if anew else {one.config.run: kept.get(_key(one.config)) for one in contenders}
    known = {run: time for run, time in before.items() if time is not None}
    if len(known) < len(contenders):
        found = _measured(contenders, runs_dir)
        scale = _scale(known, found)
        new = {run: _scaled(one, scale) for run, one in found.items() if run not in known}
        known |= new
        keys = {one.config.run: _key(one.config) for one in contenders}
        kept |= {keys[run]: one for run, one in new.items()}
        written = {key: asdict(one) for key, one in kept.items()}
        write_atomically(path, json.dumps(written, indent=1) + "\n")
    return {one.config.run: known[one.config.run] for one in contenders}


def _read(path: Path) -> dict[str, StepTime]:
    """What was timed before; nothing where the file is missing or damaged."""
    try:
        found = read_json(path) if path.exists() else {}
        return {key: parse_dataclass(StepTime, one, where=str(path)) for key, one in found.items()}
    except UserError:
        return {}


def _key(config: Config) -> str:
    """A hash of all settings that the time of a step depends on, and of the machine."""
    settings = {
        name: value
        for name, value in settings_of(config).items()
        if not any(covers(other, name) for other in _NOT_TIMED)
    }
    described = json.dumps([settings, hardware(config.train.device)], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _scale(before: Mapping[str, StepTime], now: Mapping[str, StepTime]) -> float:
    """How long those that were timed before took then, over what they take now."""
    if not before:
        return 1.0
    then = sum(sum(one.seconds) for one in before.values())
    return then / sum(sum(now[run].seconds) for run in before)


def _scaled(one: StepTime, scale: float) -> StepTime:
    return replace(
        one,
        seconds=tuple(scale * seconds for seconds in one.seconds),
        tokens_per_second=one.tokens_per_second / scale,
    )


def _measured(contenders: Sequence[Resolved], runs_dir: Path) -> dict[str, StepTime]:
    """Rounds over all contenders; a model exists in its own turn alone."""
    log_line(f"timing       a step of each of {len(contenders)} configurations, {ROUNDS} rounds")
    turns: dict[str, list[_Turn]] = {one.config.run: [] for one in contenders}
    runs_dir.mkdir(parents=True, exist_ok=True)
    with _texts(contenders, runs_dir) as texts:
        for _ in range(ROUNDS):
            for one in contenders:
                turns[one.config.run].append(_turn(one.config, *texts[one.config.run]))
    found = {one.config.run: _step_time(one.config, turns[one.config.run]) for one in contenders}
    for run, time_of in found.items():
        log_line(
            f"timing       {run}: {time_of.tokens_per_second:,.0f} tokens/s, "
            f"rounds within {time_of.spread:.0%}"
        )
    return found


@contextmanager
def _texts(
    contenders: Sequence[Resolved], runs_dir: Path
) -> Iterator[dict[str, tuple[Path, Source]]]:
    """For the run of each contender a folder and its text, read once for those that read alike."""
    alike: dict[str, tuple[Path, Source]] = {}
    found: dict[str, tuple[Path, Source]] = {}
    with ExitStack() as stack:
        for one in contenders:
            config = one.config
            key = repr((config.data, config.tokenizer, config.sft, config.train.init_from))
            if key not in alike:
                folder = stack.enter_context(_scratch(runs_dir))
                source = source_of(one, config, folder, scratch=folder / "cache")
                alike[key] = (folder, source)
            found[config.run] = alike[key]
        yield found


@contextmanager
def _scratch(runs_dir: Path) -> Iterator[Path]:
    """A temporary folder among the runs: what a run is initialised from is found beside it."""
    with tempfile.TemporaryDirectory(prefix=".timing-", suffix=".tmp", dir=runs_dir) as folder:
        yield Path(folder)


def _turn(config: Config, folder: Path, source: Source) -> _Turn:
    """Train for a moment as `ys train` would; the weights are thrown away."""
    with process_settings(config.train), redirect_stderr(io.StringIO()):
        run, _ = build(config, folder, source, cache=folder / "cache")
        run.tokenizer.save(folder / "tokenizer.json")  # the next one need not train it again
        run = replace(run, compute=select_backends(run.config.train, run.model, run.compute))
        run.model.train()
        stages = range(len(config.train.plan))
        seconds = tuple(step_seconds(run, stage, TURN_SECONDS) for stage in stages)
        turn = _Turn(seconds, torch.get_num_threads(), run.compute.dtype, run.compute.backends)
        del run
        release_freed_memory()
    return turn


def _step_time(config: Config, turns: Sequence[_Turn]) -> StepTime:
    rounds, last = tuple(turn.seconds for turn in turns), turns[-1]
    seconds = tuple(min(stage) for stage in zip(*rounds, strict=True))
    sums = [sum(one) for one in rounds]
    return StepTime(
        config.run,
        seconds,
        rounds,
        max(sums) / min(sums) - 1,
        tokens_of(config.train) / seconds_of(config.train, seconds),
        date.today().isoformat(),
        hardware(config.train.device),
        torch.__version__,
        last.threads,
        last.dtype,
        last.backends,
    )


def timing_note(times: Mapping[str, StepTime], seconds: float) -> str:
    """A sentence on what the seconds of a comparison mean, and on how well they are known."""
    steps = ", ".join(
        f"{sum(one.seconds) / len(one.seconds):.3g} s in {run}" for run, one in times.items()
    )
    worst = max(one.spread for one in times.values())
    days = " and ".join(sorted({one.timed for one in times.values()}))
    doubt = " Other work disturbed that: --clean times again." if worst > UNSTEADY else ""
    return (
        f"Each was trained for the steps that fit in {seconds:g} s of training on this machine, "
        f"without evaluations. A step takes {steps}, timed by turns on {days}; the rounds are "
        f"within {worst:.0%}.{doubt}"
    )
