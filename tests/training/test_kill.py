"""A run interrupted at any point and resumed ends bit for bit as an uninterrupted one.

Killed, stopped, out of disk space, after a power cut, with damaged checkpoints: in processes of
their own, at file operations and steps drawn by seed, most of them inside a checkpoint's writing.
`as users run it` has the default dtype and backend and two threads, stages, carried state and
dropout; the others are pinned to what is quickest for so small a model.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.forked import Ended, ForkServer, until
from support.hostile_contents import resign
from support.power_cut import REFUSED
from support.training_runs import (
    AS_USERS_RUN,
    NEVER,
    PINNED,
    assert_same_training,
    column,
    rows_of,
    sentences,
    settings,
    write_corpus,
)

from ys_llm.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED
from ys_llm.runs.checkpoint import read_checkpoint
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import read_json

KILL_POINTS = 20
POWER_CUTS = 7  # of each kind: one per part of a training
TIMINGS = {"step_seconds", "seconds", "saving_seconds"}
OFTEN = (
    "train.max_steps=8",
    "train.checkpoint_interval=2",
    "train.eval_interval=3",
    "train.sample_interval=4",
)
STAGES = "[{seq_len: 8, batch_size: 4, steps: 3}, {seq_len: 16, batch_size: 4, steps: 5}]"
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
    """Uninterrupted runs of each configuration, made when they are asked for."""

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Runs:
    return Runs(tmp_path_factory.mktemp("whole"), forks)


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
            # Killed before its first checkpoint, it chose anew, by a measurement: compare with a
            # run that was given this choice.
            other = self.runs.run(self.name, compute=chosen)
            how["same_config"] = False
        assert_same_end(self.run, other.run, **how)


@pytest.fixture
def harmed(tmp_path: Path, runs: Runs) -> Callable[..., HarmedRun]:
    return lambda name="shuffled": HarmedRun(runs, name, tmp_path / "run")


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
    """The part of a training that this operation belongs to."""
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
    """Numbers of operations, as many from each part of a training."""
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


def test_kill_points_cover_every_part_of_a_training(runs: Runs) -> None:
    hit = set()
    for name in CONFIGURATIONS:
        whole = runs.run(name)
        drawn = points(whole, seed=name, count=KILL_POINTS)
        operations = [whole.operations[number] for number in drawn]
        moments = {moment_of(operation) for operation in operations}
        assert moments == {moment_of(operation) for operation in whole.operations}
        assert len(moments) == 7
        hit |= {operation[0] for operation in operations}
    assert {"write", "fsync", "replace", "step"} <= hit


@pytest.mark.parametrize("number", range(KILL_POINTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    harmed: Callable[..., HarmedRun], name: str, number: int
) -> None:
    run = harmed(name)
    at = points(run.whole, seed=name, count=KILL_POINTS)[number]
    assert run.harm("kill", at).code == -signal.SIGKILL
    assert "damaged" not in run.resume().stderr
    run.assert_as_uninterrupted()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_killed_repeatedly_ends_as_an_uninterrupted_one(
    harmed: Callable[..., HarmedRun], name: str
) -> None:
    run, draw = harmed(name), random.Random(name)
    for _ in range(6):
        kind = draw.choice(("kill", "kill", "power cut", "unlucky power cut"))
        run.harm(kind, draw.randrange(len(run.whole.operations)))
    run.resume()
    run.assert_as_uninterrupted()


@pytest.mark.parametrize("kind", ["power cut", "unlucky power cut"])
@pytest.mark.parametrize("number", range(POWER_CUTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_after_a_power_cut_ends_as_an_uninterrupted_one(
    harmed: Callable[..., HarmedRun], name: str, number: int, kind: str
) -> None:
    run = harmed(name)
    at = points(run.whole, seed=f"{name} {kind}", count=POWER_CUTS)[number]
    assert run.harm(kind, at).code == -signal.SIGKILL
    assert "damaged" not in run.resume().stderr
    run.assert_as_uninterrupted()


def operations_of_a_save(whole: Uninterrupted) -> list[int]:
    """Writing one checkpoint, with its row of metrics, and removing an older one."""
    steps = [n for n, operation in enumerate(whole.operations) if operation[0] == "step"]
    return [*range(steps[3] + 1, steps[4])]


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_a_disk_error_during_a_save_loses_nothing(
    harmed: Callable[..., HarmedRun], tmp_path: Path, kind: str
) -> None:
    run = harmed()
    save = operations_of_a_save(run.whole)
    names = [run.whole.operations[at][0] for at in save]
    assert {"open", "write", "fsync", "mkdir"} <= set(names)
    written = [at for at, name in zip(save, names, strict=True) if name in ("write", "fsync")]
    for at in written if kind == "EIO" else written[::3]:
        run.folder = tmp_path / f"at-{at}"
        ended = run.harm(kind, at)
        assert ended.code == EXIT_FAILED, (run.whole.operations[at], ended)
        assert re.search(
            "No space left" if kind == "ENOSPC" else "Input/output error", error_line(ended)
        )
        assert all(read_checkpoint(path) for path in checkpoints(run.run))
        run.resume()  # space has been freed
        run.assert_as_uninterrupted()


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "EROFS"])
def test_a_disk_error_anywhere_loses_nothing(
    harmed: Callable[..., HarmedRun], kind: str, number: int
) -> None:
    run = harmed("contiguous")
    at = points(run.whole, seed=kind, count=7)[number]
    ended = run.harm(kind, at)
    if not any(operation[0] in REFUSED[kind] for operation in run.whole.operations[at:]):
        return  # only removals are left
    assert ended.code == EXIT_FAILED, (run.whole.operations[at], ended)
    assert str(Path("runs", "mine")) in error_line(ended)
    run.resume()
    run.assert_as_uninterrupted()


STOPS = ("SIGINT", "SIGINT twice", "SIGTERM", "SIGTERM twice")


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("kind", STOPS)
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    harmed: Callable[..., HarmedRun], kind: str, number: int
) -> None:
    run = harmed("dropout")
    at = points(run.whole, seed=kind, count=7)[number]
    first_step = run.whole.operations.index(("step",))
    ended = run.harm(kind, at)
    codes = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": EXIT_TERMINATED}
    if kind == "SIGTERM twice" or (kind == "SIGTERM" and ended.code < 0 and at < first_step):
        assert ended.code == -signal.SIGTERM
    elif ended.code:  # else it came after the last step
        assert ended.code == codes[kind.removesuffix(" twice")]
        assert at < first_step or error_line(ended).endswith("type: ys train --run mine")
    else:
        assert at > run.whole.operations.index(("step",)) and "twice" not in kind
    assert all(read_checkpoint(path) for path in checkpoints(run.run))
    run.resume()
    run.assert_as_uninterrupted(same_checkpoints=False)


@pytest.mark.parametrize("pause", [0.0, 0.003, 0.01, 0.03])
def test_a_second_ctrl_c_stops_at_once(harmed: Callable[..., HarmedRun], pause: float) -> None:
    run = harmed()
    run.folder.mkdir()
    words = (*run.whole.words, "--set", f"train.max_steps={NEVER}")
    child = run.forks.start(*words, folder=run.folder)
    metrics = run.run / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 9)
    child.send(signal.SIGINT)
    time.sleep(pause)
    child.send(signal.SIGINT)
    ended = child.wait()
    assert ended.code == EXIT_INTERRUPTED
    newest = read_checkpoint(checkpoints(run.run)[-1]).progress["step"]
    assert newest >= 8
    assert f"step {newest:,}" in error_line(ended)
    assert error_line(ended).endswith("type: ys train --run mine")
    run.resume(f"train.max_steps={newest + 3}")
    assert column(run.run, "step") == [*range(1, newest + 4)]


def test_a_second_training_of_the_same_run_is_refused(harmed: Callable[..., HarmedRun]) -> None:
    run = harmed()
    run.folder.mkdir()
    endless = ("--set", f"train.max_steps={NEVER}")
    first = run.forks.start(*run.whole.words, *endless, folder=run.folder)
    until(lambda: (run.run / "metrics.jsonl").exists() and rows_of(run.run))
    for words in (run.whole.words, ("train", "clean", "--yes", "--run", "mine")):
        second = run.forks.run(*words, folder=run.folder)
        assert second.code == EXIT_FAILED
        assert f"is being trained by process {first.pid} " in error_line(second)
    done = len(rows_of(run.run))
    until(lambda: len(rows_of(run.run)) > done)
    first.send(signal.SIGINT)
    assert first.wait().code == EXIT_INTERRUPTED
    steps = column(run.run, "step")
    assert steps == [*range(1, len(steps) + 1)]
    assert run.forks.run("run", "mine", "--prompt", "x", folder=run.folder).code == 0


def test_the_lock_of_a_killed_training_does_not_block(harmed: Callable[..., HarmedRun]) -> None:
    run = harmed()
    run.folder.mkdir()
    first = run.forks.start(*run.whole.words, folder=run.folder)
    until(lambda: (run.run / ".ys-lock").exists())
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    run.resume()
    run.assert_as_uninterrupted()


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def remove(path: Path, other: Path) -> None:
    path.unlink()


FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "tensors.safetensors",
    "progress.json",
    "SHA256SUMS",
)


def newest_two(run: Path) -> Sequence[Path]:
    return checkpoints(run)[:-3:-1]


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, swap, remove])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    harmed: Callable[..., HarmedRun], file: str, damage: Callable[[Path, Path], None]
) -> None:
    run = harmed("dropout")  # whose checkpoints all have different random states
    shutil.copytree(run.whole.folder, run.folder)
    newest, before = newest_two(run.run)
    damage(newest / file, before / file)
    ended = run.resume()
    lines = [line for line in ended.stderr.splitlines() if line.startswith("damaged ")]
    assert len(lines) == 1
    assert newest.name in lines[0]
    run.assert_as_uninterrupted()


def test_a_checkpoint_of_a_newer_format_is_left_alone(harmed: Callable[..., HarmedRun]) -> None:
    run = harmed()
    shutil.copytree(run.whole.folder, run.folder)
    for path in checkpoints(run.run):
        progress = read_json(path / "progress.json")
        (path / "progress.json").write_text(json.dumps(progress | {"format": 99}))
        resign(path / "progress.json")
    before = {path: path.read_bytes() for path in run.run.rglob("*.*") if path.is_file()}
    ended = run.forks.run(*run.whole.words, "--set", "train.max_steps=9", folder=run.folder)
    assert ended.code == EXIT_FAILED
    assert "format 99" in error_line(ended)
    kept = {path: path.read_bytes() for path in before if "checkpoints" in path.parts}
    assert kept == {path: data for path, data in before.items() if "checkpoints" in path.parts}


def test_with_every_checkpoint_damaged_no_training_starts_from_scratch(
    harmed: Callable[..., HarmedRun],
) -> None:
    """Not even on the second try: it would overwrite the model."""
    run = harmed()
    shutil.copytree(run.whole.folder, run.folder)
    for path in checkpoints(run.run):
        flip_a_bit(path / "model.safetensors", path)
    model, metrics = (run.run / "model.safetensors"), (run.run / "metrics.jsonl")
    before = model.read_bytes(), metrics.read_bytes()
    for _ in range(2):
        ended = run.forks.run(*run.whole.words, folder=run.folder)
        assert ended.code == EXIT_FAILED, ended
        assert "damaged" in error_line(ended)
        assert (model.read_bytes(), metrics.read_bytes()) == before
    assert run.forks.run("run", "mine", "--prompt", "x", folder=run.folder).code == 0
