"""Two networks of one machine with a link between them, which can be slowed down and cut.

Network namespaces of Linux, for tests and measurements of trainings on two machines. They need root
and iproute2 (`ip`, `tc`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

DEVICE = "link0"
ADDRESSES = ("10.213.7.1", "10.213.7.2")
_MOST_QUEUED_MS, _BURST_BYTES = 200, 256_000  # of a limited link


def are_possible() -> bool:
    """Whether this machine can make such networks."""
    tools = shutil.which("ip") and shutil.which("tc")
    return bool(tools) and os.geteuid() == 0 and os.path.exists("/proc/self/ns/net")


@dataclass(frozen=True)
class Link:
    """The link between two networks, by the names of both."""

    networks: tuple[str, str]

    def inside(self, side: int, words: Sequence[str]) -> list[str]:
        """The command that runs these words in one of the networks."""
        return ["ip", "netns", "exec", self.networks[side], *words]

    def limit(self, mbit: float) -> None:
        """Let so many megabits a second through, each way."""
        limits = ["rate", f"{mbit:g}mbit", "burst", str(_BURST_BYTES)]
        for name in self.networks:
            words = ["qdisc", "replace", "dev", DEVICE, "root", "tbf", *limits]
            _run("tc", "-n", name, *words, "latency", f"{_MOST_QUEUED_MS}ms")

    def cut(self) -> None:
        """Nothing goes through any more, and nobody is told; until `mend`."""
        for name in self.networks:
            _run("tc", "-n", name, "qdisc", "replace", "dev", DEVICE, "root", "blackhole")

    def mend(self) -> None:
        """Everything goes through again, as fast as it can."""
        for name in self.networks:
            _run("tc", "-n", name, "qdisc", "delete", "dev", DEVICE, "root")

    def switch(self, *, on: bool) -> None:
        """Switch the first end of the link off, of which both machines are told, or on again."""
        _run("ip", "-n", self.networks[0], "link", "set", DEVICE, "up" if on else "down")

    def sent_bytes(self, device: str = DEVICE) -> int:
        """What both networks have sent by a device, with the headers of all packets."""
        total = 0
        for name in self.networks:
            words = ("ip", "-n", name, "-json", "-stats", "link", "show", "dev", device)
            (found,) = json.loads(_run(*words))
            total += found["stats64"]["tx"]["bytes"]
        return total


@contextmanager
def two_networks() -> Iterator[Link]:
    """A pair of networks with a link, each with its loopback, until the context ends."""
    names = (f"ys-{os.getpid()}-a", f"ys-{os.getpid()}-b")
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        ends = ("netns", names[0]), ("peer", "name", DEVICE, "netns", names[1])
        _run("ip", "link", "add", DEVICE, *ends[0], "type", "veth", *ends[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _run("ip", "-n", name, "link", "set", device, "up")
        yield Link(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
