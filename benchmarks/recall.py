"""What a model remembers: the quickstart's model with other parts, at equal steps or equal minutes.

python -m benchmarks.recall --steps 150 [--seeds 3]     trains, and writes benchmarks/recall.json
python -m benchmarks.recall --minutes 2 [--seeds 3]     the same: benchmarks/recall_minutes.json
python -m benchmarks.recall --table                     prints both as one table

Equal steps are equal tokens: every step reads as many. Equal minutes are planned as `ys compare`
plans seconds: the steps of each model are timed by turns before any is trained, which is refused
where other processes are busy, and each gets the steps that fit. Every model is a run of its own in
runs/, so that the same command goes on where it was stopped.
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

import psutil
import torch

from benchmarks.machine import ROOT
from ys_llm.config.sources import Resolved, load_config
from ys_llm.evaluation.compare import code_version, hardware
from ys_llm.system.files import write_atomically
from ys_llm.training.step_times import FILE, time_steps
from ys_llm.training.trial_budget import Budget, with_budget

FIRST_SEED = 1337
STEPS_FILE, MINUTES_FILE = ROOT / "benchmarks/recall.json", ROOT / "benchmarks/recall_minutes.json"
RUNS_DIR = Path("runs")
MOST_BUSY = 15  # percent of all cores, by other processes, in the seconds before steps are timed
_LOOK_SECONDS = 5
NO_TIER = "model.copy.window=0"
# The window is that of configs/llama.yaml: a carried document would grow without one.
LLAMA = [
    "model.layers=[softmax_attention]",
    "model.d_mlp=704",
    "model.options.softmax_attention.window=256",
]
# One layer that looks things up among the recurrent ones, each behind a convolution, as in
# configs/hybrid.yaml.
HYBRID = [
    "model.layers=[three_tier, gated_delta, three_tier]",
    "model.convolution=4",
    "model.d_mlp=484",
]
# What is compared: by name, the settings that differ from the quickstart's.
CONTENDERS = {
    "three-tier": [],
    "three-tier, no copy tier": [NO_TIER],
    "Llama block": LLAMA,
    "Llama block, no copy tier": [*LLAMA, NO_TIER],
    "hybrid": HYBRID,
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
    """One contender; the lists have a figure for each seed.

    `busy` is the percentage of all cores that other processes used before each run, `step_seconds`
    what a step was timed to take where minutes are the budget.
    """

    name: str
    changes: Sequence[str]
    parameters: int
    tokens: list[int] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)
    bits_per_byte: list[float] = field(default_factory=list)
    names_again: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    step_seconds: float | None = None


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
    budget.add_argument("--table", action="store_true", help="print what there is")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results of this budget")
    arguments = parser.parse_args(words)
    if arguments.table:
        print("\n".join(markdown(*map(_read, (STEPS_FILE, MINUTES_FILE)))))
        return
    arguments.out = arguments.out or (STEPS_FILE if arguments.steps else MINUTES_FILE)
    measure(arguments, words)
    print("\n".join(markdown(_read(arguments.out), None)))


def _read(path: Path) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    described: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return described


def measure(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """All contenders with one seed before any with the next, so that what there is can be read."""
    rows: dict[str, Row] = {}
    seconds = timed_steps() if arguments.minutes else {}
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for name, changes in CONTENDERS.items():
            of_step = seconds.get(name)
            steps = _steps_within(arguments.minutes, name, of_step) if of_step else arguments.steps
            summary = _trained(name, seed, steps)
            row = Row(name, changes, summary["parameters"], step_seconds=of_step)
            _add(rows.setdefault(name, row), summary)
            described = {
                "command": " ".join(["python -m benchmarks.recall", *words]),
                "commit": code_version(),
                "hardware": hardware("cpu"),
                "torch": torch.__version__,
                "steps": arguments.steps,
                "minutes": arguments.minutes,
                "first_seed": FIRST_SEED,
                "rows": [asdict(row) for row in rows.values()],
            }
            write_atomically(arguments.out, json.dumps(described, indent=1) + "\n")


def timed_steps() -> dict[str, float]:
    """Seconds of a step of each contender, by turns, now or before; SystemExit if busy now."""
    if not (RUNS_DIR / FILE).exists():
        busy_percent(refuse=True)
    found = time_steps([_resolved(name) for name in CONTENDERS], RUNS_DIR)
    return {name: sum(found[_run_of(name)].seconds) for name in CONTENDERS}


def _resolved(name: str) -> Resolved:
    changes = [*CONTENDERS[name], f"run={_run_of(name)}"]
    return load_config(ROOT / "configs/quickstart.yaml", overrides=changes)


def _run_of(name: str) -> str:
    return f"recall-{name.replace(',', '').replace(' ', '-')}"


def _steps_within(minutes: float, name: str, of_step: float) -> int:
    """The steps of a contender that fit in the minutes."""
    budget = Budget("seconds", 60 * minutes, (of_step,))
    return with_budget(_resolved(name).config, budget).train.total_steps


def _trained(name: str, seed: int, steps: int) -> Mapping[str, Any]:
    """The summary of a run, trained now or before."""
    run = f"{_run_of(name)}-{steps}-{seed}"
    plan = ["train.minutes=null", f"train.max_steps={steps}", f"train.seed={seed}"]
    settings = [*CONTENDERS[name], *plan, "train.sample_interval=0"]
    command = [sys.executable, "-c", TRAIN, str(ROOT / "configs/quickstart.yaml"), f"run={run}"]
    busy = busy_percent(refuse=False)
    done = subprocess.run([*command, *settings], stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary | {"busy": busy}


def busy_percent(*, refuse: bool) -> float:
    """How busy other processes keep the cores now; SystemExit where `refuse` and too busy."""
    busy = psutil.cpu_percent(interval=_LOOK_SECONDS)
    if refuse and busy > MOST_BUSY:
        raise SystemExit(
            f"other processes keep {busy:.0f} % of the cores busy, and steps timed now would not "
            f"be those of a quiet machine. End them, and give the same command again."
        )
    return busy


def _add(row: Row, summary: Mapping[str, Any]) -> None:
    row.tokens.append(summary["tokens"])
    row.tokens_per_second.append(round(summary["tokens_per_second"]))
    row.bits_per_byte.append(round(summary["bits_per_byte"], 4))
    row.names_again.append(round(summary["names_again"], 3))
    row.busy.append(round(summary["busy"], 1))


def markdown(steps: Mapping[str, Any] | None, minutes: Mapping[str, Any] | None) -> list[str]:
    """The lines of a table: means over seeds, with their standard deviations.

    With both budgets the columns of equal minutes follow those of equal tokens, and say how many
    tokens were read in them; with one, the speed of the runs is shown.
    """
    found = [_by_name(described) for described in (steps, minutes) if described]
    heads = ["bits per byte", "nats on names again"]
    if steps and minutes:
        unit = "minute" if minutes["minutes"] == 1 else "minutes"
        heads += [f"{head}, {minutes['minutes']:g} {unit}" for head in ("M tokens", *heads)]
    else:
        heads = ["tokens/s", *heads]
    every = {name: row for rows in reversed(found) for name, row in rows.items()}
    lines = [f"| model | parameters | {' | '.join(heads)} |", f"|---|{'---:|' * (1 + len(heads))}"]
    for name in (name for name in CONTENDERS if name in every):
        row = every[name]
        cells = [row.name, f"{row.parameters:,}"]
        if len(found) == 1:
            cells.append(f"{statistics.mean(row.tokens_per_second):,.0f}")
        for number, rows in enumerate(found):
            cells += _cells(rows.get(name), with_tokens=number > 0)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _by_name(described: Mapping[str, Any]) -> dict[str, Row]:
    return {values["name"]: Row(**values) for values in described["rows"]}


def _cells(row: Row | None, *, with_tokens: bool) -> list[str]:
    if row is None:
        return ["" for _ in range(2 + with_tokens)]
    tokens = [f"{statistics.mean(row.tokens) / 1e6:.2f}"] if with_tokens else []
    return [*tokens, _mean(row.bits_per_byte, 3), _mean(row.names_again, 2)]


def _mean(figures: Sequence[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(figures):.{digits}f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.{digits}f}{spread}"


if __name__ == "__main__":
    main(sys.argv[1:])
