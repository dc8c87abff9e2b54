"""A run that is hurt at any instant and started again ends bit for bit as if nothing had been.

Killed, stopped, out of disk, without power, with damaged checkpoints: in processes of their own,
at file operations and steps drawn by seed, most of them inside the writing of a checkpoint.
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
    NEVER,
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
POWER_CUTS = 7  # of each kind: one for each part of a training
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
    # The first steps at this rate make weights that are no number; going back makes it harmless.
    "rollback": (*OFTEN, "train.learning_rate=1e30", "train.rollback_lr_factor=1e-33"),
}


@dataclass(frozen=True)
class Whole:
    """The uninterrupted run: its words, its folder, and the file operations that it made."""

    words: tuple[str, ...]
    folder: Path
    operations: list[tuple[str, ...]]  # name, path below the folder, new path of a renaming

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "mine"


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> dict[str, Whole]:
    base = tmp_path_factory.mktemp("whole")
    write_corpus(base / "corpus", sentences(40))
    made = {}
    for name, changes in CONFIGURATIONS.items():
        folder, journal = base / name, base / f"{name}.journal"
        folder.mkdir()
        words = ["train"]
        for setting in settings(base / "corpus", changes):
            words += ["--set", setting]
        fault = {"below": str(folder), "journal": str(journal)}
        ended = forks.run(*words, folder=folder, fault=fault)
        assert ended.code == 0, ended.stderr
        lines = journal.read_text().replace(f"{folder}/", "").splitlines()
        operations = [tuple(line.rstrip().split("\t")) for line in lines]
        made[name] = Whole(tuple(words), folder, operations)
    return made


@dataclass
class Patient:
    """A run like the whole one, which is hurt and started again."""

    whole: Whole
    folder: Path
    forks: ForkServer
    cuts: int = 0

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "mine"

    def suffer(self, kind: str, at: int) -> Ended:
        """Start it, and let something happen at operation `at`."""
        self.folder.mkdir(exist_ok=True)
        survivors = self.folder.with_name(f"after-{self.cuts}")
        fault = {"below": str(self.folder), "at": at, "kind": kind, "survivors": str(survivors)}
        ended = self.forks.run(*self.whole.words, folder=self.folder, fault=fault)
        if "power cut" in kind and ended.code == -signal.SIGKILL:
            self.folder, self.cuts = survivors, self.cuts + 1
        return ended

    def go_on(self, *changes: str) -> Ended:
        """Start it again, and let it end."""
        words = [word for change in changes for word in ("--set", change)]
        ended = self.forks.run(*self.whole.words, *words, folder=self.folder)
        assert ended.code == 0, ended.stderr
        return ended

    def assert_as_whole(self, **how: bool) -> None:
        assert_same_end(self.run, self.whole.run, **how)


@pytest.fixture
def patient(tmp_path: Path, forks: ForkServer, wholes: dict[str, Whole]) -> Callable[..., Patient]:
    return lambda name="shuffled": Patient(wholes[name], tmp_path / "run", forks)


def without_timings(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMINGS}


def assert_same_end(run: Path, other: Path, *, same_checkpoints: bool = True) -> None:
    """The same weights, moments, random numbers, carried state, metrics, samples and model.

    A run that was stopped has saved at that step too, and may keep that checkpoint for another.
    """
    assert_same_training(run, other)
    assert [*map(without_timings, rows_of(run))] == [*map(without_timings, rows_of(other))]
    for name in ("model.safetensors", "config.json", "config.yaml", "tokenizer.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = checkpoints(run), checkpoints(other)
    if same_checkpoints:
        assert [path.name for path in ours] == [path.name for path in theirs]
    saved = [read_checkpoint(found[-1]).progress for found in (ours, theirs)]
    assert without_timings(saved[0]) == without_timings(saved[1])
    assert undone(run) == undone(other)
    leftovers = [str(path) for path in run.rglob(".*") if path.name != ".ys-lock"]
    assert not leftovers


def undone(run: Path) -> Any:
    path = run / "rollbacks.json"
    return json.loads(path.read_text()) if path.exists() else None


def moment_of(operation: tuple[str, ...]) -> str:
    """In what part of a training this operation is made."""
    name, path, target = (*operation, "", "")[:3]
    if name == "step":
        return "between the steps"
    if path.endswith("metrics.jsonl"):
        return "metrics"
    if re.search(r"checkpoints/\.step-\d+\.tmp", path):
        return "a checkpoint's name" if target else "a checkpoint's files"
    if "checkpoints/" in path:
        return "an old checkpoint's end"
    if "/cache" in path or path.count("/") < 2:
        return "the beginning"
    return "the run's own files"


def points(whole: Whole, *, seed: str, count: int) -> list[int]:
    """Numbers of operations, drawn alike from every part of a training."""
    draw, parts = random.Random(seed), defaultdict(list)
    for number, operation in enumerate(whole.operations):
        parts[moment_of(operation)].append(number)
    names = sorted(parts)
    return [draw.choice(parts[names[i % len(names)]]) for i in range(count)]


def said(ended: Ended) -> str:
    """The one line of a command that failed."""
    assert "Traceback" not in ended.stderr, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("ys: ")]
    assert lines == [ended.last_line], ended.stderr
    return lines[0]


def test_the_points_fall_into_every_part_of_a_training(wholes: dict[str, Whole]) -> None:
    hit = set()
    for name in CONFIGURATIONS:
        drawn = points(wholes[name], seed=name, count=KILL_POINTS)
        operations = [wholes[name].operations[number] for number in drawn]
        moments = {moment_of(operation) for operation in operations}
        assert moments == {moment_of(operation) for operation in wholes[name].operations}
        assert len(moments) == 7
        hit |= {operation[0] for operation in operations}
    assert {"write", "fsync", "replace", "step"} <= hit


@pytest.mark.parametrize("number", range(KILL_POINTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_the_whole_one(
    patient: Callable[..., Patient], name: str, number: int
) -> None:
    run = patient(name)
    at = points(run.whole, seed=name, count=KILL_POINTS)[number]
    assert run.suffer("kill", at).code == -signal.SIGKILL
    assert "damaged" not in run.go_on().stderr
    run.assert_as_whole()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_killed_again_and_again_ends_as_the_whole_one(
    patient: Callable[..., Patient], name: str
) -> None:
    run, draw = patient(name), random.Random(name)
    for _ in range(6):
        kind = draw.choice(("kill", "kill", "power cut", "unlucky power cut"))
        run.suffer(kind, draw.randrange(len(run.whole.operations)))
    run.go_on()
    run.assert_as_whole()


@pytest.mark.parametrize("kind", ["power cut", "unlucky power cut"])
@pytest.mark.parametrize("number", range(POWER_CUTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_without_power_ends_as_the_whole_one(
    patient: Callable[..., Patient], name: str, number: int, kind: str
) -> None:
    run = patient(name)
    at = points(run.whole, seed=f"{name} {kind}", count=POWER_CUTS)[number]
    assert run.suffer(kind, at).code == -signal.SIGKILL
    assert "damaged" not in run.go_on().stderr
    run.assert_as_whole()


def operations_of_a_save(whole: Whole) -> list[int]:
    """The writing of one checkpoint, with its row of metrics and the end of an older one."""
    steps = [n for n, operation in enumerate(whole.operations) if operation[0] == "step"]
    return [*range(steps[3] + 1, steps[4])]


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_in_a_save_costs_nothing(
    patient: Callable[..., Patient], tmp_path: Path, kind: str
) -> None:
    run = patient()
    save = operations_of_a_save(run.whole)
    names = [run.whole.operations[at][0] for at in save]
    assert {"open", "write", "fsync", "mkdir"} <= set(names)
    written = [at for at, name in zip(save, names, strict=True) if name in ("write", "fsync")]
    for at in written if kind == "EIO" else written[::3]:
        run.folder = tmp_path / f"at-{at}"
        ended = run.suffer(kind, at)
        assert ended.code == EXIT_FAILED, (run.whole.operations[at], ended)
        assert re.search("No space left" if kind == "ENOSPC" else "Input/output error", said(ended))
        assert all(read_checkpoint(path) for path in checkpoints(run.run))
        run.go_on()  # space was freed
        run.assert_as_whole()


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "EROFS"])
def test_a_disk_that_fails_anywhere_costs_nothing(
    patient: Callable[..., Patient], kind: str, number: int
) -> None:
    run = patient("contiguous")
    at = points(run.whole, seed=kind, count=7)[number]
    ended = run.suffer(kind, at)
    if not any(operation[0] in REFUSED[kind] for operation in run.whole.operations[at:]):
        return  # removing is all that was left to do
    assert ended.code == EXIT_FAILED, (run.whole.operations[at], ended)
    assert str(Path("runs", "mine")) in said(ended)
    run.go_on()
    run.assert_as_whole()


STOPS = ("SIGINT", "SIGINT twice", "SIGTERM", "SIGTERM twice")


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("kind", STOPS)
def test_a_stopped_run_ends_as_the_whole_one(
    patient: Callable[..., Patient], kind: str, number: int
) -> None:
    run = patient("dropout")
    at = points(run.whole, seed=kind, count=7)[number]
    first_step = run.whole.operations.index(("step",))
    ended = run.suffer(kind, at)
    codes = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": EXIT_TERMINATED}
    if kind == "SIGTERM twice" or (kind == "SIGTERM" and ended.code < 0 and at < first_step):
        assert ended.code == -signal.SIGTERM
    elif ended.code:  # else it came when the last step was done already
        assert ended.code == codes[kind.removesuffix(" twice")]
        assert at < first_step or said(ended).endswith("type: ys train --run mine")
    else:
        assert at > run.whole.operations.index(("step",)) and "twice" not in kind
    assert all(read_checkpoint(path) for path in checkpoints(run.run))
    run.go_on()
    run.assert_as_whole(same_checkpoints=False)


@pytest.mark.parametrize("pause", [0.0, 0.003, 0.01, 0.03])
def test_a_second_ctrl_c_stops_at_once(patient: Callable[..., Patient], pause: float) -> None:
    run = patient()
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
    assert f"step {newest:,}" in said(ended)
    assert said(ended).endswith("type: ys train --run mine")
    run.go_on(f"train.max_steps={newest + 3}")
    assert column(run.run, "step") == [*range(1, newest + 4)]


def test_two_trainings_of_one_run_do_not_meet(patient: Callable[..., Patient]) -> None:
    run = patient()
    run.folder.mkdir()
    endless = ("--set", f"train.max_steps={NEVER}")
    first = run.forks.start(*run.whole.words, *endless, folder=run.folder)
    until(lambda: (run.run / "metrics.jsonl").exists() and rows_of(run.run))
    for words in (run.whole.words, ("train", "clean", "--yes", "--run", "mine")):
        second = run.forks.run(*words, folder=run.folder)
        assert second.code == EXIT_FAILED
        assert f"is being trained by process {first.pid} " in said(second)
    done = len(rows_of(run.run))
    until(lambda: len(rows_of(run.run)) > done)
    first.send(signal.SIGINT)
    assert first.wait().code == EXIT_INTERRUPTED
    steps = column(run.run, "step")
    assert steps == [*range(1, len(steps) + 1)]
    assert run.forks.run("run", "mine", "--prompt", "x", folder=run.folder).code == 0


def test_the_lock_of_a_killed_training_does_not_block(patient: Callable[..., Patient]) -> None:
    run = patient()
    run.folder.mkdir()
    first = run.forks.start(*run.whole.words, folder=run.folder)
    until(lambda: (run.run / ".ys-lock").exists())
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    run.go_on()
    run.assert_as_whole()


# Damaged checkpoints.


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
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    patient: Callable[..., Patient], file: str, damage: Callable[[Path, Path], None]
) -> None:
    run = patient("dropout")  # where no two checkpoints hold the same random numbers
    shutil.copytree(run.whole.folder, run.folder)
    newest, before = newest_two(run.run)
    damage(newest / file, before / file)
    ended = run.go_on()
    lines = [line for line in ended.stderr.splitlines() if line.startswith("damaged ")]
    assert len(lines) == 1
    assert newest.name in lines[0]
    run.assert_as_whole()


def test_a_checkpoint_of_a_newer_format_is_left_alone(patient: Callable[..., Patient]) -> None:
    run = patient()
    shutil.copytree(run.whole.folder, run.folder)
    for path in checkpoints(run.run):
        progress = read_json(path / "progress.json")
        (path / "progress.json").write_text(json.dumps(progress | {"format": 99}))
        resign(path / "progress.json")
    before = {path: path.read_bytes() for path in run.run.rglob("*.*") if path.is_file()}
    ended = run.forks.run(*run.whole.words, "--set", "train.max_steps=9", folder=run.folder)
    assert ended.code == EXIT_FAILED
    assert "format 99" in said(ended)
    kept = {path: path.read_bytes() for path in before if "checkpoints" in path.parts}
    assert kept == {path: data for path, data in before.items() if "checkpoints" in path.parts}


def test_where_every_checkpoint_is_damaged_nothing_begins_anew(
    patient: Callable[..., Patient],
) -> None:
    """Not even when asked twice: the model that there is would be trained over."""
    run = patient()
    shutil.copytree(run.whole.folder, run.folder)
    for path in checkpoints(run.run):
        flip_a_bit(path / "model.safetensors", path)
    model, metrics = (run.run / "model.safetensors"), (run.run / "metrics.jsonl")
    before = model.read_bytes(), metrics.read_bytes()
    for _ in range(2):
        ended = run.forks.run(*run.whole.words, folder=run.folder)
        assert ended.code == EXIT_FAILED, ended
        assert "damaged" in said(ended)
        assert (model.read_bytes(), metrics.read_bytes()) == before
    assert run.forks.run("run", "mine", "--prompt", "x", folder=run.folder).code == 0
