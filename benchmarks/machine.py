"""What this machine is, and its peak rates: large matmuls of each dtype, and reading memory."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bars import BARS, Bars
from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.csrc import loader
from ys_llm.system.machine import CPU_LEVEL, cpu_class, inspect_machine
from ys_llm.training.compute import BF16_FEATURES

ROOT = Path(__file__).resolve().parent.parent
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGE = 2048  # rows and columns of the large matmul
# What keeps ys, torch and torch's libraries to an older processor's instructions, by level.
RESTRICTIONS = {
    "avx2": {
        CPU_LEVEL: "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {CPU_LEVEL: "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
}
_AMD_FAMILIES = {"23": "Zen, Zen+ or Zen 2", "25": "Zen 3 or Zen 4", "26": "Zen 5"}


def measure(effort: Effort) -> Group:
    """Square matmuls, and the sum of a vector larger than any cache.

    `facts`: FLOP or bytes of one run of each case.
    """
    read_bytes = (1 << 22) if effort.quick else (1 << 30)
    vector = torch.ones(read_bytes // 4)
    cases: dict[str, Callable[[], object]] = {"read memory": lambda: vector.sum()}
    cases |= {matmul_name(dtype): large_matmul(dtype, effort) for dtype in dtypes()}
    seconds, _ = interleaved(cases, effort, keep=cases)
    work = {case: matmul_flops(effort) for case in cases} | {"read memory": read_bytes}
    return Group("machine", seconds, {"work": work})


def matmul_name(dtype: str) -> str:
    """The case of the large matmul in any group."""
    return f"matmul {dtype}"


def large_matmul(dtype: str, effort: Effort) -> Callable[[], object]:
    """One large square matmul: the rate of which every share is taken."""
    size = _size(effort)
    a, b = torch.randn(2, size, size).to(TORCH_DTYPES[dtype])
    return lambda: a @ b


def matmul_flops(effort: Effort) -> int:
    """FLOP of `large_matmul`."""
    return int(2 * _size(effort) ** 3)


def _size(effort: Effort) -> int:
    return 256 if effort.quick else LARGE


def dtypes() -> tuple[str, ...]:
    """The dtypes worth timing: without bf16 instructions a processor emulates them for minutes."""
    has_bf16 = bool(BF16_FEATURES & inspect_machine().features)
    return ("fp32", "bf16") if has_bf16 else ("fp32",)


def bars() -> Bars:
    """The bars of this machine's class."""
    return BARS[cpu_class()]


def rate(machine: Group, case: str) -> float:
    """FLOP/s or bytes/s of the best round: what the machine can do."""
    return float(machine.facts["work"][case] / min(machine.seconds[case]))


def environment(command: str, *, with_compiler: bool) -> dict[str, Any]:
    """Everything that a figure depends on besides the code's own choices."""
    here = inspect_machine()
    variables = {name for restriction in RESTRICTIONS.values() for name in restriction}
    return {
        "command": command,
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain")),
        "class": cpu_class(),
        "restricted_to": cpu_class() if is_restricted() else "",
        "variables": {name: os.environ[name] for name in sorted(variables & os.environ.keys())},
        "processor": processor_name(here.processor),
        "cores": here.usable_cores,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": (with_compiler and loader.compiler_version()) or "none",
        "kernels": "compiled" if with_compiler and loader.load() else "none",
    }


def is_restricted() -> bool:
    """Whether ys is kept from instructions that this processor has."""
    return not set(_first_core().get("flags", "").split()) <= inspect_machine().features


def processor_name(model: str) -> str:
    """The processor's name; a virtual machine's "AMD EPYC" with the generation."""
    generation = _AMD_FAMILIES.get(_first_core().get("cpu family", ""), "")
    return f"{model} ({generation})" if generation and "AMD" in model else model


def _first_core() -> dict[str, str]:
    """The entry of the first core in /proc/cpuinfo, whatever ys is kept from."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
