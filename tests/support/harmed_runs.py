"""Runs that are interrupted and resumed, and the uninterrupted ones that they must equal.

`as users run it` has the default dtype and backend and two threads, stages, carried state and
dropout; the other configurations are pinned to what is quickest for so small a model.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.forked import Ended, ForkServer
from support.training_runs import (
    AS_USERS_RUN,
    PINNED,
    assert_same_training,
    rows_of,
    sentences,
    settings,
    write_corpus,
)
from ys_llm.runs.checkpoint import read_checkpoint
from ys_llm.runs.folder import checkpoints

TIMINGS = {"step_seconds", "seconds", "saving_seconds"}
OFTEN = (
    "train.max_steps=6",
    "train.checkpoint_interval=2",
    "train.eval_interval=3",
    "train.sample_interval=4",
)
STAGES = "[{seq_len: 8, batch_size: 4, steps: 3}, {seq_len: 16, batch_size: 4, steps: 3}]"
CONFIGURATIONS = {
    "shuffled": OFTEN,
    "contiguous": (*OFTEN, "data.batching=contiguous", f"train.stages={STAGES}"),
    "dropout": (
        *OFTEN,
        "model.dropout=0.2",
        "train.grad_accum_steps=2",
        "train.keep_checkpoint_every=4",
    ),
    # The first steps at this rate give non-finite weights; the rollback's factor makes it harmless.
    "rollback": (*OFTEN, "train.learning_rate=1e30", "train.rollback_lr_factor=1e-33"),
    "as users run it": (
        *OFTEN,
        "data.batching=contiguous",
        f"train.stages={STAGES}",
        "model.dropout=0.2",
        "train.grad_accum_steps=2",
    ),
}


@dataclass(frozen=True)
class Uninterrupted:
    """A run from start to end: its command, its folder, and the file operations that it made."""

    name: str
    words: tuple[str, ...]
    folder: Path
    operations: list[tuple[str, ...]]  # name, path below the folder, new path of a renaming

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "mine"


class Runs:
    """Uninterrupted runs of each configuration, made on first use."""

    def __init__(self, base: Path, forks: ForkServer) -> None:
        self.base, self.forks = base, forks
        self._made: dict[tuple[str, ...], Uninterrupted] = {}
        write_corpus(base / "corpus", sentences(40))

    def run(self, name: str, *, compute: tuple[str, ...] = ()) -> Uninterrupted:
        """`compute` pins what this configuration leaves to the run to choose."""
        key = (name, *compute)
        if key not in self._made:
            self._made[key] = self._train(name, compute, self.base / f"{len(self._made)}")
        return self._made[key]

    def _train(self, name: str, compute: tuple[str, ...], folder: Path) -> Uninterrupted:
        folder.mkdir()
        pins = AS_USERS_RUN if name == "as users run it" else PINNED
        every = settings(self.base / "corpus", CONFIGURATIONS[name], compute=(*pins, *compute))
        words = ["train", *(word for setting in every for word in ("--set", setting))]
        journal = folder.with_suffix(".journal")
        fault = {"below": str(folder), "journal": str(journal)}
        ended = self.forks.run(*words, folder=folder, fault=fault)
        assert ended.code == 0, ended.stderr
        lines = journal.read_text().replace(f"{folder}/", "").splitlines()
        operations = [tuple(line.rstrip().split("\t")) for line in lines]
        return Uninterrupted(name, tuple(words), folder, operations)


def chosen_compute(run: Path) -> tuple[str, ...]:
    """The dtype and backends that a run has chosen, as settings."""
    environment = read_checkpoint(checkpoints(run)[-1]).progress["environment"]
    backends = ", ".join(f"{mixer}: {name}" for mixer, name in environment["backends"].items())
    return (f"train.dtype={environment['dtype']}", f"train.backend={{{backends}}}")


@dataclass
class HarmedRun:
    """The same run, interrupted and started again."""

    runs: Runs
    name: str
    folder: Path
    cuts: int = 0

    @property
    def forks(self) -> ForkServer:
        return self.runs.forks

    @property
    def whole(self) -> Uninterrupted:
        return self.runs.run(self.name)

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "mine"

    def harm(self, kind: str, at: int) -> Ended:
        """Start it, with this fault at operation `at`."""
        self.folder.mkdir(exist_ok=True)
        survivors = self.folder.with_name(f"after-{self.cuts}")
        fault = {"below": str(self.folder), "at": at, "kind": kind, "survivors": str(survivors)}
        ended = self.forks.run(*self.whole.words, folder=self.folder, fault=fault)
        if "power cut" in kind and ended.code == -signal.SIGKILL:
            self.folder, self.cuts = survivors, self.cuts + 1
        return ended

    def resume(self, *changes: str) -> Ended:
        """Start it again and let it finish."""
        words = [word for change in changes for word in ("--set", change)]
        ended = self.forks.run(*self.whole.words, *words, folder=self.folder)
        assert ended.code == 0, ended.stderr
        return ended

    def assert_as_uninterrupted(self, **how: bool) -> None:
        other = self.whole
        if (chosen := chosen_compute(self.run)) != chosen_compute(other.run):
            # Killed before its first checkpoint, it chose again, by a measurement: compare with a
            # run that was given this choice.
            other = self.runs.run(self.name, compute=chosen)
            how["same_config"] = False
        assert_same_end(self.run, other.run, **how)


def without_timings(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMINGS}


def assert_same_end(
    run: Path, other: Path, *, same_checkpoints: bool = True, same_config: bool = True
) -> None:
    """The same weights, moments, random numbers, carried state, metrics, samples and model.

    A run that was stopped has also saved at that step, and may keep that checkpoint.
    """
    assert_same_training(run, other)
    assert [*map(without_timings, rows_of(run))] == [*map(without_timings, rows_of(other))]
    configs = ("config.json", "config.yaml") if same_config else ()
    for name in ("model.safetensors", *configs, "tokenizer.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = checkpoints(run), checkpoints(other)
    if same_checkpoints:
        assert [path.name for path in ours] == [path.name for path in theirs]
    saved = [read_checkpoint(found[-1]).progress for found in (ours, theirs)]
    assert without_timings(saved[0]) == without_timings(saved[1])
    assert rollbacks_of(run) == rollbacks_of(other)
    leftovers = [str(path) for path in run.rglob(".*") if path.name != ".ys-lock"]
    assert not leftovers


def rollbacks_of(run: Path) -> Any:
    path = run / "rollbacks.json"
    return json.loads(path.read_text()) if path.exists() else None


def moment_of(operation: tuple[str, ...]) -> str:
    """The part of the training run that this operation belongs to."""
    name, path, target = (*operation, "", "")[:3]
    if name == "step":
        return "between the steps"
    if path.endswith("metrics.jsonl"):
        return "metrics"
    if re.search(r"checkpoints/\.step-\d+\.tmp", path):
        return "a checkpoint's name" if target else "a checkpoint's files"
    if "checkpoints/" in path:
        return "an old checkpoint's removal"
    if "/cache" in path or path.count("/") < 2:
        return "the beginning"
    return "the run's own files"


def points(whole: Uninterrupted, *, seed: str, count: int) -> list[int]:
    """Numbers of operations, equally many from each part of the run."""
    draw, parts = random.Random(seed), defaultdict(list)
    for number, operation in enumerate(whole.operations):
        parts[moment_of(operation)].append(number)
    names = sorted(parts)
    return [draw.choice(parts[names[i % len(names)]]) for i in range(count)]


def error_line(ended: Ended) -> str:
    """The one line that a failed command prints."""
    assert "Traceback" not in ended.stderr, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("ys: ")]
    assert lines == [ended.last_line], ended.stderr
    return lines[0]
