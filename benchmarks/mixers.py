"""Mixers at five million parameters: `ys compare` at equal tokens or at equal planned seconds.

python -m benchmarks.mixers --data PATH --tokens 5e5 [--seeds 3] [--only NAME ...]
python -m benchmarks.mixers --data PATH --seconds 40 [--seeds 3] [--only NAME ...]
python -m benchmarks.mixers --data PATH --time    how long a step of each takes: keep all else quiet
python -m benchmarks.mixers --table               prints both tables of benchmarks/mixers.json

The first two train what is not trained yet, in runs/, and replace their part of
benchmarks/mixers.json and the tables of the pages that show it: equal tokens with one seed, with
several, or equal seconds. Losses depend on no other work.
Stopped, they go on when the same command is typed again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT
from ys_llm.config.shipped import find_config
from ys_llm.config.sources import load_config
from ys_llm.model.costs import state_bytes
from ys_llm.model.language_model import Model
from ys_llm.system.files import write_atomically
from ys_llm.system.sizes import human_size
from ys_llm.training.step_times import time_steps

RESULTS = ROOT / "benchmarks/mixers.json"
STATE_TOKENS = 2048
SEVERAL = "tokens, several seeds"
_HEAD = 40  # characters of a table that no result changes
# What is compared, by name: a shipped configuration, or a file of benchmarks/fair/.
CONTENDERS = {
    "three-tier": "default",
    "Llama block": "llama",
    "three-tier, one layer gated delta": "benchmarks/fair/hybrid_delta.yaml",
    "three-tier, one layer attention": "benchmarks/fair/hybrid_attention.yaml",
    "Mamba-2": "mamba2",
    "gated delta": "gated_delta",
    "minGRU": "min_gru",
    "RWKV-7": "rwkv7",
    "2Mamba": "decay_attention",
    "three-tier, no summaries": "benchmarks/fair/no_summaries.yaml",
    "three-tier, copy tier": "benchmarks/fair/copying.yaml",
}
# Parts of the three-tier mixer, whose steps take about as long: at equal tokens alone.
VARIANTS = {
    "three-tier, four heads": "benchmarks/fair/heads.yaml",
    "three-tier, no gate": "benchmarks/fair/no_gate.yaml",
    "three-tier, no local summary": "benchmarks/fair/no_local.yaml",
    "three-tier, no global summary": "benchmarks/fair/no_global.yaml",
}
EVERY = CONTENDERS | VARIANTS
# One thread, so that two can be compared beside each other; little is held out and evaluated, for
# these runs are short.
SETTINGS = (
    "data.validation_fraction=0.01",
    "train.batch_size=16",
    "train.eval_interval=0.5",
    "train.eval_tokens=50000",
    "train.checkpoint_interval=0.5",
    "train.sample_interval=0",
    "train.threads=1",
)


def main(words: Sequence[str]) -> None:
    """Train what is not trained yet and write the results, or print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="PATH", help="text to train on")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokens", metavar="N", help="train each for as many tokens")
    what.add_argument("--seconds", metavar="N", help="train each for as many planned seconds")
    what.add_argument("--time", action="store_true", help="time a step of each")
    what.add_argument("--table", action="store_true", help="print what there is")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=EVERY, help="these alone")
    arguments = parser.parse_args(words)
    results = _read()
    if not arguments.table:
        if not arguments.data:
            parser.error("give --data PATH, or --table")
        results = measured(arguments, words, results)
        write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
        for page, lines in tables(results).items():
            path = ROOT / page
            text = path.read_text(encoding="utf-8")
            write_atomically(path, rewritten(text, lines))
    print("\n\n".join("\n".join(lines) for lines in tables(results).values()))


def tables(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """The lines of the table of each page that shows one."""
    return {"docs/mixers.md": markdown(results), "README.md": short_table(results)}


def rewritten(text: str, lines: Sequence[str]) -> str:
    """A page with this table in place of the one whose head begins alike, where there is one."""
    head = re.escape(lines[0][:_HEAD])
    return re.sub(rf"^{head}.*\n(\|.*\n)*", "\n".join(lines) + "\n", text, flags=re.MULTILINE)


def _read() -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": None, SEVERAL: None, "seconds": None, "steps": {}}
    if RESULTS.exists():
        found |= json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def measured(
    arguments: argparse.Namespace, words: Sequence[str], results: Mapping[str, Any]
) -> dict[str, Any]:
    """The results with the part that was asked for measured anew."""
    names = [name for name in EVERY if name in (arguments.only or EVERY)]
    if arguments.time:
        steps = results["steps"] | _timed(names, arguments.data)
        return {**results, "steps": steps}
    unit = "tokens" if arguments.tokens else "seconds"
    part_name = SEVERAL if arguments.tokens and arguments.seeds > 1 else unit
    amount = arguments.tokens or arguments.seconds
    found = _compared(names, f"{unit}={amount}", arguments.data, arguments.seeds)
    part = {
        "command": f"python -m benchmarks.mixers {shlex.join(words)}".replace(
            arguments.data, "PATH"
        ),
        "torch": torch.__version__,
        "amount": float(amount),
        "seeds": found["seeds"],
        "hardware": sorted({run["hardware"] for run in found["runs"]}),
        "commits": sorted({run["commit"] for run in found["runs"]}),
        "rows": [
            {**standing, "name": name, "config": EVERY[name], "state_bytes": _state_bytes(name)}
            for name, standing in zip(names, found["configurations"], strict=True)
        ],
        "verdicts": found["verdicts"],
    }
    return {**results, part_name: part}


def _timed(names: Sequence[str], data: str) -> dict[str, Any]:
    """The time of a step of each, by its name."""
    settings = [f"data.path={data}", *SETTINGS]
    resolved = {name: load_config(find_config(EVERY[name]), overrides=settings) for name in names}
    found = time_steps(list(resolved.values()), Path("runs"), anew=True)
    return {name: asdict(found[one.config.run]) for name, one in resolved.items()}


def run_of(name: str) -> str:
    """The name of a contender's runs."""
    return load_config(find_config(EVERY[name])).config.run


def _compared(names: Sequence[str], budget: str, data: str, seeds: int) -> Mapping[str, Any]:
    """The figures of `ys compare` with this budget."""
    out = Path(f"runs/mixers-{budget.partition('=')[0]}.json")
    settings = [word for one in (f"data.path={data}", *SETTINGS) for word in ("--set", one)]
    command = [sys.executable, "-m", "ys_llm", "compare", *(EVERY[name] for name in names)]
    command += ["--budget", budget, "--allow-different", "model.copy.window", "--seeds", str(seeds)]
    subprocess.run([*command, *settings, "--out", str(out)], check=True)
    found: Mapping[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _state_bytes(name: str) -> int:
    config = load_config(find_config(EVERY[name])).config
    with torch.device("meta"):
        model = Model(config.model, vocab_size=config.tokenizer.vocab_size)
    return state_bytes(model, batch_size=1, seq_len=STATE_TOKENS)


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The lines of a table, the best at equal tokens first."""
    tokens, seconds = results["tokens"], results["seconds"]
    heads = ["parameters", "tokens/s", "memory of a step", "bytes of state", "generated/s"]
    heads += [f"{tokens['amount'] / 1e6:g} M tokens: bits per byte", "verdict", "names again"]
    heads += [f"{seconds['amount']:g} s: M tokens", "bits per byte", "names again"]
    timed = {row["name"]: row for row in seconds["rows"]}
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for row in _by_bits(tokens["rows"]):
        step = results["steps"].get(row["name"])
        cells = [*_costs(row, step), *_losses(row, tokens), *_in_seconds(timed.get(row["name"]))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def short_table(results: Mapping[str, Any]) -> list[str]:
    """README's table: what is learned from equal tokens with several seeds, at which costs."""
    tokens, steps = results[SEVERAL], results["steps"]
    heads = ["bits per byte", "against three-tier", "names again", "tokens/s of training"]
    heads.append("bytes of state")
    lines = [f"| model | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for row in _by_bits(tokens["rows"]):
        _, _, speed, _, state, _ = _costs(row, steps.get(row["name"]))
        lines.append(f"| {' | '.join([row['name'], *_losses(row, tokens), speed, state])} |")
    return lines


def _by_bits(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: row["bits_per_byte"]["mean"])


def _costs(row: Mapping[str, Any], step: Mapping[str, Any] | None) -> list[str]:
    return [
        row["name"],
        f"{row['parameters']:,}",
        f"{step['tokens_per_second']:,.0f}" if step else "",
        human_size(round(row["peak_memory"])),
        f"{row['state_bytes']:,}",
        f"{row['generated_per_second']['mean']:,.0f}",
    ]


def _losses(row: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """Bits per byte, the verdict against the first contender, and the loss of names again."""
    run = row["run"]
    against = next((one["verdict"] for one in part["verdicts"] if one["run"] == run), "")
    return [_spread(row["bits_per_byte"], 3), against, _spread(row["names_again"], 2)]


def _in_seconds(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    bits, names = _spread(row["bits_per_byte"], 3), _spread(row["names_again"], 2)
    return [f"{row['tokens'] / 1e6:.2f}", bits, names]


def _spread(figure: Mapping[str, float | None], digits: int) -> str:
    deviation = figure["deviation"]
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{spread}"


if __name__ == "__main__":
    main(sys.argv[1:])
