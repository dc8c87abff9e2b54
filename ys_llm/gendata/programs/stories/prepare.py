"""What happens in a story, decided before it is told: whom and what its plot brings on the stage.

The order of the random choices decides the bytes of the corpus.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ys_llm.gendata.programs.stories.lore import Row
from ys_llm.gendata.programs.stories.plots import Plot
from ys_llm.gendata.programs.stories.stage import ONE_TO_THREE, StoryStage
from ys_llm.gendata.programs.words import ANIMALS, Animal

CONDITIONS = ("only", "unless", "friend")  # cells that are not slots
ADULT_SHARE = 0.4  # of the friends of children, where an adult may be one
_WORD = re.compile(r"[a-z]+")
_KINDS = frozenset(animal.kind for animal in ANIMALS)


def prepare(stage: StoryStage, plot: Plot) -> None:
    """Choose the thing, the rows and texts of the plot, and then {b}, whom none of them names."""
    hero = stage.cast["a"]
    tags = {stage.family, *hero.skills}
    if plot.thing:
        tags |= set(stage.bring_thing(plot.thing).nature)
    friend, told = plot.friend, [plot.script]
    for row in _rows(stage, plot, tags):
        friend = row.get("friend", friend)
        told += row.values()
    _texts(stage, plot)
    told += (stage.slots[name] for name in _names(plot))
    bring_friend(stage, friend, _kinds_in(told))


def _rows(stage: StoryStage, plot: Plot, tags: set[str]) -> Iterator[Row]:
    """Choose one row of each table, two of each of `pairs`; fill the slots of their cells."""
    for rows in plot.rows.values():
        row = stage.pick(_fitting(rows, tags, stage.cast["a"].kind))
        for name, text in _cells(row):
            stage.fill(name, text)
        yield row
    for rows in plot.pairs.values():
        pair = stage.rng.sample(_fitting(rows, tags, stage.cast["a"].kind), 2)
        for number, row in zip(ONE_TO_THREE, pair, strict=False):
            for name, text in _cells(row):
                stage.fill(f"{name}.{number}", text)
            yield row


def _texts(stage: StoryStage, plot: Plot) -> None:
    """Choose one text of each list and three of each of `several`."""
    kind = stage.cast["a"].kind
    for name, texts in plot.lists.items():
        stage.fill(name, stage.pick(_without(texts, kind)))
    for name, texts in plot.several.items():
        chosen = stage.rng.sample(_without(texts, kind), 3)
        for number, text in zip(ONE_TO_THREE, chosen, strict=True):
            stage.fill(f"{name}.{number}", text)


def _names(plot: Plot) -> Iterator[str]:
    """The slots that `_texts` fills."""
    yield from plot.lists
    yield from (f"{name}.{number}" for name in plot.several for number in ONE_TO_THREE)


def _cells(row: Row) -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text in row.items() if name not in CONDITIONS)


def _fitting(rows: Sequence[Row], tags: set[str], kind: str) -> list[Row]:
    """The rows whose conditions hold and which do not speak of this kind of animal."""
    return [
        row
        for row in rows
        if (not row.get("only") or tags.intersection(_WORD.findall(row["only"])))
        and not tags.intersection(_WORD.findall(row.get("unless", "")))
        and kind not in _kinds_in(text for _, text in _cells(row))
    ]


def _without(texts: Sequence[str], kind: str) -> list[str]:
    return [text for text in texts if kind not in _kinds_in([text])]


def _kinds_in(texts: Iterable[str]) -> set[str]:
    """The kinds of animals that texts name."""
    return {word for text in texts for word in _WORD.findall(text)} & _KINDS


def bring_friend(stage: StoryStage, who: str, named: set[str]) -> None:
    """Bring {b} on the stage, `who` it is to be: one of FRIENDS; of no kind that is `named`."""
    adult_share, skill = FRIENDS[who]
    if stage.family == "children" and stage.rng.random() < adult_share:
        stage.adult("b")
    elif stage.family == "animals" or skill:
        stage.animal("b", suits=lambda one: _suits(one, skill, named))
    else:
        stage.child("b")


def _suits(animal: Animal, skill: str, named: set[str]) -> bool:
    return animal.kind not in named and (not skill or skill in animal.skills)


# An animal among animals, a child or an adult among children, or an animal with a skill.
FRIENDS: Mapping[str, tuple[float, str]] = {
    "any": (0.0, ""),
    "any adult": (ADULT_SHARE, ""),
    "adult": (1.0, ""),
    "flies": (0.0, "fly"),
    "climbs": (0.0, "climb"),
    "digs": (0.0, "dig"),
    "swims": (0.0, "swim"),
    "strong": (0.0, "strong"),
    "small": (0.0, "small"),
}
