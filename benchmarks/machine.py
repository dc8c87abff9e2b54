"""The peak rates of this machine: large matmuls of each dtype, and reading memory."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.csrc import loader
from ys_llm.system.machine import inspect_machine
from ys_llm.training.compute import BF16_FEATURES

ROOT = Path(__file__).resolve().parent.parent
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(effort: Effort) -> Group:
    """Square matmuls, and the sum of a vector larger than any cache.

    `facts`: FLOP or bytes of one run of each case.
    """
    size = 256 if effort.quick else 2048
    read_bytes = (1 << 22) if effort.quick else (1 << 30)
    vector = torch.ones(read_bytes // 4)
    cases: dict[str, Callable[[], object]] = {"read memory": lambda: vector.sum()}
    for dtype in dtypes():
        a, b = torch.randn(2, size, size).to(TORCH_DTYPES[dtype])
        cases[f"matmul {dtype}"] = lambda a=a, b=b: a @ b  # type: ignore[misc]
    seconds, _ = interleaved(cases, rounds=max(3, effort.rounds))
    work = {case: read_bytes if case == "read memory" else 2 * size**3 for case in cases}
    return Group("machine", seconds, {"work": work})


def dtypes() -> tuple[str, ...]:
    """The dtypes worth timing: without bf16 instructions a processor emulates them for minutes."""
    has_bf16 = bool(BF16_FEATURES & inspect_machine().features)
    return ("fp32", "bf16") if has_bf16 else ("fp32",)


def rate(machine: Group, case: str) -> float:
    """FLOP/s or bytes/s of the best round: what the machine can do."""
    return float(machine.facts["work"][case] / min(machine.seconds[case]))


def environment(command: str, *, with_compiler: bool) -> dict[str, Any]:
    """Everything that a figure depends on besides the code's own choices."""
    here = inspect_machine()
    return {
        "command": command,
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain")),
        "processor": here.processor,
        "cores": here.usable_cores,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": (with_compiler and loader.compiler_version()) or "none",
        "kernels": "compiled" if with_compiler and loader.load() else "none",
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
