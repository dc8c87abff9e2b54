"""What this machine has, and how much of it this process may use.

Cores, memory and load come from psutil. On Linux, the limits of the scheduler and of the control
groups (versions 1 and 2) around this process apply on top: psutil does not know them.
"""

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from ys_llm import __version__
from ys_llm.errors import UserError

CPU_LEVEL = "YS_CPU_LEVEL"
_HIDDEN: dict[str, tuple[str, ...]] = {  # by level: the features whose names begin so
    "native": (),
    "avx512": ("avx512_bf16", "avx512_fp16", "avx10", "amx"),
    "avx2": ("avx512", "avx10", "avx_", "avxvnni", "amx"),
}
_CLASSES = (  # the first that the processor has
    ("amx_bf16", "AMX"),
    ("avx512_bf16", "AVX512-BF16"),
    ("avx512f", "AVX-512"),
    ("avx2", "AVX2"),
    ("asimd", "NEON"),
)
_NO_LIMIT = 1 << 60  # version 1 of control groups writes "no limit" as a huge number


@dataclass(frozen=True)
class Machine:
    """Processor, memory and load; memory in bytes, `load` in runnable processes.

    `allowed_cores`: the cores that the scheduler may give this process; `core_quota`: how many of
    them its control group may use; `free_bytes`: available memory, or what remains of the control
    group's limit where that is less.
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
    memory_bytes: int
    free_bytes: int
    limit_bytes: int | None
    swapped_bytes: int
    has_nvidia_driver: bool

    @property
    def usable_cores(self) -> int:
        """How many threads can run at once without sharing a core."""
        cores = min(self.physical_cores or self.logical_cores, self.allowed_cores)
        return max(1, cores if self.core_quota is None else min(cores, int(self.core_quota)))


def inspect_machine(root: Path = Path("/")) -> Machine:
    """Describe this machine; `root` is the folder that holds `proc`, `sys` and `dev`."""
    processor = _processor(root)
    memory = psutil.virtual_memory()
    limits = list(_memory_limits(root))
    logical = psutil.cpu_count() or 1
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor=processor.get("model name") or platform.processor() or platform.machine(),
        features=cpu_features(root),
        logical_cores=logical,
        physical_cores=psutil.cpu_count(logical=False),
        allowed_cores=_allowed_cores(logical),
        core_quota=min(_core_quotas(root), default=None),
        load=_load(),
        memory_bytes=memory.total,
        free_bytes=min([memory.available, *(remaining for _, remaining in limits)]),
        limit_bytes=min((limit for limit, _ in limits), default=None),
        swapped_bytes=_swapped_bytes(),
        has_nvidia_driver=any(
            (root / path).exists() for path in ("proc/driver/nvidia/version", "dev/nvidiactl")
        ),
    )


def cpu_features(root: Path = Path("/")) -> frozenset[str]:
    """The instruction sets that may be used here, as /proc/cpuinfo names them; empty without it.

    `YS_CPU_LEVEL` (avx2, avx512, native) hides the newer ones, to imitate an older processor.
    """
    level = os.environ.get(CPU_LEVEL) or "native"
    if level not in _HIDDEN:
        raise UserError(
            f"{CPU_LEVEL}={level} is none of {', '.join(sorted(_HIDDEN))}", f"unset {CPU_LEVEL}"
        )
    return frozenset(f for f in _all_features(root) if not f.startswith(_HIDDEN[level]))


def cpu_class(root: Path = Path("/")) -> str:
    """AMX, AVX512-BF16, AVX-512, AVX2, NEON or other: by the best unit for matmuls."""
    features = cpu_features(root)
    found = next((name for feature, name in _CLASSES if feature in features), "")
    is_arm = platform.machine().lower() in ("arm64", "aarch64")  # macOS has no /proc
    return found or ("NEON" if is_arm and not features else "other")


@cache
def _all_features(root: Path) -> frozenset[str]:
    processor = _processor(root)
    return frozenset((processor.get("flags") or processor.get("Features") or "").split())


def versions() -> dict[str, str]:
    """Versions of ys, of Python, and of the libraries that numbers depend on."""
    libraries = ("torch", "numpy", "tokenizers", "safetensors")
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"ys": __version__, "python": platform.python_version(), **installed}


def _processor(root: Path) -> dict[str, str]:
    """The entry of the first core in /proc/cpuinfo: its name and its instruction sets."""
    first = _read(root / "proc/cpuinfo").strip().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _allowed_cores(logical: int) -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return logical


def _load() -> float | None:
    """Runnable processes, averaged over the last minute."""
    try:
        return psutil.getloadavg()[0]
    except OSError:
        return None


def _swapped_bytes() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of /proc/vmstat, missing in containers
        return int(psutil.swap_memory().used)


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
        numbers = _read(group / "cpu.max").split() or [
            _read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if all(number.isdigit() for number in numbers):  # "max" and "-1" mean no limit
            yield int(numbers[0]) / int(numbers[1])


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, what remains of it) of each group; cached files count as free: they are evictable."""
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
