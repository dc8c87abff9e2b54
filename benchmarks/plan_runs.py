"""Trainings in networks of their own, watched from outside: seconds, bytes sent, peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.networks import ADDRESSES, DEVICE, Link
from ys_llm.config.sources import load_config
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.runs.history import read_metrics

WARM_UP = 3  # steps that are not counted
_LONGEST_SECONDS, _LOOK_SECONDS = 240.0, 0.02
_PORT = 29411


@dataclass(frozen=True)
class Placing:
    """How many processes there are, and where; `threads` of each."""

    processes: int
    machines: int
    threads: int

    @property
    def device(self) -> str:
        """The one that they reach each other by."""
        return "lo" if self.machines == 1 else DEVICE


def start(link: Link, placing: Placing, words: Sequence[str], folder: Path) -> list[Any]:
    """Start a process of python for each place, in the networks of their machines."""
    each = placing.processes // placing.machines
    started = []
    for rank in range(placing.processes):
        place = {
            "RANK": rank,
            "WORLD_SIZE": placing.processes,
            "LOCAL_RANK": rank % each,
            "LOCAL_WORLD_SIZE": each,
            "GROUP_RANK": rank // each,
            "MASTER_ADDR": "127.0.0.1" if placing.machines == 1 else ADDRESSES[0],
            "MASTER_PORT": _PORT,
            "GLOO_SOCKET_IFNAME": placing.device,
        }
        told = {key: str(value) for key, value in place.items()} if placing.processes > 1 else {}
        paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(placing.threads)}
        here = folder / f"process-{rank}"
        here.mkdir(exist_ok=True)
        with (here / "said").open("w") as said:
            started.append(
                subprocess.Popen(
                    link.inside(rank // each, [sys.executable, *words]),
                    cwd=here,
                    env={**os.environ, **paths, **told},
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                )
            )
    return started


def trained(
    link: Link, placing: Placing, config: str, settings: Sequence[str], steps: int, folder: Path
) -> dict[str, Any]:
    """Train so many steps after those that warm up; seconds of each, bytes a step, peak memory.

    The memory is that of the last process, which neither saves nor evaluates where there are two.
    """
    total = WARM_UP + steps + 1  # the last one is followed by an evaluation
    changes = [*settings, "run=run", f"train.max_steps={total}", f"train.threads={placing.threads}"]
    words = ["-m", "ys_llm", "train", "--config", config]
    words += [word for one in changes for word in ("--set", one)]
    processes = start(link, placing, words, folder)
    run, ends = folder / "process-0/runs/run", time.monotonic() + _LONGEST_SECONDS
    sent = []
    for step in (WARM_UP, WARM_UP + steps):
        _wait_for(run, step, processes, ends)
        sent.append(link.sent_bytes(placing.device))
    peak = _peak_bytes(processes[-1].pid)
    for process in processes:
        if process.wait(timeout=_LONGEST_SECONDS):
            raise RuntimeError(_said(folder))
    rows = read_metrics(run / "metrics.jsonl")[WARM_UP : WARM_UP + steps]
    (stage,) = load_config(run / "config.yaml").config.train.plan
    tokens = stage.batch_size * stage.seq_len
    return {
        "step_seconds": [round(row["step_seconds"], 4) for row in rows],
        "tokens_per_second": tokens / statistics.median(row["step_seconds"] for row in rows),
        "bytes_per_token": (sent[1] - sent[0]) / steps / tokens,
        "peak_bytes": peak,
        "vocab_size": Tokenizer.load(run / "tokenizer.json").vocab_size,  # of a short text
    }


def told(link: Link, placing: Placing, words: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """What a worker (benchmarks/plan_worker.py) writes, with the bytes sent until each line."""
    processes = start(link, placing, ["-m", "benchmarks.plan_worker", *words], folder)
    lines = []
    for line in processes[0].stdout:
        lines.append({**json.loads(line), "sent_bytes": link.sent_bytes(placing.device)})
    for process in processes:
        if process.wait(timeout=_LONGEST_SECONDS):
            raise RuntimeError(_said(folder))
    return lines


def _wait_for(run: Path, step: int, processes: Sequence[Any], ends: float) -> None:
    path = run / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < step:
        if time.monotonic() > ends or any(process.poll() for process in processes):
            for process in processes:
                process.kill()
            raise RuntimeError(_said(run.parents[2]))
        time.sleep(_LOOK_SECONDS)


def _said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("process-*/said")))


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(peak)
