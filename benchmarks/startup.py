"""Text to shards, a second start with all of it cached, and how soon `ys` answers."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import generation
from benchmarks.machine import ROOT
from benchmarks.rounds import Effort, Group, interleaved
from benchmarks.training import OURS, Workplace
from ys_llm.data.readers import read_documents
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.split import Split, split_documents
from ys_llm.data.tokenizer import Tokenizer

_LONGEST_SECONDS = 120


def read_split(corpus: Path) -> Split:
    """The corpus as the default configuration splits it."""
    return split_documents(read_documents(corpus), validation_fraction=0.05)


def measure_data(effort: Effort, place: Workplace) -> list[Group]:
    """Encoding the training documents as on the first start; later starts up to the first step."""
    tokenizer = place.build(OURS, [], quick=effort.quick).tokenizer
    saved = place.folder / "tokenizer.json"
    tokenizer.save(saved)
    numbers = itertools.count()

    with tempfile.TemporaryDirectory(dir=place.folder) as aside:

        def encode() -> object:
            fresh = Tokenizer.load(saved)  # its cache of pieces is empty
            folder = Path(aside) / str(next(numbers))
            return load_or_tokenize(place.split.training, fresh, cache_dir=folder, label="training")

        def start_again() -> object:
            again = Workplace(place.corpus, read_split(place.corpus), place.folder)
            return again.build(OURS, [], quick=effort.quick)

        cases: dict[str, Callable[[], object]] = {"encoding": encode, "second start": start_again}
        seconds, _ = interleaved(cases, effort, keep=cases)
    documents = [*place.split.training, *place.split.validation]
    facts = {
        "encoded_bytes": sum(document.n_bytes for document in place.split.training),
        "corpus_bytes": sum(document.n_bytes for document in documents),
        "documents": len(documents),
        "vocab_size": tokenizer.vocab_size,
    }
    return [Group("data", seconds, facts)]


def measure_start(effort: Effort, place: Workplace) -> list[Group]:
    """Seconds of whole processes: `ys --help`, `ys run` for one token, `ys doctor`."""
    folder = place.folder / "runs" / "bench"
    generation.save_run(folder, place.build(OURS, [], quick=effort.quick).tokenizer)
    ys = [sys.executable, "-m", "ys_llm"]
    commands = {
        "--help": [*ys, "--help"],
        "first token": [*ys, "run", str(folder), "--prompt", "One day", "--max-tokens", "1"],
        "import torch": [sys.executable, "-c", "import torch"],
        "doctor": [*ys, "doctor"],
    }
    cases = {name: _process(command) for name, command in commands.items()}
    seconds, _ = interleaved(cases, effort, keep=cases)
    return [Group("start", seconds, {})]


def _process(command: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_LONGEST_SECONDS,
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-500:]

    return run
