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
_INSTRUCTIONS = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_DEFAULT_FPMATH_MODE"),
)
_NO_LIMIT = 1 << 60  # version 1 of control groups writes "no limit" as a huge number


@dataclass(frozen=True)
class Machine:
    """Processor, memory and load; memory in bytes, `load` in runnable processes.

    `logical_cores`: all of the machine; `allowed_cores`: those that the scheduler may give this
    process; `physical_cores`: how many of these do not share their units (None: unknown);
    `core_quota`: how many its control groups allow, and `quota_source` the file that says so;
    `free_bytes`: available memory, or what remains of the control group's limit where that is less.
    """

    system: str
    architecture: str
    processor: str
    features: frozenset[str]
    logical_cores: int
    physical_cores: int | None
    allowed_cores: int
    core_quota: float | None
    quota_source: str
    load: float | None
    memory_bytes: int
    free_bytes: int
    limit_bytes: int | None
    swapped_bytes: int
    has_nvidia_driver: bool

    @property
    def usable_cores(self) -> int:
        """How many threads can run at once without sharing a core."""
        return self.core_limit[0]

    @property
    def core_limit(self) -> tuple[int, str]:
        """How many threads can run at once without sharing a core, and what sets the number."""
        limits = [
            (self.logical_cores, "all cores"),
            (self.allowed_cores, f"CPU affinity: {self.allowed_cores} of {self.logical_cores}"),
        ]
        if self.physical_cores is not None:
            limits.append((self.physical_cores, "physical cores"))
        if self.core_quota is not None:
            quota = f"quota of {self.core_quota:g} cores in {self.quota_source}"
            limits.append((int(self.core_quota), quota))
        cores, source = min(limits, key=lambda limit: limit[0])
        return max(1, cores), source


def inspect_machine(root: Path = Path("/")) -> Machine:
    """Describe this machine; `root` is the folder that holds `proc`, `sys` and `dev`."""
    processor = _processor(root)
    memory = psutil.virtual_memory()
    limits = list(_memory_limits(root))
    logical = psutil.cpu_count() or 1
    allowed = _allowed_cores(root)
    quota, source = min(_core_quotas(root), default=(None, ""))
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor=processor.get("model name") or platform.processor() or platform.machine(),
        features=cpu_features(root),
        logical_cores=logical,
        physical_cores=_physical_cores(root, allowed),
        allowed_cores=len(allowed) or logical,
        core_quota=quota,
        quota_source=source,
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
    return frozenset(f for f in _all_features(root) if not f.startswith(_HIDDEN[cpu_level()]))


def cpu_level() -> str:
    """The value of `YS_CPU_LEVEL`: avx2, avx512 or native."""
    level = os.environ.get(CPU_LEVEL) or "native"
    if level not in _HIDDEN:
        raise UserError(
            f"{CPU_LEVEL}={level} is none of {', '.join(sorted(_HIDDEN))}", f"unset {CPU_LEVEL}"
        )
    return level


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


def thread_setting() -> str:
    """The variable that sets torch's number of threads, as NAME=VALUE; "" where none does."""
    names = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), "")


def instruction_settings() -> str:
    """The variables that keep libraries from instructions which the processor has."""
    return " ".join(f"{name}={value}" for name in _INSTRUCTIONS if (value := os.environ.get(name)))


def waiting_seconds(root: Path = Path("/")) -> float:
    """Seconds that this process' threads were ready to run and had no core; 0 where unknown."""
    files = (root / "proc/self/task").glob("*/schedstat")
    fields = [_read(file).split() for file in files]
    return sum(int(field[1]) for field in fields if len(field) == 3) / 1e9


def _allowed_cores(root: Path) -> frozenset[int]:
    """Numbers of the logical cores that the scheduler may use; empty where unknown."""
    for line in _read(root / "proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return _numbers(line.partition(":")[2])
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset()


def _physical_cores(root: Path, allowed: frozenset[int]) -> int | None:
    """Cores that do not share their units among the allowed ones: hyper-threads count once."""
    folder, cores = root / "sys/devices/system/cpu", set[str]()
    for number in allowed:
        topology = folder / f"cpu{number}/topology"
        siblings = _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list")
        if not siblings:
            physical = psutil.cpu_count(logical=False)
            return physical if physical is None else min(physical, len(allowed))
        cores.add(siblings.strip())
    return len(cores) or psutil.cpu_count(logical=False)


def _numbers(text: str) -> frozenset[int]:
    """The numbers of a list such as 0-3,8."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


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
    mounts = _mounts(root)
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        name = controller if controllers else ""
        base, top = mounts.get(name, (root / "sys/fs/cgroup" / name, "/"))
        inside = path.removeprefix(top) if top != "/" else path
        group = base / inside.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _mounts(root: Path) -> dict[str, tuple[Path, str]]:
    """Where control groups are mounted: (folder, the group that it shows), "" for version 2.

    A container of version 1 sees its own group at the top, under the path of the host.
    """
    found: dict[str, tuple[Path, str]] = {}
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        names = kind[2].split(",") if kind[0] == "cgroup" else [""]
        for name in names:
            found.setdefault(name, (root / fields[4].lstrip("/"), fields[3]))
    return found


def _core_quotas(root: Path) -> Iterator[tuple[float, str]]:
    """(cores, the file that says so) of every group with a limit."""
    for group in _groups(root, "cpu"):
        file = group / "cpu.max"
        numbers = _read(file).split()
        if not numbers:
            file = group / "cpu.cfs_quota_us"
            numbers = [_read(file).strip(), _read(group / "cpu.cfs_period_us").strip()]
        if all(n.isdigit() and int(n) > 0 for n in numbers):  # "max" and "-1" mean no limit
            yield int(numbers[0]) / int(numbers[1]), f"/{file.relative_to(root)}"


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
