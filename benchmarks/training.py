"""Full training steps: the default model beside its baselines, and the parts of our own steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import lstm
from benchmarks.machine import (
    ROOT,
    bars,
    dtypes,
    large_matmul,
    matmul_flops,
    matmul_name,
    rate,
)
from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.config.schema import Config, TrainConfig
from ys_llm.config.sources import load_config
from ys_llm.data.split import Split
from ys_llm.model.costs import flops_per_token, parameter_count
from ys_llm.training import steps
from ys_llm.training.compute import process_settings, select_backends
from ys_llm.training.memory import keep_freed_memory
from ys_llm.training.metrics import Metrics, Progress
from ys_llm.training.recovery.non_finite import check_gradients
from ys_llm.training.setup import build
from ys_llm.training.trainer import Run, TrainState
from ys_llm.training.tuning import Source

# Names of configurations, all of about as many parameters; the LSTM is put into the default.
OURS, LLAMA, LSTM = "default", "llama", "nn.LSTM"
SIDES = (OURS, LLAMA, "min_gru", LSTM)
JUDGED = (OURS, LLAMA)  # the others are left out where there is no time for them
LENGTHS = (256, 2048)  # tokens a row
STEPS = (OURS, "quickstart")  # the models whose steps are taken apart
PARTS = ("forward", "backward", "gradient norm", "optimizer", "data")
TOKENS_PER_STEP = 8192
FLOPS_PER_TOKEN = 24e6  # of a training step of the default model, about
STEPS_THAT_FIT = 4 * 2.0  # of each side, in the seconds that its products alone would take
_SMALL = ("model.d_model=32", "model.n_layers=2", "model.d_mlp=64", "tokenizer.vocab_size=300")


class Workplace:
    """The corpus, split as `ys train` splits it, and the folder for runs and caches."""

    def __init__(self, corpus: Path, split: Split, folder: Path) -> None:
        self.corpus, self.split, self.folder = corpus, split, folder

    def build(self, name: str, overrides: Sequence[str], *, quick: bool) -> Run:
        """What a start costs before backends are chosen.

        Runs of one vocabulary share tokenizer and shards.
        """
        more = [f"data.path={self.corpus}", *overrides, *(_SMALL if quick else ())]
        config = config_of(name, more)
        folder = self.folder / f"vocabulary-{config.tokenizer.vocab_size}"
        folder.mkdir(parents=True, exist_ok=True)
        run, _ = build(config, folder, Source(self.split), cache=folder / "cache")
        run.tokenizer.save(folder / "tokenizer.json")
        return lstm.with_lstm(run) if name == LSTM else run

    def run(self, name: str, overrides: Sequence[str], *, quick: bool) -> Run:
        """As `ys train` prepares it."""
        run = self.build(name, overrides, quick=quick)
        run.model.train()
        with process_settings(run.config.train):
            compute = select_backends(run.config.train, run.model, run.compute)
        return replace(run, compute=compute)


def config_of(side: str, overrides: Sequence[str]) -> Config:
    """The configuration of a side; that of the LSTM is for a model that is given it afterwards."""
    own = lstm.OVERRIDES if side == LSTM else ()
    path = ROOT / f"configs/{OURS if side == LSTM else side}.yaml"
    return load_config(path, overrides=[*own, *overrides]).config


def measure(seq_len: int, effort: Effort, place: Workplace, limits: Group) -> list[Group]:
    """Tokens/s of each side in each dtype; rows of `seq_len` tokens."""
    keep_freed_memory()
    n_tokens = fitting(seq_len, effort, rate(limits, matmul_name("fp32")))
    limit = matmul_name(bars().dtype)
    cases: dict[str, Callable[[], object]] = {limit: large_matmul(bars().dtype, effort)}
    facts: dict[str, Any] = {}
    with ExitStack() as stack:
        for side in SIDES:
            for dtype in dtypes():
                run = place.run(side, _shape(seq_len, n_tokens, dtype, side), quick=effort.quick)
                cases[f"{side} {dtype}"] = training_step(run, stack.enter_context(_metrics(place)))
                facts[f"{side} {dtype}"] = _facts_of(run, seq_len)
        stack.enter_context(process_settings(TrainConfig()))
        keep = {limit, *(f"{side} {dtype}" for side in JUDGED for dtype in dtypes())}
        seconds, left_out = interleaved(cases, effort, keep=keep)
    facts |= {"work": {limit: matmul_flops(effort)}, "left_out": left_out}
    facts["tokens"] = dict.fromkeys(cases.keys() - {limit}, n_tokens)
    return [Group(f"training T {seq_len}", seconds, facts)]


def fitting(seq_len: int, effort: Effort, fp32_rate: float) -> int:
    """Tokens of a step: fewer where the sides that are judged would not fit into the time.

    In every dtype: a figure that is not judged is still compared with that of an older file.
    """
    n_tokens = max(128, seq_len) if effort.quick else TOKENS_PER_STEP
    work = len(JUDGED) * len(dtypes()) * STEPS_THAT_FIT * FLOPS_PER_TOKEN
    while n_tokens > max(seq_len, 1024) and n_tokens * work / fp32_rate > effort.seconds:
        n_tokens //= 2
    return n_tokens


def _shape(seq_len: int, n_tokens: int, dtype: str, side: str) -> list[str]:
    overrides = [
        *(f"train.seq_len={seq_len}", f"train.batch_size={n_tokens // seq_len}"),
        *("train.max_steps=1000000", f"train.dtype={dtype}"),
    ]
    if side == LLAMA:  # attention over the whole row, as the state covers it
        overrides.append(f"model.options.softmax_attention.window={seq_len}")
    return overrides


def _facts_of(run: Run, seq_len: int) -> dict[str, Any]:
    return {
        "parameters": parameter_count(run.model),
        "dtype": run.compute.dtype,
        "backend": ", ".join(run.compute.backends.values()),
        "flops": 3 * flops_per_token(run.model, seq_len) * _tokens(run),
    }


def _tokens(run: Run) -> int:
    (stage,) = run.config.train.plan
    return int(stage.seq_len * stage.batch_size)


def _metrics(place: Workplace) -> closing[Metrics]:
    return closing(Metrics(place.folder / "metrics.jsonl", keep_to_step=0))


def training_step(run: Run, metrics: Metrics) -> Callable[[], object]:
    """One iteration of training: forward and backward, clip, optimizer step, row of metrics."""
    state, display = TrainState(), Progress(begin=0, total=run.total_steps)

    def step() -> None:
        gradients = steps.forward_backward(run, state)
        check_gradients(run, state, gradients)
        row = steps.optimizer_step(run, state, gradients)
        display.step(row, speed=gradients.tokens / row["step_seconds"], seconds_left=0.0)
        metrics.write(row)

    return step


def measure_steps(effort: Effort, place: Workplace) -> list[Group]:
    """A group for each model of `STEPS`: seconds of a whole step and of its parts."""
    share = replace(effort, seconds=effort.seconds / len(STEPS))
    return [_measure_step(name, share, place) for name in STEPS]


def _measure_step(name: str, effort: Effort, place: Workplace) -> Group:
    seq_len, n_tokens = (32, 128) if effort.quick else (LENGTHS[0], TOKENS_PER_STEP)
    run = place.run(name, _shape(seq_len, n_tokens, bars().dtype, name), quick=effort.quick)
    limit = matmul_name(bars().dtype)
    rows: list[dict[str, float]] = []
    with process_settings(run.config.train), _metrics(place) as metrics:
        step = training_step(run, metrics)

        def taken_apart() -> None:
            with _timed_parts(run) as spent:
                begin = time.perf_counter()
                step()
                rows.append({"step": time.perf_counter() - begin, **spent})

        cases = {limit: large_matmul(bars().dtype, effort), "step": taken_apart}
        seconds, _ = interleaved(cases, effort, keep=cases)
    seconds |= {part: [row[part] for row in rows[-len(seconds["step"]) :]] for part in rows[0]}
    facts = {"tokens": {"step": n_tokens}, "work": {limit: matmul_flops(effort)}}
    return Group(f"step {name}", seconds, {**facts, **_facts_of(run, seq_len)})


@contextmanager
def _timed_parts(run: Run) -> Iterator[dict[str, float]]:
    """The seconds that each part of a step takes; AssertionError for a function never called."""
    spent, called = dict.fromkeys(PARTS, 0.0), set[Any]()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            called.add(function)
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.perf_counter() - begin

        return call

    parts: tuple[tuple[Any, str, str], ...] = (
        (run.model, "forward", "forward"),
        (torch.autograd, "backward", "backward"),
        (steps, "clip_gradients", "gradient norm"),
        (run.optimizer, "step", "optimizer"),
        (run.optimizer, "zero_grad", "optimizer"),
        (steps, "next_batch", "data"),
    )
    before = [getattr(owner, name) for owner, name, _ in parts]
    for (owner, name, part), function in zip(parts, before, strict=True):
        setattr(owner, name, timed(part, function))
    try:
        yield spent
    finally:
        for (owner, name, _), function in zip(parts, before, strict=True):
            setattr(owner, name, function)
    for (_, name, _), function in zip(parts, before, strict=True):
        assert function in called, f"{name} was never called: the step calls it by another name"
