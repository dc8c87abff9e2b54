"""What the copy tier costs: the quickstart's model with and without it, in interleaved rounds.

python -m benchmarks.copy_tier generation     seconds a token: one text and many, early and late
python -m benchmarks.copy_tier training       seconds of a step, in each dtype

Each line shows the fastest round without the tier, with it, and what the tier adds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from benchmarks.generation import TEXTS, continuation, continuations
from benchmarks.machine import ROOT, dtypes
from benchmarks.rounds import Effort, interleaved
from benchmarks.startup import read_split
from benchmarks.training import Workplace, training_step
from ys_llm.config.schema import TrainConfig
from ys_llm.config.sources import load_config
from ys_llm.csrc import loader
from ys_llm.inference.generate import prefill
from ys_llm.model.language_model import Model
from ys_llm.training.compute import process_settings
from ys_llm.training.memory import keep_freed_memory
from ys_llm.training.metrics import Metrics

WINDOW = 512
ANSWER = 64  # tokens of each text
Cases = dict[str, Callable[[], object]]


def main(words: Sequence[str]) -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.copy_tier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("generation", "training"))
    parser.add_argument("--seconds", type=float, default=40, help="for all rounds (default: 40)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args(words)
    measure = generation if arguments.part == "generation" else training
    for line in measure(Effort(arguments.seconds, quick=arguments.quick)):
        print(line, flush=True)


def generation(effort: Effort) -> list[str]:
    """A token of one text and of `TEXTS` texts, after a few tokens and after many."""
    loader.build()
    far = 600 if effort.quick else 100_000
    cases: Cases = {}
    for window in (0, WINDOW):
        model = _model(window)
        ids = torch.randint(2, model.vocab_size, (far,)).tolist()
        for place, read in ((100, prefill(model, ids[:100])), (far, prefill(model, ids))):
            cases[f"{window}: one text after {place:,}"] = continuation(model, read, ANSWER)
        texts = 4 if effort.quick else TEXTS
        cases[f"{window}: {texts} texts after {far:,}"] = continuations(model, read, ANSWER, texts)
    return _compared(cases, effort, per=ANSWER, unit="us a token", factor=1e6)


def training(effort: Effort) -> list[str]:
    """A step of training on `training_data/`, as `ys train` prepares it."""
    keep_freed_memory()
    corpus = ROOT / "training_data"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place, cases = Workplace(corpus, read_split(corpus), folder), Cases()
        metrics = stack.enter_context(closing(Metrics(folder / "metrics.jsonl", keep_to_step=0)))
        for dtype in dtypes():
            for window in (0, WINDOW):
                more = [f"model.copy.window={window}", f"train.dtype={dtype}"]
                more.append("train.max_steps=1000000")
                run = place.run("quickstart", more, quick=effort.quick)
                cases[f"{window}: {dtype}"] = training_step(run, metrics)
        stack.enter_context(process_settings(TrainConfig()))
        return _compared(cases, effort, per=1, unit="ms a step", factor=1e3)


def _model(window: int) -> Model:
    changes = [f"model.copy.window={window}"]
    config = load_config(ROOT / "configs/quickstart.yaml", overrides=changes).config
    torch.manual_seed(0)
    return Model(config.model, vocab_size=config.tokenizer.vocab_size).eval()


def _compared(cases: Cases, effort: Effort, *, per: int, unit: str, factor: float) -> list[str]:
    """A line for each pair of cases `0: NAME` and `512: NAME`."""
    seconds, _ = interleaved(cases, effort, keep=cases)
    fastest = {name: min(rounds) / per * factor for name, rounds in seconds.items()}
    lines = []
    for name in (case.removeprefix("0: ") for case in cases if case.startswith("0: ")):
        without, with_tier = fastest[f"0: {name}"], fastest[f"{WINDOW}: {name}"]
        added = f"{with_tier / without - 1:+.1%}"
        lines.append(f"{name:<28} {without:9.1f} {with_tier:9.1f} {unit}  {added}")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
