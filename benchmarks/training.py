"""Full training steps: the default model and the Llama block, and the parts of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT
from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.config.schema import Config
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

OURS, LLAMA = "ours", "llama"
PARTS = ("forward", "backward", "optimizer")  # backward with clipping
TOKENS_PER_STEP = 8192
_SMALL = ("model.d_model=32", "model.n_layers=2", "model.d_mlp=64", "tokenizer.vocab_size=300")


def measure(effort: Effort, *, corpus: Path, split: Split, folder: Path) -> list[Group]:
    """One group for each length of row, and one with the parts of our own steps."""
    keep_freed_memory()
    groups = []
    for seq_len in (32, 64) if effort.quick else (256, 2048):
        configs = {
            OURS: _config("default", corpus, seq_len, effort, []),
            # Attention over the whole row, as the state covers it.
            LLAMA: _config(
                "llama",
                corpus,
                seq_len,
                effort,
                [f"model.options.softmax_attention.window={seq_len}"],
            ),
        }
        with process_settings(configs[OURS].train):
            runs = {name: _run(config, split, folder) for name, config in configs.items()}
            groups.append(_side_by_side(runs, seq_len, effort, folder))
            groups.append(_parts(runs[OURS], seq_len, effort, folder))
    return groups


def _config(name: str, corpus: Path, seq_len: int, effort: Effort, more: list[str]) -> Config:
    tokens = 128 if effort.quick else TOKENS_PER_STEP
    overrides = [
        *(f"data.path={corpus}", "train.max_steps=1000000", f"train.seq_len={seq_len}"),
        *(f"train.batch_size={tokens // seq_len}", *more, *(_SMALL if effort.quick else ())),
    ]
    return load_config(ROOT / f"configs/{name}.yaml", overrides=overrides).config


def _run(config: Config, split: Split, folder: Path) -> Run:
    """As `ys train` prepares it; tokenizer and shards are shared by all."""
    run, _ = build(config, folder, split, cache=folder / "cache")
    run.tokenizer.save(folder / "tokenizer.json")
    run.model.train()
    return replace(run, compute=select_backends(config.train, run.model, run.compute))


def _side_by_side(runs: dict[str, Run], seq_len: int, effort: Effort, folder: Path) -> Group:
    with closing(Metrics(folder / "metrics.jsonl", keep_to_step=0)) as metrics:
        cases = {name: _step(run, metrics) for name, run in runs.items()}
        seconds, _ = interleaved(cases, rounds=2 * effort.rounds)
    facts = {
        name: {
            "parameters": parameter_count(run.model),
            "dtype": run.compute.dtype,
            "backend": ", ".join(run.compute.backends.values()),
            "flops": 3 * flops_per_token(run.model, seq_len) * _tokens(run),
        }
        for name, run in runs.items()
    }
    return Group(f"training T {seq_len}", seconds, {"tokens": _tokens(runs[OURS]), **facts})


def _tokens(run: Run) -> int:
    (stage,) = run.config.train.plan
    return int(stage.seq_len * stage.batch_size)


def _step(run: Run, metrics: Metrics) -> Callable[[], object]:
    """One iteration of training: forward and backward, clip, optimizer step, row of metrics."""
    state, display = TrainState(), Progress(begin=0, total=run.total_steps)

    def step() -> None:
        gradients = steps.forward_backward(run, state)
        check_gradients(run, state, gradients)
        row = steps.optimizer_step(run, state, gradients)
        display.step(row, speed=gradients.tokens / row["step_seconds"], seconds_left=0.0)
        metrics.write(row)

    return step


def _parts(run: Run, seq_len: int, effort: Effort, folder: Path) -> Group:
    """Seconds of forward, backward (with clipping) and optimizer inside full steps."""
    seconds: dict[str, list[float]] = {"step": [], **{part: [] for part in PARTS}}
    with closing(Metrics(folder / "metrics.jsonl", keep_to_step=0)) as metrics:
        step = _step(run, metrics)
        step()
        for _ in range(2 * effort.rounds):
            with _timed_parts(run) as spent:
                begin = time.perf_counter()
                step()
                seconds["step"].append(time.perf_counter() - begin)
            for part, value in spent.items():
                seconds[part].append(value)
    return Group(f"step T {seq_len}", seconds, {})


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
        (steps, "clip_gradients", "backward"),
        (run.optimizer, "step", "optimizer"),
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
