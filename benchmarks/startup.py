"""Text to shards, a second start with all of it cached, and how soon `ys` answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import generation
from benchmarks.machine import ROOT
from benchmarks.rounds import Effort, Group, seconds_of
from ys_llm.config.sources import load_config
from ys_llm.data.readers import read_documents
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.split import Split, split_documents
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.training.setup import build

_LONGEST_SECONDS = 120


def read_split(corpus: Path) -> Split:
    """The corpus as the default configuration splits it."""
    return split_documents(read_documents(corpus), validation_fraction=0.05)


def measure_data(effort: Effort, *, corpus: Path, split: Split, folder: Path) -> list[Group]:
    """Encoding the training documents as on the first start; later starts up to the first step."""
    overrides = [f"data.path={corpus}", *(["tokenizer.vocab_size=300"] if effort.quick else [])]
    config = load_config(ROOT / "configs/default.yaml", overrides=overrides).config
    run, _ = build(config, folder, split, cache=folder / "cache")
    run.tokenizer.save(folder / "tokenizer.json")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    seconds: dict[str, list[float]] = {"encoding": [], "second start": []}
    for number in range(effort.rounds):
        aside = folder / f"encoded-{number}"
        fresh = Tokenizer.load(folder / "tokenizer.json")  # its cache of pieces is empty

        def encode(aside: Path = aside, fresh: Tokenizer = fresh) -> object:
            return load_or_tokenize(split.training, fresh, cache_dir=aside, label="training")

        def start_again() -> object:
            return build(config, folder, read_split(corpus), cache=folder / "cache")

        seconds["encoding"].append(seconds_of(encode))
        shutil.rmtree(aside)
        seconds["second start"].append(seconds_of(start_again))
    documents = [*split.training, *split.validation]
    facts = {
        "encoded_bytes": sum(document.n_bytes for document in split.training),
        "corpus_bytes": sum(document.n_bytes for document in documents),
        "documents": len(documents),
        "vocab_size": tokenizer.vocab_size,
    }
    return [Group("data", seconds, facts)]


def measure_start(effort: Effort, *, tokenizer: Tokenizer, folder: Path) -> list[Group]:
    """`ys --help` until it ends; `ys run` until its first token is on stdout."""
    generation.save_run(folder / "runs" / "bench", tokenizer)
    ys = [sys.executable, "-m", "ys_llm"]
    run = [*ys, "run", str(folder / "runs" / "bench"), "--prompt", "One day", "--seed", "1"]
    seconds: dict[str, list[float]] = {"--help": [], "first token": [], "import torch": []}
    for _ in range(effort.rounds + 1):
        seconds["--help"].append(_until_first_byte([*ys, "--help"]))
        seconds["first token"].append(_until_first_byte(run))
        seconds["import torch"].append(
            _until_first_byte([sys.executable, "-c", "import torch; print(1)"])
        )
    warm = {name: values[1:] for name, values in seconds.items()}  # the first reads the disk
    return [Group("start", warm, {})]


def _until_first_byte(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        _, errors = process.communicate(timeout=_LONGEST_SECONDS)
    assert first and process.returncode == 0, errors.decode("utf-8", "replace")[-500:]
    return seconds
