"""Trainings in several processes, each a forked child that is placed as torchrun would place it."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.forked import Child, Ended, ForkServer
from support.training_runs import settings
from ys_llm.errors import EXIT_FAILED


def free_port() -> int:
    """Below those that the system gives to any other test before this one is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def places(size: int, *, life: int = 0, machines: int = 1) -> list[dict[str, str]]:
    """The variables of every process; with several machines the processes are divided."""
    common = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size // machines),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RESTART_COUNT": str(life),
    }
    each = size // machines
    return [
        common | {"RANK": str(r), "LOCAL_RANK": str(r % each), "GROUP_RANK": str(r // each)}
        for r in range(size)
    ]


@dataclass
class RankRuns:
    """Runs of one small corpus in `folder`, in one process or several."""

    forks: ForkServer
    folder: Path
    corpus: Path

    def words(self, *changes: str, config: str | None = None) -> list[str]:
        """`ys train` of the small run with these changes, or of a shipped configuration."""
        given = ["--config", config] if config else []
        every = [f"data.path={self.corpus}", *changes] if config else settings(self.corpus, changes)
        return ["train", *given, *(word for setting in every for word in ("--set", setting))]

    def train(self, name: str, size: int, *changes: str, config: str | None = None) -> Path:
        """Train to the end; the run's folder."""
        ended = self.end(self.start(size, f"run={name}", *changes, config=config))
        assert [e.code for e in ended] == [0] * size, f"{[e.code for e in ended]} " + "\n".join(
            e.stderr for e in ended
        )
        return self.folder / "runs" / name

    def start(
        self,
        size: int,
        *changes: str,
        faults: Mapping[int, Mapping[str, Any]] | None = None,
        folders: Mapping[int, Path] | None = None,
        config: str | None = None,
        **how: Any,
    ) -> list[Child]:
        """Start the processes, one alone or several; by rank, what befalls one, and where it is."""
        words, below = self.words(*changes, config=config), {"below": str(self.folder)}
        children = []
        for rank, place in enumerate(places(size, **how)):
            fault = {**below, **faults[rank]} if faults and rank in faults else {}
            folder = (folders or {}).get(rank, self.folder)
            environment = {} if size == 1 else place
            children.append(
                self.forks.start(*words, folder=folder, environment=environment, fault=fault)
            )
        return children

    def end(self, children: Sequence[Child]) -> list[Ended]:
        return [child.wait() for child in children]

    def kill(self, name: str, size: int, rank: int, at: int, *changes: str, life: int = 0) -> None:
        """Kill one process at this operation; the others, which lose it, must end by themselves."""
        faults = {rank: {"at": at, "kind": "kill"}}
        children = self.start(size, f"run={name}", *changes, faults=faults, life=life)
        codes = [ended.code for ended in self.end(children)]
        assert codes[rank] == -signal.SIGKILL
        assert all(code == EXIT_FAILED for other, code in enumerate(codes) if other != rank)
