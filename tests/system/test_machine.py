"""What is said of a machine: of this one as the system has it, of others from their files."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import psutil
import pytest
import safetensors
import tokenizers
import torch

from ys_llm import __version__
from ys_llm.errors import UserError
from ys_llm.system.machine import (
    Machine,
    cpu_class,
    cpu_features,
    inspect_machine,
    versions,
    waiting_seconds,
)

Write = Callable[[str, str], None]
TWO_SOCKETS = "\n\n".join(
    f"processor\t: {n}\nmodel name\t: Xeon\nphysical id\t: {n // 4}\ncore id\t\t: {n % 4 // 2}\n"
    "flags\t\t: fpu avx2 amx_bf16"
    for n in range(8)
)
ARM = "\n\n".join(f"processor\t: {n}\nFeatures\t: fp asimd sve" for n in range(4))
AVAILABLE = 9_000_000


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Give the machine below `tmp_path` a file."""

    def write_file(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write_file


def test_this_machine_is_described_as_its_system_has_it() -> None:
    machine = inspect_machine()
    assert machine.logical_cores == os.cpu_count()
    assert machine.architecture == platform.machine()
    assert 1 <= machine.usable_cores <= machine.logical_cores
    if hasattr(os, "sched_getaffinity"):
        assert machine.allowed_cores == len(os.sched_getaffinity(0))
    if machine.memory_bytes is not None:
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert machine.memory_bytes == pytest.approx(pages, rel=0.01)
        assert 0 < (machine.free_bytes or 1) <= machine.memory_bytes


def test_versions_are_those_of_what_is_loaded() -> None:
    assert versions() == {
        "ys": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
    }


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MB of memory, 9 of them available."""
    found = SimpleNamespace(total=16_000_000, available=AVAILABLE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)


def test_a_machine_without_proc_is_described_too(tmp_path: Path, memory: None) -> None:
    """macOS and the BSDs: memory above all, which `batch_size: auto` divides by."""
    machine = inspect_machine(tmp_path)
    assert machine.logical_cores == os.cpu_count()
    assert machine.processor
    assert machine.features == frozenset()
    assert machine.core_quota is None
    assert (machine.memory_bytes, machine.free_bytes) == (16_000_000, AVAILABLE)
    assert machine.limit_bytes is None
    assert machine.swapped_bytes >= 0
    assert not machine.has_nvidia_driver


def test_the_processor_is_named_with_its_instruction_sets(tmp_path: Path, write: Write) -> None:
    write("proc/cpuinfo", TWO_SOCKETS)
    machine = inspect_machine(tmp_path)
    assert machine.processor == "Xeon"
    assert machine.features == {"fpu", "avx2", "amx_bf16"}


NEW = "fpu avx avx2 fma f16c avx_vnni avx512f avx512vl avx512_bf16 amx_bf16 amx_tile"


@pytest.mark.parametrize(
    ("level", "hidden", "cpu"),
    [
        ("", set(), "AMX"),
        ("native", set(), "AMX"),
        ("avx512", {"avx512_bf16", "amx_bf16", "amx_tile"}, "AVX-512"),
        (
            "avx2",
            {"avx_vnni", "avx512f", "avx512vl", "avx512_bf16", "amx_bf16", "amx_tile"},
            "AVX2",
        ),
    ],
)
def test_a_level_hides_the_newer_instruction_sets(
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    hidden: set[str],
    cpu: str,
) -> None:
    write("proc/cpuinfo", f"flags\t\t: {NEW}\n")
    monkeypatch.setenv("YS_CPU_LEVEL", level)
    assert cpu_features(tmp_path) == set(NEW.split()) - hidden
    assert inspect_machine(tmp_path).features == cpu_features(tmp_path)
    assert cpu_class(tmp_path) == cpu


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YS_CPU_LEVEL", "sse2")
    with pytest.raises(UserError, match="YS_CPU_LEVEL=sse2 is none of avx2, avx512, native"):
        cpu_features()


@pytest.mark.parametrize(
    ("flags", "architecture", "cpu"),
    [
        ("flags: fpu avx2 avx512f avx512_bf16", "x86_64", "AVX512-BF16"),
        ("flags: fpu sse2", "x86_64", "other"),
        ("Features: fp asimd bf16", "aarch64", "NEON"),
        ("", "arm64", "NEON"),
        ("", "x86_64", "other"),
    ],
)
def test_processors_are_told_apart_by_class(
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    architecture: str,
    cpu: str,
) -> None:
    monkeypatch.delenv("YS_CPU_LEVEL", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    write("proc/cpuinfo", f"{flags}\n")
    assert cpu_class(tmp_path) == cpu


def test_an_arm_processor_is_described_too(tmp_path: Path, write: Write) -> None:
    write("proc/cpuinfo", ARM)
    machine = inspect_machine(tmp_path)
    assert machine.features == {"fp", "asimd", "sve"}
    assert machine.processor


def test_an_nvidia_driver_is_found(tmp_path: Path, write: Write) -> None:
    write("proc/driver/nvidia/version", "NVRM version: 550\n")
    assert inspect_machine(tmp_path).has_nvidia_driver


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/gone", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/box",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/../..", "sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_the_tightest_quota_of_cores_counts(
    tmp_path: Path, write: Write, files: dict[str, str], quota: float | None
) -> None:
    for path, text in files.items():
        write(path, text + "\n")
    assert inspect_machine(tmp_path).core_quota == quota


def siblings(file: str) -> dict[str, str]:
    """Eight logical cores, of which n and n + 4 share one."""
    folder = "sys/devices/system/cpu"
    return {f"{folder}/cpu{n}/topology/{file}": f"{n % 4},{n % 4 + 4}" for n in range(8)}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        (  # version 2: the group's own limit is looser than that of the group around it
            {
                "proc/self/cgroup": "0::/pod/box",
                "sys/fs/cgroup/pod/box/cpu.max": "400000 100000",
                "sys/fs/cgroup/pod/cpu.max": "100000 100000",
            },
            (1, "quota of 1 cores in /sys/fs/cgroup/pod/cpu.max"),
        ),
        (  # version 1 in a container: the path is the host's, the mount shows the group alone
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/77/inner",
                "proc/self/mountinfo": "30 23 0:28 /docker/77 /sys/fs/cgroup/cpu,cpuacct ro "
                "- cgroup cgroup rw,cpu,cpuacct",
                "sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            (2, "quota of 2 cores in /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"),
        ),
        (  # both versions at once: version 2 is mounted aside
            {
                "proc/self/cgroup": "1:cpu:/\n0::/box",
                "proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
                "41 31 0:38 / /sys/fs/cgroup/unified rw shared:7 - cgroup2 cgroup2 rw",
                "sys/fs/cgroup/unified/box/cpu.max": "150000 100000",
            },
            (1, "quota of 1.5 cores in /sys/fs/cgroup/unified/box/cpu.max"),
        ),
        ({"proc/self/status": "Name:\tys\nCpus_allowed_list:\t0,3"}, (2, "CPU affinity: 2 of 8")),
        (
            {
                "proc/self/status": "Cpus_allowed_list:\t0-1,4-5\n",
                **siblings("thread_siblings_list"),
            },
            (2, "physical cores"),
        ),
        (
            {
                "proc/self/status": "Cpus_allowed_list:\t0,4\n",
                **siblings("core_cpus_list"),
            },
            (1, "physical cores"),
        ),
        (
            {"proc/self/mountinfo": "nonsense\n1 2 - cgroup", "proc/self/cgroup": "0::/"},
            (8, "all cores"),
        ),
    ],
)
def test_the_number_of_threads_is_told_with_what_limits_it(
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    limit: tuple[int, str],
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    for path, text in files.items():
        write(path, text + "\n")
    machine = inspect_machine(tmp_path)
    assert machine.core_limit == limit
    assert machine.usable_cores == limit[0]


def test_time_spent_waiting_for_a_core_is_summed_over_the_threads(
    tmp_path: Path, write: Write
) -> None:
    assert waiting_seconds(tmp_path) == 0.0
    write("proc/self/task/7/schedstat", "9000000000 1500000000 12\n")
    write("proc/self/task/8/schedstat", "9000000000 500000000 12\n")
    write("proc/self/task/9/schedstat", "nonsense\n")
    assert waiting_seconds(tmp_path) == 2.0


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_control_group_bounds_the_free_memory(
    tmp_path: Path, write: Write, memory: None, version: int
) -> None:
    group = "sys/fs/cgroup/box" if version == 2 else "sys/fs/cgroup/memory/box"
    limit, used = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    write("proc/self/cgroup", "0::/box\n" if version == 2 else "5:memory:/box\n")
    write(f"{group}/{limit}", "5000000\n")
    write(f"{group}/{used}", "3000000\n")
    assert inspect_machine(tmp_path).free_bytes == 2_000_000
    write(f"{group}/memory.stat", "anon 1000000\ninactive_file 500000\n")
    assert inspect_machine(tmp_path).free_bytes == 2_500_000
    assert inspect_machine(tmp_path).limit_bytes == 5_000_000
    write(f"{group}/{limit}", "9223372036854771712\n" if version == 1 else "max\n")
    assert inspect_machine(tmp_path).free_bytes == AVAILABLE
    assert inspect_machine(tmp_path).limit_bytes is None


@pytest.mark.parametrize(
    ("logical", "physical", "allowed", "quota", "usable"),
    [
        (8, 4, 8, None, 4),
        (8, None, 8, None, 8),
        (8, 4, 2, None, 2),
        (8, 4, 8, 2.5, 2),
        (8, 4, 8, 0.5, 1),
    ],
)
def test_usable_cores_are_the_fewest_of_all_limits(
    logical: int, physical: int | None, allowed: int, quota: float | None, usable: int
) -> None:
    rest: dict[str, Any] = dict.fromkeys(("load", "memory_bytes", "free_bytes", "limit_bytes"))
    machine = Machine(
        system="Linux",
        architecture="x86_64",
        processor="Xeon",
        features=frozenset(),
        logical_cores=logical,
        physical_cores=physical,
        allowed_cores=allowed,
        core_quota=quota,
        quota_source="/sys/fs/cgroup/cpu.max",
        swapped_bytes=0,
        has_nvidia_driver=False,
        **rest,
    )
    assert machine.usable_cores == usable
