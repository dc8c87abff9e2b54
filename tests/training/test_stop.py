"""A run stopped by a signal or a disk error and resumed ends as an uninterrupted one; locks."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.forked import until
from support.harmed_runs import HarmedRun, Uninterrupted, error_line, points
from support.power_cut import REFUSED
from support.training_runs import NEVER, TrainRun, column, rows_of, snapshot

from ys_llm.data import shards
from ys_llm.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, UserError
from ys_llm.evaluation import baselines
from ys_llm.runs.checkpoint import read_checkpoint
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import load_run
from ys_llm.training import loop, setup, trainer


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
    for at in written[::2] if kind == "EIO" else written[::4]:
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
    if ended.code:
        assert ended.code == EXIT_FAILED, (run.whole.operations[at], ended)
        assert str(Path("runs", "mine")) in error_line(ended)
    else:  # only the report could not be written
        assert "/report." in ended.stderr and "cannot be written" in ended.stderr
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
    last_step = len(run.whole.operations) - 1 - run.whole.operations[::-1].index(("step",))
    ended = run.harm(kind, at)
    codes = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": EXIT_TERMINATED}
    outside = at < first_step or at > last_step  # of the loop, which notices signals
    if kind == "SIGTERM twice" or (kind == "SIGTERM" and ended.code < 0 and outside):
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


@pytest.mark.parametrize("fate", ["moved", "deleted", "replaced"])
def test_a_run_whose_folder_is_gone_ends_and_is_not_recreated(
    harmed: Callable[..., HarmedRun], fate: str
) -> None:
    run = harmed()
    run.folder.mkdir()
    child = run.forks.start(
        *run.whole.words, "--set", f"train.max_steps={NEVER}", folder=run.folder
    )
    until(lambda: (run.run / "metrics.jsonl").exists() and rows_of(run.run))
    elsewhere = run.run.with_name("elsewhere")
    run.run.rename(elsewhere)
    if fate == "deleted":
        shutil.rmtree(elsewhere, ignore_errors=True)
    if fate == "replaced":
        shutil.copytree(elsewhere, run.run)
        replaced = snapshot(run.run)
    ended = child.wait()
    assert ended.code == EXIT_FAILED
    assert error_line(ended) == (
        "ys: runs/mine was moved or deleted while it was being trained. "
        "Move it back, and resume from its latest checkpoint: ys train --run mine"
    )
    assert "done " not in ended.stderr
    if fate == "replaced":
        assert snapshot(run.run) == replaced
    else:
        assert not run.run.exists()


def test_a_run_that_is_moved_before_its_last_evaluation_is_not_called_done(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(run: Path, **named: Any) -> Any:
        loaded = load_run(run, **named)
        run.rename(run.with_name("elsewhere"))
        return loaded

    monkeypatch.setattr(loop.model_files, "load_run", moved)
    with pytest.raises(UserError, match="was moved or deleted"):
        train_run()


MOMENTS = {
    "before the text is read": (setup, "load_split"),
    "before it is encoded": (setup, "load_or_tokenize"),
    "between the shard's folder and its files": (shards, "_write_tokens"),
    "before the shard is described": (shards, "_write_meta"),
    "before the baselines are kept": (baselines, "write_atomically"),
    "before the configuration is written": (setup, "to_yaml"),
    "before the first checkpoint": (trainer, "save_checkpoint"),
    "before the metrics are begun": (loop, "Metrics"),
    "in a step": (loop, "optimizer_step"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_moved_at_any_moment_leaves_nothing_behind(
    moment: str, train_run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an empty `cache/`; the longest time without a save makes no difference."""
    module, name = MOMENTS[moment]
    original, run = getattr(module, name), tmp_path / "runs" / "mine"

    def moved_first(*arguments: Any, **named: Any) -> Any:
        if run.exists():
            run.rename(run.with_name("elsewhere"))
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, moved_first)
    with pytest.raises(UserError, match="was moved or deleted while it was being trained"):
        train_run("train.checkpoint_interval=1000", "train.eval_interval=1000")
    assert not run.exists()


def test_the_lock_of_a_killed_training_does_not_block(harmed: Callable[..., HarmedRun]) -> None:
    run = harmed()
    run.folder.mkdir()
    first = run.forks.start(*run.whole.words, folder=run.folder)
    until(lambda: (run.run / ".ys-lock").exists())
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    run.resume()
    run.assert_as_uninterrupted()
