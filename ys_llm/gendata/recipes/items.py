"""The items that a recipe plans, the prompts of an item, and the record made of the answers."""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ys_llm.config.strict_reader import to_plain
from ys_llm.data.manifest import item_key
from ys_llm.data.records import Record
from ys_llm.gendata.programs.registry import FACTS, MAKERS
from ys_llm.gendata.recipes.combinations import combination, hash64
from ys_llm.gendata.recipes.recipe import AskStep, Recipe
from ys_llm.gendata.recipes.templates import fill

_SEEDS = 2**31  # seeds that a back end takes
_DECORATION = re.compile(r"^(?:[#>*•-]+ +|\d+[.)] +)+|^(?:title|name)\s*: *", re.IGNORECASE)
_PAIRS = ('""', "''", "“”", "‘’", "**", "__", "``")


@dataclass(frozen=True)
class PlannedItem:
    """One planned record. The same kind file, seed and index always give the same item."""

    kind: str
    index: int
    key: str  # names the item in journals; a hash of recipe, index and seed
    seed: int
    slots: Mapping[str, str]


def plan_items(recipe: Recipe, *, seed: int, count: int | None = None) -> Iterator[PlannedItem]:
    """The first `count` items (None: as many as the recipe says), each independent of the rest."""
    total = recipe.spec.count if count is None else count
    return (item_at(recipe, index, seed=seed) for index in range(total))


def item_at(recipe: Recipe, index: int, *, seed: int) -> PlannedItem:
    """Item `index` of a recipe."""
    key = item_key(recipe.digest, index, seed)
    slots = _topics(recipe, index, seed, key)
    if recipe.spec.backend == "chain":
        slots |= FACTS[recipe.spec.program](random.Random(key))
    return PlannedItem(recipe.name, index, key, hash64(key) % _SEEDS, slots)


def _topics(recipe: Recipe, index: int, seed: int, key: str) -> dict[str, str]:
    sizes = [slot.size for slot in recipe.slots]
    if recipe.spec.combine == "sample":
        rng = random.Random(f"{key}:slots")
        chosen = [rng.randrange(size) for size in sizes]
    else:
        chosen = combination(index, sizes, f"{recipe.digest}:{seed}")
    slots: dict[str, str] = {}
    for slot, value in zip(recipe.slots, chosen, strict=True):
        slots |= slot.value(value)
    return slots


def prompt_of(step: AskStep, item: PlannedItem, answers: Mapping[str, str]) -> tuple[str, str]:
    """Prompt and system prompt of a step, given the answers to the steps before it."""
    slots = {**item.slots, **answers}
    return fill(_one_of(step.prompts, item, step.name), slots), fill(step.system, slots)


def options_of(
    recipe: Recipe, step: AskStep, item: PlannedItem, *, attempt: int
) -> dict[str, int | float]:
    """The sampling options to send; every attempt has its own seed."""
    seed = hash64(f"{item.key}:{step.name}:{attempt}") % _SEEDS
    return {**to_plain(recipe.sampling(step)), "seed": seed}


def extract(step: AskStep, text: str) -> str:
    """The part of an answer that is used: all, or the first line without quotes and bullets."""
    if step.take == "all":
        return text.strip()
    lines = [line.strip() for line in text.splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):  # "Here is a title:"
        lines = lines[1:]
    return next((bare for line in lines if (bare := _undecorated(line))), "")


def _undecorated(line: str) -> str:
    before = ""
    while line != before:
        before = line
        line = _DECORATION.sub("", line).strip()
        for pair in _PAIRS:
            if len(line) > 2 and line[0] + line[-1] == pair:
                line = line[1:-1].strip()
    return line


def record_of(recipe: Recipe, item: PlannedItem, answers: Mapping[str, str]) -> Record:
    """The record of an item: made by the recipe's program, or from the answers by templates."""
    if not recipe.uses_model:
        return MAKERS[recipe.spec.program](random.Random(item.key))
    slots = {**item.slots, **answers}
    prompt = fill(_one_of(recipe.spec.output.prompts, item, "output"), slots)
    return Record(prompt, fill(recipe.spec.output.response, slots))


def verify(recipe: Recipe, record: Record, slots: Mapping[str, str]) -> tuple[str, str] | None:
    """Name and reason of the first verifier that rejects the record; None if all accept it.

    `slots` are those of the item, and the answers.
    """
    for name, check in recipe.verifiers:
        if reason := check(record, slots):
            return name, reason
    return None


def _one_of(templates: tuple[str, ...], item: PlannedItem, purpose: str) -> str:
    return templates[hash64(f"{item.key}:{purpose}") % len(templates)]
