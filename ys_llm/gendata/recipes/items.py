"""The plan of a kind, item by item, and the way from an item over its answers to a record."""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ys_llm.config.strict_reader import to_plain
from ys_llm.data.manifest import item_key
from ys_llm.gendata.programs.registry import FACTS, MAKERS
from ys_llm.gendata.recipes.combinations import combination, noise
from ys_llm.gendata.recipes.recipe import Kind, Step
from ys_llm.gendata.recipes.templates import fill

_SEEDS = 2**31  # what a back end takes as a seed
_DECORATION = re.compile(r"^(?:[#>*•-]+ +|\d+[.)] +)+|^(?:title|name)\s*: *", re.IGNORECASE)
_PAIRS = ('""', "''", "“”", "‘’", "**", "__", "``")


@dataclass(frozen=True)
class Item:
    """One planned record. The same kind file, seed and index give the same item for ever."""

    kind: str
    index: int
    key: str  # names the item in journals; follows from kind, index and seed
    seed: int
    slots: Mapping[str, str]


def plan(kind: Kind, *, seed: int, count: int | None = None) -> Iterator[Item]:
    """The first `count` items (the kind's own number if None); item i depends on none before it."""
    total = kind.spec.count if count is None else count
    return (item_at(kind, index, seed=seed) for index in range(total))


def item_at(kind: Kind, index: int, *, seed: int) -> Item:
    """Item `index` of a kind."""
    key = item_key(kind.digest, index, seed)
    slots = _topics(kind, index, seed, key)
    if kind.spec.backend == "chain":
        slots |= FACTS[kind.spec.program](random.Random(key))
    return Item(kind.name, index, key, noise(key) % _SEEDS, slots)


def _topics(kind: Kind, index: int, seed: int, key: str) -> dict[str, str]:
    sizes = [slot.size for slot in kind.slots]
    if kind.spec.combine == "sample":
        rng = random.Random(f"{key}:slots")
        chosen = [rng.randrange(size) for size in sizes]
    else:
        chosen = combination(index, sizes, f"{kind.digest}:{seed}")
    slots: dict[str, str] = {}
    for slot, value in zip(kind.slots, chosen, strict=True):
        slots |= slot.value(value)
    return slots


def question(kind: Kind, step: Step, item: Item, answers: Mapping[str, str]) -> tuple[str, str]:
    """Prompt and system text of a step, given the answers to the steps before it."""
    slots = {**item.slots, **answers}
    return fill(_one_of(step.prompts, item, step.name), slots), fill(step.system, slots)


def options(kind: Kind, step: Step, item: Item, *, attempt: int) -> dict[str, int | float]:
    """What the back end is told about sampling; every attempt has another seed."""
    seed = noise(f"{item.key}:{step.name}:{attempt}") % _SEEDS
    return {**to_plain(kind.sampling(step)), "seed": seed}


def taken(step: Step, text: str) -> str:
    """What counts of an answer: all of it, or its first line, bare of quotes and bullets."""
    if step.take == "all":
        return text.strip()
    lines = [line.strip() for line in text.splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):  # "Here is a title:"
        lines = lines[1:]
    return next((bare for line in lines if (bare := _bare(line))), "")


def _bare(line: str) -> str:
    before = ""
    while line != before:
        before = line
        line = _DECORATION.sub("", line).strip()
        for pair in _PAIRS:
            if len(line) > 2 and line[0] + line[-1] == pair:
                line = line[1:-1].strip()
    return line


def record(kind: Kind, item: Item, answers: Mapping[str, str]) -> Record:
    """The record of an item: made by the kind's program, or put together from the answers."""
    if kind.spec.backend == "program":
        return MAKERS[kind.spec.program](random.Random(item.key))
    slots = {**item.slots, **answers}
    prompt = fill(_one_of(kind.spec.output.prompts, item, "output"), slots)
    return Record(prompt, fill(kind.spec.output.response, slots))


def problem(kind: Kind, made: Record, slots: Mapping[str, str]) -> str:
    """`name: reason` of the first verifier that refuses the record, or nothing.

    `slots` are the item's, with the answers.
    """
    for name, verify in kind.verifiers:
        if reason := verify(made, slots):
            return f"{name}: {reason}"
    return ""


def _one_of(templates: tuple[str, ...], item: Item, what: str) -> str:
    return templates[noise(f"{item.key}:{what}") % len(templates)]
