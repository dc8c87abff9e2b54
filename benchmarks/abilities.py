"""What small models of several mixers learn to do: counting, permutations, recall.

python -m benchmarks.abilities [--steps 500] [--seeds 1]
python -m benchmarks.abilities --table               prints benchmarks/abilities.json as a table

Each mixer, two layers of width 64, is trained on each task as `ys compare --task` does, whose
protocols are in ys_llm/evaluation/tasks/: all mixers and tasks with one seed before the next. What
is in benchmarks/abilities.json already, with as many steps, is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.machine import ROOT
from ys_llm.config.schema import Config
from ys_llm.config.shipped import find_config
from ys_llm.config.sources import load_config
from ys_llm.evaluation.compare import code_version, hardware
from ys_llm.evaluation.tasks.trained import TASKS
from ys_llm.system.files import write_atomically
from ys_llm.training.task_training import compare_on_task

RESULTS = ROOT / "benchmarks/abilities.json"
FIRST_SEED = 1337
# What is trained, by name: a shipped configuration, and its own settings.
CONTENDERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "three-tier": ("default", ()),
    "Mamba-2": ("mamba2", ()),
    "Mamba-3": ("mamba3", ()),
    "gated delta": ("gated_delta", ()),
    "minGRU": ("min_gru", ()),
    "Llama block": ("llama", ()),
    "RWKV-7": ("rwkv7", ()),
    "three-tier, copy tier": ("default", ("model.copy.window=512",)),
}
SETTINGS = (
    "model.d_model=64",
    "model.n_layers=2",
    "model.d_mlp=128",
    "model.options.three_tier.state_gate=true",
    "train.learning_rate=0.002",
    "train.warmup_steps=20",
    "train.threads=1",
)
# Task -> the sizes that are shown: of states, the largest that is trained and two beyond.
SHOWN = {"parity": (32, 64, 256), "s3": (32, 64, 256), "mqar": (8, 32)}
_SOLVED = 0.99


def main(words: Sequence[str]) -> None:
    """Train what is not trained yet and write the results, or print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.abilities",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=500, help="of each (default: 500)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each (default: 1)")
    parser.add_argument("--table", action="store_true", help="print what there is")
    arguments = parser.parse_args(words)
    if not arguments.table:
        train_missing(arguments.steps, arguments.seeds)
    print("\n".join(markdown(json.loads(RESULTS.read_text(encoding="utf-8")))))


def train_missing(steps: int, seeds: int) -> None:
    """Train what the file has not; it is written after each model."""
    rows = _kept(steps)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for task in SHOWN:
            for name in CONTENDERS:
                if any(_is_of(row, name, task, seed) for row in rows):
                    continue
                rows += _trained(name, task, seed, steps)
                print(f"{task}, {name}, seed {seed}", file=sys.stderr, flush=True)
                _write(rows, steps)


def _kept(steps: int) -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found["rows"] if found["steps"] == steps else []


def _is_of(row: Mapping[str, Any], name: str, task: str, seed: int) -> bool:
    return (row["name"], row["task"], row["seed"]) == (name, task, seed)


def config_of(name: str, seed: int = FIRST_SEED) -> Config:
    """The configuration that a contender is trained with."""
    base, changes = CONTENDERS[name]
    overrides = [*SETTINGS, *changes, f"train.seed={seed}"]
    return load_config(find_config(base), overrides=overrides).config


def _trained(name: str, task: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """A row for each size of the task."""
    found = compare_on_task(config_of(name, seed), TASKS[task], steps=steps)
    columns = ("size", "accuracy", "standard_error", "parameters", "chance")
    return [
        {"name": name, "task": task, "seed": seed, **{one: row[one] for one in columns}}
        for row in map(asdict, found)
    ]


def _write(rows: Sequence[Mapping[str, Any]], steps: int) -> None:
    described = {
        "command": f"python -m benchmarks.abilities --steps {steps}",
        "commit": code_version(),
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "steps": steps,
        "settings": SETTINGS,
        "rows": rows,
    }
    lines = json.dumps({**described, "rows": []}, indent=1).removesuffix("[]\n}")
    shown = ",\n  ".join(json.dumps(row) for row in rows)
    write_atomically(RESULTS, f"{lines}[\n  {shown}\n ]\n}}\n")


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The lines of a table: means over seeds of the share of right answers, of what is there."""
    rows = results["rows"]
    chances = {row["task"]: row["chance"] for row in rows}
    columns = [(task, size) for task in SHOWN if task in chances for size in SHOWN[task]]
    named = {row["name"]: row["parameters"] for row in rows}
    return [
        f"| | parameters | {' | '.join(f'{task} {size}' for task, size in columns)} |",
        f"|---|---:|{'---:|' * len(columns)}",
        *(
            f"| {name} | {named[name]:,} | "
            f"{' | '.join(_cell(rows, name, *column) for column in columns)} |"
            for name in CONTENDERS
            if name in named
        ),
        f"| chance | | {' | '.join(f'{chances[task]:.2f}' for task, _ in columns)} |",
    ]


def _cell(rows: Sequence[Mapping[str, Any]], name: str, task: str, size: int) -> str:
    wanted = (name, task, size)
    shares = [r["accuracy"] for r in rows if (r["name"], r["task"], r["size"]) == wanted]
    if not shares:
        return ""
    mean = statistics.mean(shares)
    return f"**{mean:.2f}**" if mean >= _SOLVED else f"{mean:.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
