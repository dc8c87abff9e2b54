"""Mixers at five million parameters: `ys compare` at equal tokens and at equal planned seconds.

python -m benchmarks.mixers --data PATH [--tokens 8e5] [--seconds 40] [--seeds 1]
python -m benchmarks.mixers --table                      prints benchmarks/mixers.json as a table

The first trains what is not trained yet, in runs/, and writes benchmarks/mixers.json. Steps are
timed before anything is trained, which takes two minutes that should be quiet; losses depend on no
other work. Stopped, it goes on when the same command is typed again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
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

RESULTS = ROOT / "benchmarks/mixers.json"
STATE_TOKENS = 2048
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
    parser.add_argument("--tokens", default="8e5", help="tokens of each (default: 8e5)")
    parser.add_argument("--seconds", default="40", help="planned seconds of each (default: 40)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each (default: 1)")
    parser.add_argument("--table", action="store_true", help="print what there is")
    arguments = parser.parse_args(words)
    if not arguments.table:
        if not arguments.data:
            parser.error("give --data PATH, or --table")
        write_atomically(RESULTS, json.dumps(measured(arguments, words), indent=1) + "\n")
    print("\n".join(markdown(json.loads(RESULTS.read_text(encoding="utf-8")))))


def measured(arguments: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Both comparisons, and what each contender costs."""
    data, seeds = arguments.data, arguments.seeds
    seconds = _compared(CONTENDERS, f"seconds={arguments.seconds}", data, seeds)
    tokens = _compared(EVERY, f"tokens={arguments.tokens}", data, seeds)
    times = json.loads(Path("runs/step_times.json").read_text(encoding="utf-8"))
    timed = {one["run"]: one for one in times.values()}
    runs = {name: run_of(name) for name in EVERY}
    return {
        "command": " ".join(["python -m benchmarks.mixers", *words]).replace(data, "PATH"),
        "torch": torch.__version__,
        "tokens": float(arguments.tokens),
        "seconds": float(arguments.seconds),
        "seeds": tokens["seeds"],
        "hardware": sorted({run["hardware"] for run in tokens["runs"] + seconds["runs"]}),
        "commits": sorted({run["commit"] for run in tokens["runs"] + seconds["runs"]}),
        "verdicts": {"tokens": tokens["verdicts"], "seconds": seconds["verdicts"]},
        "rows": [
            {
                "name": name,
                "config": EVERY[name],
                "state_bytes": _state_bytes(name),
                "step": timed.get(run),
                "tokens": _standing(tokens, run),
                "seconds": _standing(seconds, run),
            }
            for name, run in runs.items()
        ],
    }


def run_of(name: str) -> str:
    """The name of a contender's runs."""
    return load_config(find_config(EVERY[name])).config.run


def _compared(
    contenders: Mapping[str, str], budget: str, data: str, seeds: int
) -> Mapping[str, Any]:
    """The figures of `ys compare` with this budget."""
    out = Path(f"runs/mixers-{budget.partition('=')[0]}.json")
    settings = [word for one in (f"data.path={data}", *SETTINGS) for word in ("--set", one)]
    command = [sys.executable, "-m", "ys_llm", "compare", *contenders.values()]
    command += ["--budget", budget, "--allow-different", "model.copy.window", "--seeds", str(seeds)]
    subprocess.run([*command, *settings, "--out", str(out)], check=True)
    found: Mapping[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _state_bytes(name: str) -> int:
    config = load_config(find_config(EVERY[name])).config
    with torch.device("meta"):
        model = Model(config.model, vocab_size=config.tokenizer.vocab_size)
    return state_bytes(model, batch_size=1, seq_len=STATE_TOKENS)


def _standing(found: Mapping[str, Any], run: str) -> Mapping[str, Any] | None:
    """The means of a configuration; None where it was not compared."""
    return next((one for one in found["configurations"] if one["run"] == run), None)


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The lines of a table, the best at equal tokens first."""
    heads = ["parameters", "tokens/s", "memory of a step", "bytes of state", "generated/s"]
    heads += [f"{results['tokens'] / 1e6:g} M tokens: bits per byte", "names again"]
    heads += [f"{results['seconds']:g} s: M tokens", "bits per byte", "names again"]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    rows = sorted(results["rows"], key=lambda row: row["tokens"]["bits_per_byte"]["mean"])
    return [*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    tokens, seconds, step = row["tokens"], row["seconds"], row["step"]
    return [
        row["name"],
        f"{tokens['parameters']:,}",
        f"{step['tokens_per_second']:,.0f}" if step else "",
        human_size(round(tokens["peak_memory"])),
        f"{row['state_bytes']:,}",
        f"{tokens['generated_per_second']['mean']:,.0f}",
        _spread(tokens["bits_per_byte"], 3),
        _spread(tokens["names_again"], 2),
        f"{seconds['tokens'] / 1e6:.2f}" if seconds else "",
        _spread(seconds["bits_per_byte"], 3) if seconds else "",
        _spread(seconds["names_again"], 2) if seconds else "",
    ]


def _spread(figure: Mapping[str, float | None], digits: int) -> str:
    deviation = figure["deviation"]
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{spread}"


if __name__ == "__main__":
    main(sys.argv[1:])
