"""Unequal workers, one killed, one joining: asynchronous DiLoCo, synchronous DiLoCo, one big batch.

python -m benchmarks.diloco            simulates, and writes benchmarks/diloco.json
python -m benchmarks.diloco --table    prints it

Time is simulated (a worker's speed is batches a second), training is real: each worker has weights
and an optimizer of its own, and reads the batches that the server gives it. Twice: until all have
read as many tokens, and until as many simulated seconds are over.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.machine import ROOT
from benchmarks.startup import read_split
from benchmarks.training import Workplace
from ys_llm.csrc import loader
from ys_llm.data.batches import batch_at
from ys_llm.evaluation.bits_per_byte import evaluate_tokens
from ys_llm.evaluation.compare import code_version, hardware
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.system.files import write_atomically
from ys_llm.training.compute import process_settings
from ys_llm.training.diloco import (
    Arrival,
    DelayedNesterov,
    Weights,
    Worker,
    asynchronous,
    synchronous,
)
from ys_llm.training.optimizer import make_optimizer, set_learning_rate
from ys_llm.training.schedule import scheduled_rate
from ys_llm.training.trainer import Run, batch_plan

FILE = ROOT / "benchmarks/diloco.json"
# Of the quickstart's model, one that a few thousand small batches teach something.
SETTINGS = (
    *("model.d_model=96", "model.n_layers=2", "model.d_mlp=192", "model.copy.window=0"),
    *("tokenizer.vocab_size=1024", "data.batching=shuffled", "train.seq_len=64"),
    *("train.batch_size=8", "train.warmup_steps=50", "train.dtype=fp32", "train.minutes=null"),
)
INNER_STEPS = 20  # of the fastest worker
EXCHANGE = 1.0  # seconds of sending and fetching weights, or of an all-reduce of gradients
WORKERS = (
    Worker(1.0, EXCHANGE),
    Worker(0.75, EXCHANGE, dies=300),
    Worker(0.5, EXCHANGE),
    Worker(0.25, EXCHANGE),
    Worker(0.75, EXCHANGE, joins=600),
)
BATCHES, SECONDS = 1920, 960.0  # what both budgets are
TOGETHER = 4  # workers that the outer optimizer expects
BIG_BATCH, SYNCHRONOUS, ASYNCHRONOUS = "one big batch", "DiLoCo", "asynchronous DiLoCo"
EQUAL_ROUNDS, NAIVE = "… without dynamic local updates", "… without delayed momentum"
NAMES = (BIG_BATCH, SYNCHRONOUS, ASYNCHRONOUS, EQUAL_ROUNDS, NAIVE)
Rounds = Iterator[Sequence[Arrival]]


@dataclass(frozen=True)
class Row:
    """A contender under one budget; what a worker that died had read is not counted."""

    name: str
    batches: int
    seconds: float
    steps: int  # of the weights that all share
    bytes_per_token: float
    staleness: float
    bits_per_byte: float


def main(words: Sequence[str]) -> None:
    """Simulate and write the results, or print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diloco",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", action="store_true", help="print what there is")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--corpus", type=Path, default=ROOT / "training_data", metavar="PATH")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    arguments = parser.parse_args(words)
    if not arguments.table:
        described = measure(arguments, words)
        write_atomically(arguments.out, json.dumps(described, indent=1) + "\n")
    print("\n".join(markdown(json.loads(arguments.out.read_text(encoding="utf-8")))))


def measure(arguments: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Every contender under both budgets."""
    loader.build()
    batches, seconds = (38, 96.0) if arguments.quick else (BATCHES, SECONDS)
    with tempfile.TemporaryDirectory(prefix="ys-diloco-") as folder:
        place = Workplace(arguments.corpus, read_split(arguments.corpus), Path(folder))
        run = place.run("quickstart", SETTINGS, quick=arguments.quick)
        with process_settings(run.config.train):
            rows = {
                "tokens": [simulated(run, name, batches=batches) for name in NAMES],
                "seconds": [simulated(run, name, seconds=seconds) for name in NAMES],
            }
    return {
        "command": " ".join(["python -m benchmarks.diloco", *words]),
        "commit": code_version(),
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "parameters": parameter_count(run.model),
        "tokens_per_batch": tokens_per_batch(run),
        "workers": [asdict(worker) | {"dies": min(worker.dies, 1e9)} for worker in WORKERS],
        **{budget: [asdict(row) for row in found] for budget, found in rows.items()},
    }


def tokens_per_batch(run: Run) -> int:
    """Tokens that a worker reads in one step."""
    (stage,) = run.config.train.plan
    return stage.seq_len * stage.batch_size


class Training:
    """What workers train, each with weights and moments of its own, and the weights they share.

    The learning rate is that of the batch, as a place among `total`.
    """

    def __init__(self, run: Run, name: str, total: int) -> None:
        self._run, self._total = run, total
        self._own: dict[int, tuple[Model, torch.optim.Optimizer]] = {}
        self.shared = copy.deepcopy(run.model)
        self._optimizer = make_optimizer(self.shared, run.config.train)
        every = 1 if name in (SYNCHRONOUS, NAIVE) else TOGETHER
        self.server = DelayedNesterov(list(self.shared.parameters()), every=every)

    def work(self, worker: int, weights: Weights, batches: range) -> list[Tensor]:
        """A worker's round."""
        if worker not in self._own:
            model = copy.deepcopy(self._run.model)
            self._own[worker] = model, make_optimizer(model, self._run.config.train)
        model, optimizer = self._own[worker]
        _put(weights, model)
        for index in batches:
            self._step(model, optimizer, [index])
        return [parameter.detach().clone() for parameter in model.parameters()]

    def learn(self, batches: Sequence[int]) -> None:
        """A step of the shared weights on the mean gradient of these batches."""
        self._step(self.shared, self._optimizer, batches)

    def _step(self, model: Model, optimizer: torch.optim.Optimizer, batches: Sequence[int]) -> None:
        config, plan = self._run.config, batch_plan(self._run.config, self._run.tokenizer, 0)
        optimizer.zero_grad(set_to_none=True)
        for index in batches:
            batch = batch_at(self._run.data.training, plan, index)
            inputs, targets = batch.inputs_BT, batch.targets_BT
            loss, _ = model(inputs, None, batch.starts_BT, targets_BT=targets)
            torch.autograd.backward(loss / len(batches))
        clip_grad_norm_(model.parameters(), config.train.grad_clip)
        place = min(batches[-1], self._total - 1)
        rate = scheduled_rate(place, config.train, total_steps=self._total)
        set_learning_rate(optimizer, rate)
        optimizer.step()

    def bits_per_byte(self, name: str) -> float:
        """Of the shared weights, on the held-out text."""
        if name != BIG_BATCH:
            _put(self.server.weights, self.shared)
        config, held_out = self._run.config.train, self._run.data.validation
        assert held_out is not None, "the corpus holds too little text"
        tokens = config.eval_tokens
        found = evaluate_tokens(self.shared, held_out, seq_len=config.seq_len, max_tokens=tokens)
        return found.bits_per_byte


@torch.no_grad()
def _put(weights: Weights, model: nn.Module) -> None:
    for parameter, tensor in zip(model.parameters(), weights, strict=True):
        parameter.copy_(tensor)


class Nothing:
    """A training without weights, to count what a budget has time for."""

    def __init__(self) -> None:
        self.server = DelayedNesterov([], every=1)

    def work(self, worker: int, weights: Weights, batches: range) -> Weights:
        """No work."""
        return weights

    def learn(self, batches: Sequence[int]) -> None:
        """No step."""


def rounds_of(name: str, training: Training | Nothing) -> Rounds:
    """What arrives together, one round of the contender after the other."""
    if name == BIG_BATCH:
        return big_batches(WORKERS, training)
    server, work = training.server, training.work
    if name == SYNCHRONOUS:
        return synchronous(server, WORKERS, work, inner_steps=INNER_STEPS)
    dynamic = name != EQUAL_ROUNDS
    arrivals = asynchronous(server, WORKERS, work, inner_steps=INNER_STEPS, dynamic=dynamic)
    return ([arrival] for arrival in arrivals)


def big_batches(workers: Sequence[Worker], training: Training | Nothing) -> Rounds:
    """Data parallelism: a batch of each worker makes one step, and all wait for the slowest."""
    now, first = 0.0, 0
    while there := [n for n, w in enumerate(workers) if w.joins <= now < w.dies]:
        now = max(workers[number].end(now, 1) for number in there)
        training.learn(range(first, first + len(there)))
        yield [Arrival(now, n, range(at, at + 1)) for at, n in enumerate(there, first)]
        first += len(there)


def within(rounds: Rounds, *, batches: float, seconds: float) -> Rounds:
    """Those rounds that end within the seconds, up to the first that reaches the batches."""
    read = 0
    for arrivals in rounds:
        if arrivals[0].seconds > seconds:
            return
        yield arrivals
        read += sum(len(arrival.batches) for arrival in arrivals)
        if read >= batches:
            return


def simulated(run: Run, name: str, **budget: float) -> Row:
    """The contender under this budget."""
    limits = {"batches": float("inf"), "seconds": float("inf")} | budget
    counted = [a for together in within(rounds_of(name, Nothing()), **limits) for a in together]
    total = sum(len(arrival.batches) for arrival in counted)
    training = Training(run, name, total)
    # By batches in both: a round after the last second would be trained before it is seen.
    for _ in within(rounds_of(name, training), batches=total, seconds=float("inf")):
        pass
    size, steps = 4 * parameter_count(run.model), len({arrival.seconds for arrival in counted})
    # Each arrival sends weights and fetches them; an all-reduce of N passes 2 (N - 1) / N on.
    sent = 2 * len(counted) - (2 * steps if name == BIG_BATCH else 0)
    return Row(
        name,
        total,
        counted[-1].seconds,
        steps if name in (BIG_BATCH, SYNCHRONOUS) else len(counted),
        round(sent * size / (total * tokens_per_batch(run)), 1),
        round(sum(arrival.staleness for arrival in counted) / len(counted), 2),
        round(training.bits_per_byte(name), 4),
    )


def markdown(described: dict[str, Any]) -> list[str]:
    """The lines of a table."""
    batches, seconds = described["tokens"][0]["batches"], SECONDS
    lines = [
        f"| | shared steps | bytes a token | staleness | seconds for {batches:,} batches "
        f"| bits per byte then | batches in {seconds:,.0f} s | bits per byte then |",
        f"|---|{'---:|' * 7}",
    ]
    for by_tokens, by_time in zip(described["tokens"], described["seconds"], strict=True):
        cells = [
            f"{by_tokens['steps']:,}",
            f"{by_tokens['bytes_per_token']:,.0f}",
            f"{by_tokens['staleness']:.1f}",
            f"{by_tokens['seconds']:,.0f}",
            f"{by_tokens['bits_per_byte']:.3f}",
            f"{by_time['batches']:,}",
            f"{by_time['bits_per_byte']:.3f}",
        ]
        lines.append(f"| {by_tokens['name']} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
