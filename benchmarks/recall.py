"""What a model remembers: the quickstart's model with other parts, at equal steps or equal minutes.

python -m benchmarks.recall --steps 230 [--seeds 3] [--out FILE]     trains and writes the results
python -m benchmarks.recall --table [--out FILE]                     prints them as a table

Every model is a run of its own in runs/, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT
from ys_llm.evaluation.compare import code_version, hardware
from ys_llm.system.files import write_atomically

FIRST_SEED = 1337
NO_TIER = "model.copy.window=0"
# The window is that of configs/llama.yaml: a carried document would grow without one.
LLAMA = [
    "model.layers=[softmax_attention]",
    "model.d_mlp=713",
    "model.options.softmax_attention.window=256",
]
# What is compared: by name, the settings that differ from the quickstart's.
CONTENDERS = {
    "three-tier": [],
    "three-tier, no copy tier": [NO_TIER],
    "Llama block": LLAMA,
    "Llama block, no copy tier": [*LLAMA, NO_TIER],
}
# A run's own process: its settings in, its summary out.
TRAIN = """
import json, sys
from pathlib import Path
from ys_llm.config.sources import load_config
from ys_llm.training.loop import train
summary = train(load_config(Path(sys.argv[1]), overrides=sys.argv[2:]))
print(json.dumps({
    "parameters": summary.parameters,
    "tokens": summary.tokens,
    "tokens_per_second": summary.tokens_per_second,
    "bits_per_byte": summary.val_bits_per_byte,
    "names_again": summary.val_names_again_loss,
}))
"""


@dataclass
class Row:
    """One contender; the lists have a figure for each seed."""

    name: str
    changes: Sequence[str]
    parameters: int
    tokens: list[int] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)
    bits_per_byte: list[float] = field(default_factory=list)
    names_again: list[float] = field(default_factory=list)


def main(words: Sequence[str]) -> None:
    """Train what is not trained yet and write the results, or print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, help="steps of each model")
    budget.add_argument("--minutes", type=float, help="minutes of each model")
    budget.add_argument("--table", action="store_true", help="print the results of FILE")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/recall.json", metavar="FILE")
    arguments = parser.parse_args(words)
    if not arguments.table:
        measure(arguments, words)
    print("\n".join(markdown(json.loads(arguments.out.read_text(encoding="utf-8")))))


def measure(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """All contenders with one seed before any with the next, so that what there is can be read."""
    rows: dict[str, Row] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for name, changes in CONTENDERS.items():
            summary = _trained(name, changes, seed, arguments)
            _add(rows.setdefault(name, Row(name, changes, summary["parameters"])), summary)
            described = {
                "command": " ".join(["python -m benchmarks.recall", *words]),
                "commit": code_version(),
                "hardware": hardware("cpu"),
                "torch": torch.__version__,
                "first_seed": FIRST_SEED,
                "rows": [asdict(row) for row in rows.values()],
            }
            write_atomically(arguments.out, json.dumps(described, indent=1) + "\n")


def _trained(
    name: str, changes: Sequence[str], seed: int, arguments: argparse.Namespace
) -> Mapping[str, Any]:
    """The summary of a run, trained now or before."""
    plan = ["train.minutes=null", f"train.max_steps={arguments.steps}"]
    if arguments.minutes:
        plan = [f"train.minutes={arguments.minutes}"]
    short = name.replace(",", "").replace(" ", "-")
    run = f"recall-{arguments.steps or arguments.minutes}-{short}-{seed}"
    settings = [*changes, *plan, f"train.seed={seed}", "train.sample_interval=0"]
    command = [sys.executable, "-c", TRAIN, str(ROOT / "configs/quickstart.yaml"), f"run={run}"]
    done = subprocess.run([*command, *settings], stdout=subprocess.PIPE, text=True, check=True)
    summary: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _add(row: Row, summary: Mapping[str, Any]) -> None:
    row.tokens.append(summary["tokens"])
    row.tokens_per_second.append(round(summary["tokens_per_second"]))
    row.bits_per_byte.append(round(summary["bits_per_byte"], 4))
    row.names_again.append(round(summary["names_again"], 3))


def markdown(described: Mapping[str, Any]) -> list[str]:
    """The lines of a table: means over seeds, with their standard deviations."""
    lines = [
        "| model | parameters | tokens/s | bits per byte | nats on names again |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in (Row(**values) for values in described["rows"]):
        cells = [
            row.name,
            f"{row.parameters:,}",
            f"{statistics.mean(row.tokens_per_second):,.0f}",
            _mean(row.bits_per_byte, 3),
            _mean(row.names_again, 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(figures: Sequence[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(figures):.{digits}f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.{digits}f}{spread}"


if __name__ == "__main__":
    main(sys.argv[1:])
