"""What a machine has and what of it this process may use, as its operating system tells.

All of it is read below one folder, `/` by default; what a system does not tell is None or empty:
only Linux has /proc and control groups.
"""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ys_llm import __version__

_NO_LIMIT = 1 << 60  # the first version of control groups writes "no limit" as a huge number


@dataclass(frozen=True)
class Machine:
    """Processor, memory and load. Memory in bytes; `load` counts runnable processes.

    `allowed_cores` are those the scheduler may give this process, `core_quota` the share of them
    that its control group may use, `free_bytes` what is left of memory and of its group's limit.
    """

    system: str
    architecture: str
    processor: str
    features: frozenset[str]
    logical_cores: int
    physical_cores: int | None
    allowed_cores: int
    core_quota: float | None
    load: float | None
    memory_bytes: int | None
    free_bytes: int | None
    limit_bytes: int | None
    swapped_bytes: int
    has_nvidia_driver: bool

    @property
    def usable_cores(self) -> int:
        """How many threads can work at once without sharing a core."""
        least = min(self.physical_cores or self.logical_cores, self.allowed_cores)
        return max(1, least if self.core_quota is None else min(least, int(self.core_quota)))


def inspect_machine(root: Path = Path("/")) -> Machine:
    """Describe this machine; `root` is the folder above `proc` and `sys`."""
    cores = _processors(root)
    described = cores[0] if cores else {}
    logical = os.cpu_count() or 1
    memory = _memory(root)
    left = [room for limit, room in _memory_limits(root)]
    free = [memory["MemAvailable"]] if "MemAvailable" in memory else []
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor=described.get("model name") or platform.processor() or platform.machine(),
        features=frozenset((described.get("flags") or described.get("Features") or "").split()),
        logical_cores=logical,
        physical_cores=_physical(cores),
        allowed_cores=_allowed(logical),
        core_quota=min(_core_quotas(root), default=None),
        load=_load(root),
        memory_bytes=memory.get("MemTotal") or _all_memory(),
        free_bytes=min([*free, *left], default=None),
        limit_bytes=min((limit for limit, _ in _memory_limits(root)), default=None),
        swapped_bytes=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        has_nvidia_driver=any(
            (root / path).exists() for path in ("proc/driver/nvidia/version", "dev/nvidiactl")
        ),
    )


def versions() -> dict[str, str]:
    """Of this program, of Python, and of the libraries that numbers depend on."""
    libraries = ("torch", "numpy", "tokenizers", "safetensors")
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"ys": __version__, "python": platform.python_version(), **installed}


def _processors(root: Path) -> list[dict[str, str]]:
    """The paragraphs of /proc/cpuinfo, one for each logical core."""
    paragraphs = _read(root / "proc/cpuinfo").strip().split("\n\n")
    return [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        for lines in (paragraph.splitlines() for paragraph in paragraphs)
        if lines
    ]


def _physical(cores: list[dict[str, str]]) -> int | None:
    known = {(c.get("physical id"), c["core id"]) for c in cores if "core id" in c}
    return len(known) or None


def _allowed(logical: int) -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return logical


def _memory(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    rows = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


def _all_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _load(root: Path) -> float | None:
    """The mean of the last minute."""
    told = _read(root / "proc/loadavg").split()
    if told:
        return float(told[0])
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups around this process, of both versions; not all may exist."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = base / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _core_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        told = _read(group / "cpu.max").split() or [
            _read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if all(number.isdigit() for number in told):  # "max" and "-1" are no limits
            yield int(told[0]) / int(told[1])


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, what is left of it) of each group; cached files count as free, as they can go."""
    for group in _groups(root, "memory"):
        limit, used = (
            _read(group / new).strip() or _read(group / old).strip()
            for new, old in (
                ("memory.max", "memory.limit_in_bytes"),
                ("memory.current", "memory.usage_in_bytes"),
            )
        )
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
            rows = (line.split() for line in _read(group / "memory.stat").splitlines())
            cached = next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
            yield int(limit), max(0, int(limit) - int(used) + cached)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
