"""What this machine does at its best: large products of each dtype, and reading memory."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.csrc import loader
from ys_llm.system import machine

ROOT = Path(__file__).resolve().parent.parent


def measure(effort: Effort) -> Group:
    """Square products and the sum of a vector that no cache holds.

    `facts`: FLOP or bytes of one run of each case.
    """
    size = 256 if effort.quick else 2048
    read_bytes = (1 << 22) if effort.quick else (1 << 30)
    a, b = torch.randn(size, size), torch.randn(size, size)
    a_half, b_half = a.bfloat16(), b.bfloat16()
    vector = torch.ones(read_bytes // 4)
    cases = {
        "product fp32": lambda: a @ b,
        "product bf16": lambda: a_half @ b_half,
        "read memory": lambda: vector.sum(),
    }
    seconds, _ = interleaved(cases, rounds=max(3, effort.rounds))
    flops = 2 * size**3
    work = {"product fp32": flops, "product bf16": flops, "read memory": read_bytes}
    return Group("machine", seconds, {"work": work})


def rate(limits: Group, case: str) -> float:
    """FLOP/s or bytes/s of the best round: what the machine can do, not what it happened to."""
    return float(limits.facts["work"][case] / min(limits.seconds[case]))


def circumstances(command: str, *, with_compiler: bool) -> dict[str, Any]:
    """All that a figure depends on besides the code's own choices."""
    here = machine.inspect_machine()
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
    said = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return said.stdout.strip()
