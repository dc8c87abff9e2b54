"""Choices that were measured: made once on a machine, kept in the user's cache, then only read.

Two measurements never agree to the last digit, and another backend gives a run other weights. So
the first measurement decides for good: its record is a file named after the hash of everything
that it depends on (processor, threads, versions, compiled library, what was asked). The first
process to write it wins, and every process uses what the file says; a damaged one is replaced.
Where nothing can be kept, nothing is timed.
"""

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from ys_llm import __version__
from ys_llm.config.cache import CACHE_VARIABLE, cache_dir
from ys_llm.config.strict_reader import parse_dataclass, to_plain
from ys_llm.csrc import loader
from ys_llm.errors import UserError
from ys_llm.system import machine
from ys_llm.system.files import make_folder, readable_os_errors, write_atomically
from ys_llm.system.lock import wait_for_lock

ROUNDS = 5
TRIES = 3  # of a measurement that other work disturbs
MOST_SECONDS = 3.0  # after which no further round or try begins, beyond the fewest
FEWEST_ROUNDS = 3
CALM_SPREAD = 1.3  # of a candidate's second slowest round over its fastest
CALM_WAITING = 0.05  # share of the time in which a thread waited for a core
NOT_KEPT = f"not timed: a measurement cannot be kept; set {CACHE_VARIABLE} to a writable folder"
CHOSEN_BEFORE = "chosen before"  # a reason; the run knows when that was
_LOCK_SECONDS = 60
_MOST_BYTES = 1 << 16  # of a record; 2 kB is usual


class Question(NamedTuple):
    """What is to be chosen, from which `options`; `details` are what else it depends on."""

    subject: str
    options: tuple[str, ...]
    details: Mapping[str, str]


class Answer(NamedTuple):
    """What a measurement chose, why, and the seconds of every option's rounds.

    `disturbance` is what made them unreliable, so that the default was chosen; "" where nothing.
    """

    choice: str
    reason: str
    seconds: Mapping[str, tuple[float, ...]]
    disturbance: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """An answer as it is kept, with what it was asked and when."""

    subject: str
    conditions: Mapping[str, str]
    choice: str
    reason: str
    date: str
    seconds: Mapping[str, tuple[float, ...]]
    disturbance: str = ""

    def __post_init__(self) -> None:
        """ValueError where a value cannot be."""
        date.fromisoformat(self.date)
        if not all(0 < s < math.inf for rounds in self.seconds.values() for s in rounds):
            raise ValueError("seconds: expected positive numbers")

    @property
    def explanation(self) -> str:
        """The reason, and that it is a measurement of an earlier day."""
        return f"{self.reason}, as measured on this machine on {self.date}"


class Timings(NamedTuple):
    """Seconds of every candidate's rounds, and what disturbed them: "" where nothing did."""

    seconds: dict[str, tuple[float, ...]]
    disturbance: str

    def gain(self, name: str, over: str) -> float:
        """How many times as fast `name` is, by medians."""
        medians = {name: statistics.median(rounds) for name, rounds in self.seconds.items()}
        return medians[over] / medians[name]


def records_folder() -> Path | None:
    """Where records are kept; None where there is no cache folder."""
    folder = cache_dir()
    return None if folder is None else folder / "choices"


def recorded(question: Question, measure: Callable[[], Answer]) -> Record | None:
    """The machine's record for this question, measured first where there is none.

    None where nothing can be kept: then `measure` was not called, or its answer is dropped.
    """
    folder, conditions = records_folder(), _conditions(question)
    if folder is None:
        return None
    path = folder / f"{hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:16]}.json"
    if kept := _kept(path, question, conditions):
        return kept
    try:
        make_folder(folder)
        with wait_for_lock(folder / "lock", seconds=_LOCK_SECONDS):  # two at once would disturb
            return _kept(path, question, conditions) or _measured(
                path, question, conditions, measure
            )
    except (OSError, UserError):
        return None


def _measured(
    path: Path, question: Question, conditions: dict[str, str], measure: Callable[[], Answer]
) -> Record:
    """Measure and write, or what another process wrote meanwhile, where locks do not work."""
    choice, reason, seconds, disturbed = measure()
    today = date.today().isoformat()
    record = Record(question.subject, conditions, choice, reason, today, seconds, disturbed)
    if kept := _kept(path, question, conditions):
        return kept
    write_atomically(path, json.dumps(to_plain(record), indent=1) + "\n", create_folder=False)
    return record


def read_record(path: Path) -> Record | None:
    """The record in this file; None where it is missing, damaged or of another format."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8")
        found = json.loads(text)
        return parse_dataclass(Record, found, where=str(path)) if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError, UserError):
        return None


def records() -> list[Record]:
    """All records that were measured as things are now (threads, versions ...), newest first."""
    folder = records_folder()
    found = [] if folder is None else [read_record(path) for path in sorted(folder.glob("*.json"))]
    here = _surroundings().items()
    fitting = [record for record in found if record and here <= record.conditions.items()]
    return sorted(fitting, key=lambda record: record.date, reverse=True)


def forget() -> int:
    """Remove every record, so that each is measured again when it is next asked for; how many.

    Raises UserError where one cannot be removed. A run that has begun keeps what it chose.
    """
    folder = records_folder()
    paths = [] if folder is None else list(folder.glob("*.json"))
    for path in paths:
        with readable_os_errors(path):
            path.unlink(missing_ok=True)
    return len(paths)


def _kept(path: Path, question: Question, conditions: dict[str, str]) -> Record | None:
    record = read_record(path)
    if record is None or record.conditions != conditions or record.choice not in question.options:
        return None
    return record


def _conditions(question: Question) -> dict[str, str]:
    """Everything that the answer depends on."""
    return {"question": question.subject, **question.details, **_surroundings()}


def _surroundings() -> dict[str, str]:
    here, library = machine.inspect_machine(), loader.load()
    return {
        "processor": here.processor,
        "class": machine.cpu_class(),
        "features": hashlib.sha256(" ".join(sorted(here.features)).encode()).hexdigest()[:16],
        "cores": str(here.usable_cores),
        "threads": str(torch.get_num_threads()),
        "settings": machine.instruction_settings(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "ys": __version__,
        "library": library.path.name if library else "none",
    }


def time_in_turn(candidates: Mapping[str, Callable[[], float]]) -> Timings:
    """Time all candidates in interleaved rounds, again where other work disturbed them.

    A candidate returns its seconds, and has run before: the first call is never typical.
    """
    began = time.perf_counter()
    for _ in range(TRIES):
        timings = _rounds(candidates)
        if not timings.disturbance or time.perf_counter() - began > MOST_SECONDS:
            break
    return timings


def _rounds(candidates: Mapping[str, Callable[[], float]]) -> Timings:
    began, waited = time.perf_counter(), machine.waiting_seconds()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for done in range(ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - began > MOST_SECONDS:
            break
        for name, run in candidates.items():
            seconds[name].append(max(run(), 1e-9))
    elapsed = (time.perf_counter() - began) * torch.get_num_threads()
    share = max(0.0, machine.waiting_seconds() - waited) / max(elapsed, 1e-9)
    rounds = {name: tuple(measured) for name, measured in seconds.items()}
    return Timings(rounds, disturbance(rounds, share))


def disturbance(rounds: Mapping[str, tuple[float, ...]], waiting_share: float) -> str:
    """What makes these rounds unreliable; one slow round of each candidate is let pass."""
    if waiting_share > CALM_WAITING:
        return f"threads waited for a core {min(1.0, waiting_share):.0%} of the time"
    spread = max(sorted(measured)[-2] / min(measured) for measured in rounds.values())
    return f"rounds differed by {spread:.1f} times" if spread > CALM_SPREAD else ""


def shown(record: Record) -> str:
    """One line about a record and its figures, for `ys doctor`."""
    known = ("question", "weights", *_surroundings())
    details = ", ".join(f"{k} {v}" for k, v in record.conditions.items() if k not in known)
    medians = {name: statistics.median(rounds) for name, rounds in record.seconds.items()}
    figures = ", ".join(f"{name} {1000 * median:,.2f} ms" for name, median in medians.items())
    line = f"{record.subject} ({details}): {record.choice}, {record.explanation}"
    return f"{line} ({figures})" if figures else line
