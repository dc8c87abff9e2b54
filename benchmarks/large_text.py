"""What a text larger than memory takes: peak memory, rate, and the start of a second run.

    python benchmarks/large_text.py --gigabytes 10 --folder SOMEWHERE

makes lines of JSON with that much text and prepares them as the first start of a run does: reading,
splitting, a tokenizer, two shards, baselines; then again, with all of it cached. The same is timed
of --compare-megabytes of that text, once as rows of a file and once as documents in memory. About
twice the text must be free on the disk; what is made is removed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ys_llm.config.schema import DataConfig
from ys_llm.data import readers
from ys_llm.data.document_table import sorted_hashes, total_bytes
from ys_llm.data.records import Texts
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.split_cache import load_split
from ys_llm.data.tokenizer import LEARNED_CHARS, Tokenizer, train_tokenizer
from ys_llm.data.words import common_words
from ys_llm.evaluation.baselines import cached_baselines
from ys_llm.system.machine import inspect_machine

_FILE_BYTES = 250_000_000
_NEEDED = 2.6  # times the text: the text, its copy in the order of the hashes, its tokens
_WORDS = 50_000  # which are one text's only ones: a language has more, and new ones all the time


def documents(n_bytes: int, seed: int) -> Iterator[str]:
    """Texts of 0.2 to 8 kB, of words whose frequencies fall as those of a language do."""
    words, choose = _words(), np.random.default_rng(seed)
    shares = np.cumsum(1 / np.arange(2, _WORDS + 2))
    while n_bytes > 0:
        drawn = np.searchsorted(shares, shares[-1] * choose.random(choose.integers(40, 1600)))
        text = " ".join(map(words.__getitem__, drawn.tolist())).capitalize() + ".\n"
        n_bytes -= len(text)
        yield text


@cache
def _words() -> list[str]:
    choose = random.Random(0)
    return ["".join(choose.choices("etaoinshrdlu", k=1 + n % 9)) for n in range(_WORDS)]


def write_text(folder: Path, n_bytes: int) -> None:
    """A folder of files of lines of JSON."""
    folder.mkdir()
    for number in range(-(-n_bytes // _FILE_BYTES)):
        size = min(_FILE_BYTES, n_bytes - number * _FILE_BYTES)
        with (folder / f"{number:04}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents(size, number))


def prepare(text: Path, cache: Path, *, in_memory: bool) -> dict[str, Any]:
    """Do what a first start does before its model is built; seconds of each part, and the peak."""
    if in_memory:
        readers.SPOOL_BYTES = 1 << 62
    seconds: dict[str, float] = {}
    begun = time.perf_counter()

    def done(part: str) -> None:
        nonlocal begun
        seconds[part], begun = time.perf_counter() - begun, time.perf_counter()

    split = load_split(DataConfig(path=str(text)), scratch=cache, cache_dir=cache)
    done("reading and splitting")
    saved = cache / "tokenizer.json"
    if not saved.exists():
        texts = Texts(split.training, LEARNED_CHARS)
        train_tokenizer(texts, kind="words", vocab_size=16_384).save(saved)
    tokenizer = Tokenizer.load(saved)
    done("tokenizer")
    sides = {"training": split.training, "held out": split.validation}
    shards = [
        load_or_tokenize(side, tokenizer, cache_dir=cache, label=label)
        for label, side in sides.items()
    ]
    done("encoding")
    cached_baselines(split.training, split.validation, cache_dir=cache)
    done("baselines")
    if not (cache / "common_words.json").exists():
        common_words(split.training).save(cache / "common_words.json")
    done("common words")
    for side in sides.values():  # what a checkpoint says of the text
        for _ in sorted_hashes(side):
            pass
    done("fingerprints")
    return {
        "documents": sum(map(len, sides.values())),
        "bytes": sum(map(total_bytes, sides.values())),
        "tokens": sum(shard.n_inputs for shard in shards),
        "seconds": {part: round(time, 2) for part, time in seconds.items()},
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """The peak of this process, and of as many that encode text as there are cores."""
    own, largest_child = (
        1024 * resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own + inspect_machine().usable_cores * largest_child


def in_a_process(text: Path, cache: Path, *, in_memory: bool = False) -> dict[str, Any]:
    """What `prepare` returns in a process of its own, and how long all of that process took."""
    words = [sys.executable, __file__, "--prepare", str(text), str(cache)]
    begun = time.perf_counter()
    done = subprocess.run(
        [*words, *(["--in-memory"] if in_memory else [])], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "process_seconds": round(time.perf_counter() - begun, 2)}


def measure(folder: Path, n_bytes: int, compared: int) -> dict[str, Any]:
    """A first and a second start with all of the text, and both paths with a part of it."""
    found: dict[str, Any] = {}
    write_text(folder / "part", compared)
    for round_ in range(2):  # by turns: other work on this machine slows both
        for name, in_memory in (("rows", False), ("in memory", True)):
            cache = folder / f"{name} {round_}"
            cache.mkdir()
            again = in_a_process(folder / "part", cache, in_memory=in_memory)
            best = min(found.get(name, again), again, key=lambda one: sum(one["seconds"].values()))
            found[name] = best
            shutil.rmtree(cache)
    write_text(folder / "all", n_bytes)
    (folder / "cache").mkdir()
    time.sleep(4)  # files that were written just now are read again
    found["first start"] = in_a_process(folder / "all", folder / "cache")
    found["second start"] = in_a_process(folder / "all", folder / "cache")
    return found


def report(found: dict[str, Any]) -> Iterator[str]:
    """A line for each start."""
    for name, one in found.items():
        seconds = sum(one["seconds"].values())
        yield (
            f"{name:<13} {one['bytes'] / 1e9:7.2f} GB  {one['documents']:>10,} documents  "
            f"{seconds:8.1f} s  {one['bytes'] / 1e6 / seconds:7.1f} MB/s  peak "
            f"{one['peak_bytes'] / 1e6:6.0f} MB  {one['seconds']}"
        )


def main() -> None:
    """Measure, and print a line for each start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--compare-megabytes", type=float, default=200.0)
    parser.add_argument("--folder", type=Path, help="where there is space; the default: of temp")
    parser.add_argument("--prepare", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        print(json.dumps(prepare(*arguments.prepare, in_memory=arguments.in_memory)))
        return
    with tempfile.TemporaryDirectory(prefix="ys-large-", dir=arguments.folder) as made:
        n_bytes, free = int(arguments.gigabytes * 1e9), shutil.disk_usage(made).free
        if free < _NEEDED * n_bytes:
            sys.exit(f"{free / 1e9:.0f} GB are free, {_NEEDED * n_bytes / 1e9:.0f} GB are needed")
        found = measure(Path(made), n_bytes, int(arguments.compare_megabytes * 1e6))
    print("\n".join(report(found)))


if __name__ == "__main__":
    main()
