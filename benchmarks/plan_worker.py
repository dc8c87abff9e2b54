"""One of the processes that benchmarks/plan.py starts where `ys train` is not what it measures.

python -m benchmarks.plan_worker reduce MEGABYTES
python -m benchmarks.plan_worker diloco CONFIG ROUNDS INNER_STEPS TEXT SETTING ...

The first times all-reduces between the processes, the second trains by DiLoCo between them.

Each process is told its place as torchrun tells it; number 0 writes a line of JSON for each
measurement.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.startup import read_split
from benchmarks.training import Workplace
from ys_llm.training.compute import process_settings
from ys_llm.training.diloco import DelayedNesterov
from ys_llm.training.memory import keep_freed_memory
from ys_llm.training.steps import forward_backward, optimizer_step
from ys_llm.training.trainer import Run, TrainState

_REPEATS = 7


def all_reduce_seconds(megabytes: float) -> float:
    """Seconds of an all-reduce of so many megabytes, the median."""
    tensor, seconds = torch.ones(int(megabytes * 1e6) // 4), []
    for _ in range(_REPEATS):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def diloco(run: Run, rounds: int, inner_steps: int) -> None:
    """Train by DiLoCo: `inner_steps` alone, then one step of the outer optimizer on the mean.

    A line for each round: its seconds, and those that the exchange took.
    """
    state, server = TrainState(), DelayedNesterov(list(run.model.parameters()), every=1)
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(inner_steps):
            optimizer_step(run, state, forward_backward(run, state))
        trained = time.perf_counter()
        _exchange(run, server)
        ended = time.perf_counter()
        _tell({"seconds": ended - began, "exchange_seconds": ended - trained})


@torch.no_grad()
def _exchange(run: Run, server: DelayedNesterov) -> None:
    own = list(run.model.parameters())
    changed = [before - after for before, after in zip(server.weights, own, strict=True)]
    message = torch.cat([tensor.flatten() for tensor in changed])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    parts = torch.split(message, [tensor.numel() for tensor in changed])
    server.apply([part.view_as(like) for part, like in zip(parts, changed, strict=True)])
    for parameter, weights in zip(own, server.weights, strict=True):
        parameter.copy_(weights)


def _tell(found: dict[str, float]) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)


def main() -> None:
    """Do what the words say."""
    what, *words = sys.argv[1:]
    dist.init_process_group("gloo")
    if what == "reduce":
        _tell({"seconds": all_reduce_seconds(float(words[0]))})
    else:
        name, rounds, steps, text, *settings = words
        keep_freed_memory()
        place = Workplace(Path(text), read_split(Path(text)), Path("runs"))
        run = place.run(name, settings, quick=False)
        with process_settings(run.config.train):
            diloco(run, int(rounds), int(steps))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
