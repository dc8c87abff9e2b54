"""The small run that the training tests share: settings, text, and the comparison of runs.

Settings are written as on the command line. The rate is constant (`constant_sqrt_cooldown` without
a cool-down), so that a run may be given more steps and still be the run it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ys_llm.config.sources import load_config
from ys_llm.model.language_model import Model
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.history import read_metrics
from ys_llm.runs.model_files import read_tensors
from ys_llm.system.lock import RUN_LOCK
from ys_llm.training.loop import TrainSummary

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "run=mine",
    "data.validation_fraction=0.2",
    "tokenizer.kind=bytes",
    "model.d_model=16",
    "model.n_layers=1",
    "model.d_mlp=24",
    "train.max_steps=6",
    "train.seq_len=16",
    "train.batch_size=4",
    "train.schedule=constant_sqrt_cooldown",
    "train.cooldown_fraction=0",
    "train.warmup_steps=2",
    "train.eval_tokens=300",
    "train.device=cpu",
)
# The quickest for models this small, and the same everywhere. `AS_USERS_RUN` is the default.
PINNED = ("train.dtype=fp32", "train.backend={three_tier: windowed}", "train.threads=1")
AS_USERS_RUN = ("train.threads=2",)  # dtype and backend are chosen by the run
SMALL = (*TINY, *PINNED)
SMALL_STATE = "model.options.three_tier.d_state=16"
NEVER = 10**9  # steps between events that must not happen
ROW = {"step", "tokens", "loss", "learning_rate", "grad_norm", "step_seconds", "seconds"}
RUN_FOLDER = {
    ".ys-lock",
    "README.md",
    "cache",
    "checkpoints",
    "config.json",
    "config.yaml",
    "generation_config.json",
    "metrics.jsonl",
    "model.safetensors",
    "report.html",
    "report.json",
    "common_words.json",
    "split.json",
    "tokenizer.json",
}

TrainRun = Callable[..., TrainSummary]


def sentences(count: int, *, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    pets, places = ("cat", "dog", "fox"), ("mat", "log", "hill")
    return [
        f"The {draw.choice(pets)} sat on the {draw.choice(places)} and saw {i} birds."
        for i in range(count)
    ]


def write_corpus(folder: Path, texts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)


def settings(
    corpus: Path, changes: tuple[str, ...], *, compute: tuple[str, ...] = PINNED
) -> list[str]:
    options = () if "model.layers=[softmax_attention]" in changes else (SMALL_STATE,)
    measured = any(change.startswith("train.minutes=") for change in changes)
    tiny = [one for one in TINY if not (measured and one.startswith("train.max_steps="))]
    return [*tiny, *compute, *options, f"data.path={corpus}", *changes]


def rows_of(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")


def column(run: Path, name: str) -> list[Any]:
    return [row[name] for row in rows_of(run)]


def last_tensors(run: Path) -> dict[str, Tensor]:
    """Weights, moments, random numbers and carried state of the last checkpoint."""
    files = sorted(checkpoints(run)[-1].glob("*.safetensors"))
    return {f"{f.stem} {key}": value for f in files for key, value in read_tensors(f).items()}


def assert_same_training(run: Path, other: Path) -> None:
    """Bit for bit the same weights, moments and random state, by the same steps."""
    ours, theirs = last_tensors(run), last_tensors(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    for name in ("step", "tokens", "loss", "grad_norm", "learning_rate"):
        assert column(run, name) == column(other, name), name


def snapshot(run: Path) -> dict[str, bytes]:
    """All files but the lock, which tells who trained last."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != RUN_LOCK)
    return {str(path): path.read_bytes() for path in files}


def initial_model(*changes: str) -> Model:
    """The model as training begins with it."""
    config = load_config(None, overrides=[*SMALL, SMALL_STATE, *changes]).config
    torch.manual_seed(config.train.seed)
    return Model(config.model, vocab_size=258)
