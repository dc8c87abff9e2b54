"""Measure the speed of ys and its baselines on this machine.

python -m benchmarks [machine|layer|model|generate|data|start|all ...] [--minutes M] [--quick]
python -m benchmarks all --cpu-level avx2 --out benchmarks/avx2.json
python -m benchmarks figure benchmarks/NAME.json
python -m benchmarks table benchmarks/NAME.json
python -m benchmarks compare OLD.json NEW.json
python -m benchmarks tables [--write]
python -m benchmarks.nanogpt --help

Every figure is a ratio of times measured in interleaved rounds of one process, with its spread, or
a share of the rate of this machine's large matmuls or memory. It is judged by the bars of the
processor's class (benchmarks/bars.py). A backend that differs from `reference` is not timed, and
neither is a dtype that the processor would emulate. Run nothing else at the same time: another
process on a core can make threads that wait for each other three times as slow.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import figure, machine, tables
from benchmarks.compare import changes
from benchmarks.rounds import Budget, Group
from benchmarks.sections import SECTIONS, Bench, selected
from benchmarks.targets import judge, table
from ys_llm.config.cache import CACHE_VARIABLE
from ys_llm.csrc import loader
from ys_llm.errors import EXIT_FAILED, UserError
from ys_llm.system.files import write_atomically

MINUTES = 8.0  # leaves two of ten for compiling, and for what cannot be cut short
_READERS = {"figure": 1, "table": 1, "compare": 2, "tables": 0}  # and how many files they read


def main(words: Sequence[str]) -> int:
    """Run the requested sections; exit code 1 where a backend failed its test."""
    arguments = read_arguments(words)
    restriction = machine.RESTRICTIONS.get(arguments.cpu_level, {})
    if any(os.environ.get(name) != value for name, value in restriction.items()):
        # Torch and its libraries read these before the first line of any program.
        command = [sys.executable, "-m", "benchmarks", *words]
        return subprocess.run(command, env={**os.environ, **restriction}).returncode
    try:
        if arguments.sections[0] in _READERS:
            return redraw(arguments)
        report = measure(arguments, command=shlex.join(["python", "-m", "benchmarks", *words]))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"benchmarks: {line}", file=sys.stderr)
        return error.exit_code
    if arguments.out:
        write_atomically(arguments.out, json.dumps(report, indent=1) + "\n")
    return EXIT_FAILED if report["wrong"] else 0


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    lines = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=lines[0],
        epilog="\n\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sections", nargs="*", default=["all"], metavar="SECTION", help=", ".join(SECTIONS))
    add("--minutes", type=float, metavar="M",
        help=f"time for all sections, compiling included (default: {MINUTES:g}, of --quick none); "
        "what does not fit is made smaller or left out, and the file says so")  # fmt: skip
    add("--quick", action="store_true", help="small shapes: shows that all of it runs")
    add("--cpu-level", choices=machine.RESTRICTIONS, default="",
        help="use only the instructions of an older processor")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N", help="torch's threads (default: its own)")
    add("--corpus", type=Path, default=machine.ROOT / "training_data", help="text to train on")
    add("--without-compiler", action="store_true", help="as on a machine that has none")
    add("--out", type=Path, metavar="FILE", help="write all times there, as JSON")
    add("--write", action="store_true", help="tables: into README.md, docs/speed.md and figures")
    arguments = parser.parse_args(words)
    first, *files = arguments.sections
    if first in _READERS:
        if len(files) != _READERS[first]:
            parser.error("type: table NAME.json, figure NAME.json, compare OLD.json NEW.json, or "
                         "tables [--write]")  # fmt: skip
        return arguments
    unknown = [name for name in arguments.sections if name not in (*SECTIONS, "all")]
    if arguments.minutes is None:
        arguments.minutes = math.inf if arguments.quick else MINUTES
    if unknown or arguments.minutes <= 0:
        parser.error(f"no such section: {', '.join(unknown)}" if unknown else "--minutes below 0")
    return arguments


def redraw(arguments: argparse.Namespace) -> int:
    """What is made of saved files; exit code 1 where the newer one lost a figure, or it fell."""
    if arguments.sections[0] == "tables":
        print("\n".join(tables.write(machine.ROOT) if arguments.write else tables.show()))
        return 0
    path, *newer = map(Path, arguments.sections[1:])
    report = tables.read(path)
    if newer:
        found = changes(report, tables.read(newer[0]))
        print("\n".join(change.line() for change in found))
        worse = [change for change in found if change.worse]
        missing = sum(change.new is None for change in found)
        if worse:
            print(f"of {len(found)} figures {len(worse) - missing} fell, {missing} are missing")
        return EXIT_FAILED if worse else 0
    if arguments.sections[0] == "table":
        print(table(judge(report)))
        return 0
    out = arguments.out or path.with_suffix(".svg")
    write_atomically(out, figure.svg(report))
    print(out)
    return 0


def measure(arguments: argparse.Namespace, *, command: str) -> dict[str, Any]:
    """All requested sections, printed as they are measured, as one JSON object."""
    began = time.perf_counter()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with_compiler = not arguments.without_compiler
    with tempfile.TemporaryDirectory(prefix="ys-benchmarks-") as folder:
        left_out = kernels(Path(folder), with_compiler=with_compiler)
        facts = machine.environment(command, with_compiler=with_compiler)
        facts["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for name in ("processor", "class", "threads", "torch", "compiler", "commit"):
            print(f"{name:<10} {facts[name]}")
        parts = selected(arguments.sections)
        budget = Budget(began + 60 * arguments.minutes, {p.name: p.weight for p in parts})
        bench = Bench(Path(folder), arguments.corpus, left_out, quick=arguments.quick)
        groups: list[Group] = []
        for part in parts:
            made = bench.measure(part, budget.share(part.name))
            groups += made
            show(made)
    report = {
        **facts,
        "with_compiler": with_compiler,
        "quick": arguments.quick,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "wrong": wrong(groups),
        "groups": [asdict(group) for group in groups],
    }
    print("\n" + "\n".join(target.line() for target in judge(report)))
    return report


def kernels(folder: Path, *, with_compiler: bool) -> dict[str, str]:
    """Compile all kernels first; returns backends that cannot run, and why.

    Without a compiler, the kernels' cache is an empty folder.
    """
    if not with_compiler:
        os.environ[CACHE_VARIABLE] = str(folder)
        return {"cpp": "--without-compiler"}
    if loader.build() is None:
        print(f"benchmarks: no C++ kernels: {loader.unavailable_reason()}", file=sys.stderr)
    return {}


def show(groups: Sequence[Group]) -> None:
    """The raw times of some groups: median and spread of each case."""
    for group in groups:
        print(f"\n{group.name}")
        for case, seconds in group.seconds.items():
            middle = statistics.median(seconds)
            rate = speed(group, case, middle)
            print(f"  {case:<24} {1e3 * middle:10.3f} ms ({1e3 * min(seconds):.3f}"
                  f"-{1e3 * max(seconds):.3f}){rate}")  # fmt: skip
        for case, why in group.facts.get("left_out", {}).items():
            print(f"  {case:<24} not timed: {why}")
        if "note" in group.facts:
            print(f"  {group.facts['note']}")
    sys.stdout.flush()


def speed(group: Group, case: str, seconds: float) -> str:
    """These seconds as a rate, if the group gives the work of one run."""
    if case in group.facts.get("work", {}):
        return f"  {group.facts['work'][case] / seconds / 1e9:,.0f} G/s"
    tokens = group.facts.get("tokens")
    if isinstance(tokens, dict):
        tokens = tokens.get(case)
    return f"  {tokens / seconds:,.0f} tokens/s" if tokens else ""


def wrong(groups: Sequence[Group]) -> list[str]:
    """Cases that were not timed because they differ from `reference`."""
    return [
        f"{group.name}: {case}: {why}"
        for group in groups
        for case, why in group.facts.get("left_out", {}).items()
        if why.startswith("wrong")
    ]
