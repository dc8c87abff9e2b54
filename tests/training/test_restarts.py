"""Processes that die and are started again: the run ends bit for bit as if nobody had died."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from support.forked import ForkServer
from support.harmed_runs import assert_same_end
from support.rank_runs import RankRuns
from support.training_runs import rows_of, sentences, write_corpus

KILLS = 36
STEPS = 6
HARD = (
    "train.checkpoint_interval=2",
    "train.eval_interval=3",
    "data.batching=contiguous",
    "model.dropout=0.2",
)
LONG = ("train.max_steps=400", "train.checkpoint_interval=20", "train.eval_interval=50")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> RankRuns:
    folder = tmp_path_factory.mktemp("restarts")
    write_corpus(folder / "corpus", sentences(40))
    return RankRuns(forks, folder, folder / "corpus")


@pytest.mark.slow
def test_random_kills_of_either_process_change_no_bit(runs: RankRuns) -> None:
    """At files and steps of process 0, and steps of process 1; every third run twice."""
    unbroken, draw = runs.train("unbroken", 2, *HARD), random.Random(15)
    journal = runs.folder / "journal"
    counted = {0: {"journal": str(journal)}}
    runs.end(runs.start(2, "run=counted", *HARD, faults=counted))
    operations = len(journal.read_text().splitlines())
    killed: Counter[int] = Counter()
    for number in range(KILLS):
        name = f"killed-{number}"
        for life in range(2 if number % 3 == 0 else 1):
            rank = (number + life) % 2
            files = operations // (8 if life else 2)  # resumed, the run has less to write
            at = draw.randrange(1, STEPS - 4 * life) if rank else draw.randrange(files)
            runs.kill(name, 2, rank, at, *HARD, life=life)
            killed[rank] += 1
        ended = runs.end(runs.start(2, f"run={name}", *HARD, life=2))
        assert [e.code for e in ended] == [0, 0], ended
        assert_same_end(runs.folder / "runs" / name, unbroken, same_config=False)
    assert killed[0] >= KILLS // 2 <= killed[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ys", "torchrun"])
def test_a_launcher_replaces_killed_processes(runs: RankRuns, launcher: str) -> None:
    unbroken, name = runs.train(f"calm-{launcher}", 2, *HARD, *LONG), f"harmed-{launcher}"
    started = _start(runs, launcher, name)
    for step, victim in ((40, 0), (150, 1)):
        _wait_for_step(runs.folder / "runs" / name, step, started)
        workers = _workers(started.pid)
        os.kill(workers[victim].pid, signal.SIGKILL)
    _, said = started.communicate(timeout=180)
    assert started.returncode == 0, said
    assert re.findall(r"restart (\d)", said) == ["1", "2"]
    assert_same_end(runs.folder / "runs" / name, unbroken, same_config=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_saves_and_stops(runs: RankRuns, number: int) -> None:
    name = f"stopped-{number}"
    started = _start(runs, "ys", name)
    _wait_for_step(runs.folder / "runs" / name, 5, started)
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 128 + number, said
    assert said.count("stopped by") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_mistake_is_not_tried_again(runs: RankRuns) -> None:
    started = _start(runs, "ys", "mistaken", "train.batch_size=1")
    _, said = started.communicate(timeout=60)
    assert started.returncode == 2, said
    assert said.count("share batches of 1 rows") == 1


def _start(runs: RankRuns, launcher: str, name: str, *changes: str) -> subprocess.Popen[str]:
    words = [*runs.words(f"run={name}", *HARD, *LONG, *changes)]
    if launcher == "ys":
        command = ["-m", "ys_llm", *words, "--processes", "2", "--max-restarts", "3"]
    else:
        torchrun = "torch.distributed.run --standalone --nproc_per_node=2 --max-restarts=3"
        command = ["-m", *torchrun.split(), "-m", "ys_llm", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=runs.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _workers(launcher: int) -> list[psutil.Process]:
    """The training processes below a launcher, oldest first."""
    below = psutil.Process(launcher).children(recursive=True)
    found = [p for p in below if p.cmdline() and "resource_tracker" not in " ".join(p.cmdline())]
    busy = [p for p in found if not p.children() and p.memory_info().rss > 150e6]
    return sorted(busy, key=lambda process: process.pid)


def _wait_for_step(run: Path, step: int, started: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 120
    while time.monotonic() < ends and started.poll() is None:
        rows = rows_of(run) if (run / "metrics.jsonl").exists() else []
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(started.communicate(timeout=5))
