"""The parts of the bench, in order, and the share of the time that each gets."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from benchmarks import generation, layer, machine, startup, training
from benchmarks.layer import SHAPES, Shape
from benchmarks.rounds import Effort, Group
from benchmarks.startup import read_split
from benchmarks.training import LENGTHS, Workplace
from ys_llm.data.readers import read_documents
from ys_llm.system.files import write_atomically

SECTIONS = ("machine", "layer", "generate", "data", "model", "start")
QUICK_TEXT_BYTES = 200_000  # of the corpus, enough for every section to run
QUICK_LENGTHS = (32, 64)


class Part(NamedTuple):
    """What is measured together; `size`: the shape of a layer, or the tokens of a row."""

    section: str
    name: str
    weight: float
    size: Shape | int | None = None


PARTS = (
    Part("machine", "machine", 3),
    *(
        Part("layer", f"layer {shape}", weight, shape)
        for shape, weight in zip(SHAPES, (16, 6, 7, 7), strict=True)
    ),
    Part("generate", "generation", 12),
    Part("data", "data", 6),
    *(
        Part("model", f"training {seq_len}", weight, seq_len)
        for seq_len, weight in zip(LENGTHS, (13, 17), strict=True)
    ),
    Part("model", "steps", 8),
    Part("start", "start", 9),
)


def selected(sections: Collection[str]) -> list[Part]:
    """The parts of these sections; the machine's own limits always come first."""
    asked = set(SECTIONS if "all" in sections else sections) | {"machine"}
    return [part for part in PARTS if part.section in asked]


class Bench:
    """Measures one part after the other; what several need is prepared once."""

    def __init__(
        self, folder: Path, corpus: Path, left_out: Mapping[str, str], *, quick: bool
    ) -> None:
        self._folder, self._corpus, self._left_out, self._quick = folder, corpus, left_out, quick
        self._limits = Group("machine", {}, {})

    def measure(self, part: Part, seconds: float) -> list[Group]:
        """The groups of one part; the machine's own must be the first."""
        effort = Effort(seconds, self._quick)
        if part.section == "machine":
            self._limits = machine.measure(effort)
            return [self._limits]
        if isinstance(part.size, Shape):
            return layer.measure(part.size, effort, limits=self._limits, left_out=self._left_out)
        if part.section == "generate":
            return generation.measure(effort, self._limits)
        if part.section == "data":
            return startup.measure_data(effort, self._place)
        if part.section == "start":
            return startup.measure_start(effort, self._place)
        if part.size is None:
            return training.measure_steps(effort, self._place)
        seq_len = QUICK_LENGTHS[LENGTHS.index(part.size)] if self._quick else part.size
        return training.measure(seq_len, effort, self._place, self._limits)

    @cached_property
    def _place(self) -> Workplace:
        corpus = quick_corpus(self._corpus, self._folder) if self._quick else self._corpus
        return Workplace(corpus, read_split(corpus), self._folder / "runs")


def quick_corpus(corpus: Path, folder: Path) -> Path:
    """The first documents of the corpus as plain texts."""
    taken, n_bytes = [], 0
    for document in read_documents(corpus):
        taken.append(json.dumps({"text": document.text}))
        n_bytes += document.n_bytes
        if n_bytes > QUICK_TEXT_BYTES:
            break
    write_atomically(folder / "corpus" / "some.jsonl", "\n".join(taken) + "\n")
    return folder / "corpus"
