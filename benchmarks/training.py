"""Whole training steps: the default model beside the Llama block, and what a step is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.limits import ROOT
from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.data.split import Split
from ys_llm.model.costs import flops_per_token, parameter_count
from ys_llm.training.loop import gradients, learn
from ys_llm.training.metrics import Metrics, Progress
from ys_llm.training.recovery.non_finite import check_step
from ys_llm.training.setup import build, keep_freed_memory, select_backends
from ys_llm.training.trainer import Training

OURS, LLAMA = "ours", "llama"
TOKENS_PER_STEP = 8192
_SMALL = ("model.d_model=32", "model.n_layers=2", "model.d_mlp=64", "tokenizer.vocab_size=300")


def measure(effort: Effort, *, corpus: Path, split: Split, folder: Path) -> list[Group]:
    """One group for each length of row, and one with the parts of our own steps."""
    keep_freed_memory()
    torch.set_flush_denormal(True)
    groups = []
    for seq_len in (32, 64) if effort.quick else (256, 2048):
        configs = {
            OURS: _config("default", corpus, seq_len, effort, []),
            # Attention over the whole row, as the state covers it.
            LLAMA: _config("llama", corpus, seq_len, effort, [f"model.options.window={seq_len}"]),
        }
        trainings = {name: _training(config, split, folder) for name, config in configs.items()}
        groups.append(_side_by_side(trainings, seq_len, effort, folder))
        groups.append(_parts(trainings[OURS], seq_len, effort, folder))
    torch.set_flush_denormal(False)
    return groups


def _config(name: str, corpus: Path, seq_len: int, effort: Effort, more: list[str]) -> Config:
    tokens = 128 if effort.quick else TOKENS_PER_STEP
    overrides = [
        *(f"data.path={corpus}", "train.max_steps=1000000", f"train.seq_len={seq_len}"),
        *(f"train.batch_size={tokens // seq_len}", *more, *(_SMALL if effort.quick else ())),
    ]
    return load_config(ROOT / f"configs/{name}.yaml", overrides=overrides).config


def _training(config: Config, split: Split, folder: Path) -> Training:
    """As `ys train` makes it ready; tokenizer and shards are shared by all."""
    training = build(config, folder, split, cache=folder / "cache")
    training.tokenizer.save(folder / "tokenizer.json")
    select_backends(training)
    training.model.train()
    return training


def _side_by_side(
    trainings: dict[str, Training], seq_len: int, effort: Effort, folder: Path
) -> Group:
    with closing(Metrics(folder / "metrics.jsonl", keep_to_step=0)) as metrics:
        cases = {name: _step(training, metrics) for name, training in trainings.items()}
        seconds, _ = interleaved(cases, rounds=2 * effort.rounds)
    facts = {
        name: {
            "parameters": parameter_count(training.model),
            "dtype": training.at.dtype,
            "backend": training.at.backend,
            "flops": 3 * flops_per_token(training.model, seq_len) * _tokens(training),
        }
        for name, training in trainings.items()
    }
    tokens = _tokens(trainings[OURS])
    return Group(f"training T {seq_len}", seconds, {"tokens": tokens, **facts})


def _tokens(training: Training) -> int:
    (stage,) = training.config.train.plan
    return int(stage.seq_len * stage.batch_size)


def _step(training: Training, metrics: Metrics) -> Callable[[], object]:
    """One turn of the loop of `train.py`: batch, loss, backward, clip, step, row of metrics."""
    show = Progress(begin=0, total=training.total_steps)

    def run() -> None:
        tried = gradients(training)
        check_step(training, tried)
        row = learn(training, tried)
        show.step(row, speed=tried.tokens / row["step_seconds"], seconds_left=0.0)
        metrics.write(row)

    return run


def _parts(training: Training, seq_len: int, effort: Effort, folder: Path) -> Group:
    """Seconds of forward, backward (with clipping) and optimizer inside whole steps."""
    seconds: dict[str, list[float]] = {"step": [], "forward": [], "backward": [], "optimizer": []}
    with closing(Metrics(folder / "metrics.jsonl", keep_to_step=0)) as metrics:
        step = _step(training, metrics)
        step()
        for _ in range(2 * effort.rounds):
            with _watched(training) as spent:
                begin = time.perf_counter()
                step()
                seconds["step"].append(time.perf_counter() - begin)
            for part, value in spent.items():
                seconds[part].append(value)
    return Group(f"step T {seq_len}", seconds, {})


@contextmanager
def _watched(training: Training) -> Iterator[dict[str, float]]:
    """The seconds spent in the three parts of a step while this lasts."""
    spent = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.perf_counter() - begin

        return run

    parts: tuple[tuple[Any, str, str], ...] = (
        (training.model, "forward", "forward"),
        (torch.autograd, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "backward"),
        (training.optimizer, "step", "optimizer"),
    )
    before = [getattr(owner, name) for owner, name, _ in parts]
    for (owner, name, part), function in zip(parts, before, strict=True):
        setattr(owner, name, timed(part, function))
    try:
        yield spent
    finally:
        for (owner, name, _), function in zip(parts, before, strict=True):
            setattr(owner, name, function)
    for part, seconds in spent.items():
        assert seconds > 0, f"no {part} was seen: the loop calls it by another name"
