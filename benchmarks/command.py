"""Measure the speed of ys and its baselines, and compare it with its targets.

python -m benchmarks [machine|layer|model|generate|data|start|all ...] [--rounds N] [--quick]
python -m benchmarks figure benchmarks/NAME.json
python -m benchmarks table benchmarks/NAME.json

Every figure is a ratio of times measured in interleaved rounds of one process, with its spread and
its share of the rate of this machine's large matmuls or memory. A backend that differs from
`reference` is not timed. Run nothing else at the same time: another process on a core can make
threads that wait for each other three times as slow.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import figure, generation, layer, machine, startup, training
from benchmarks.rounds import Effort, Group
from benchmarks.targets import Target, judge, table
from ys_llm.config.cache import CACHE_VARIABLE
from ys_llm.csrc import loader
from ys_llm.data.readers import read_documents
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import EXIT_FAILED, UserError
from ys_llm.system.files import write_atomically

SECTIONS = ("machine", "layer", "model", "generate", "data", "start")
QUICK_TEXT_BYTES = 200_000  # of the corpus, enough for every section to run


def main(words: Sequence[str]) -> int:
    """Run the requested sections; exit code 1 where a backend failed its test."""
    arguments = read_arguments(words)
    try:
        if arguments.sections[0] in ("figure", "table"):
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
    add("--rounds", type=int, default=5, metavar="N", help="turns of each case (default: 5)")
    add("--quick", action="store_true", help="small shapes: shows that all of it runs")
    add("--threads", type=int, default=0, metavar="N", help="torch's threads (default: its own)")
    add("--corpus", type=Path, default=machine.ROOT / "training_data", help="text to train on")
    add("--without-compiler", action="store_true", help="as on a machine that has none")
    add("--out", type=Path, metavar="FILE", help="write all times and targets there, as JSON")
    arguments = parser.parse_args(words)
    if (what := arguments.sections[0]) in ("figure", "table"):
        if len(arguments.sections) != 2:
            parser.error(f"{what} takes one file: {what} benchmarks/NAME.json")
        return arguments
    unknown = [name for name in arguments.sections if name not in (*SECTIONS, "all")]
    if unknown or arguments.rounds < 1:
        parser.error(f"no such section: {', '.join(unknown)}" if unknown else "--rounds below 1")
    return arguments


def redraw(arguments: argparse.Namespace) -> int:
    """The figure of a saved file, next to it or at --out; or its table, as README shows it."""
    path = Path(arguments.sections[1])
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "Make it: python -m benchmarks layer --out FILE"
        ) from error
    if arguments.sections[0] == "table":
        groups = [Group(**group) for group in report["groups"]]
        print(table(judge(groups, with_compiler=report["with_compiler"])))
        return 0
    out = arguments.out or path.with_suffix(".svg")
    write_atomically(out, figure.svg(report))
    print(out)
    return 0


def measure(arguments: argparse.Namespace, *, command: str) -> dict[str, Any]:
    """All requested sections, printed as they are measured, as one JSON object."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with_compiler = not arguments.without_compiler
    with tempfile.TemporaryDirectory(prefix="ys-benchmarks-") as folder:
        left_out = kernels(Path(folder), with_compiler=with_compiler)
        facts = machine.environment(command, with_compiler=with_compiler)
        facts["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for name in ("processor", "threads", "torch", "compiler", "commit"):
            print(f"{name:<10} {facts[name]}")
        groups: list[Group] = []
        for made in sections(arguments, left_out, Path(folder)):
            groups += made
            show(made)
    targets = judge(groups, with_compiler=with_compiler)
    print()
    for target in targets:
        print(target.line())
    return {
        **facts,
        "with_compiler": with_compiler,
        "quick": arguments.quick,
        "wrong": wrong(groups),
        "groups": [asdict(group) for group in groups],
        "targets": [described(target) for target in targets],
    }


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


def sections(
    arguments: argparse.Namespace, left_out: dict[str, str], folder: Path
) -> Iterator[list[Group]]:
    """The groups of each requested section; the machine's own limits always come first."""
    effort = Effort(arguments.rounds, arguments.quick)
    asked = set(SECTIONS if "all" in arguments.sections else arguments.sections)
    yield [machine.measure(effort)]
    if "layer" in asked:
        yield from ([group] for group in layer.measure(effort, left_out=left_out))
    if "generate" in asked:
        yield generation.measure(effort)
    if not asked & {"model", "data", "start"}:
        return
    corpus = quick_corpus(arguments.corpus, folder) if arguments.quick else arguments.corpus
    split, home = startup.read_split(corpus), folder / "run"
    yield startup.measure_data(effort, corpus=corpus, split=split, folder=home)
    if "model" in asked:
        yield training.measure(effort, corpus=corpus, split=split, folder=home)
    if "start" in asked:
        tokenizer = Tokenizer.load(home / "tokenizer.json")
        yield startup.measure_start(effort, tokenizer=tokenizer, folder=folder)


def quick_corpus(corpus: Path, folder: Path) -> Path:
    """The first documents of the corpus as plain texts."""
    taken, n_bytes = [], 0
    for document in read_documents(corpus):
        taken.append(json.dumps({"text": document.text}))
        n_bytes += document.n_bytes
        if n_bytes > QUICK_TEXT_BYTES:
            break
    write_atomically(folder / "corpus" / "some.jsonl", "\n".join(taken) + "\n")
    return folder / "corpus"


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


def described(target: Target) -> dict[str, Any]:
    """A target with the figures derived from its values."""
    figure = target.figure if target.values else None
    return {**asdict(target), "figure": figure, "met": target.met}
