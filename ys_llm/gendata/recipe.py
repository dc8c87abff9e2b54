"""What a corpus is made of: how many records of each kind, and from which seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from ys_llm.config import load_dataclass, setting
from ys_llm.errors import UserError
from ys_llm.gendata.arithmetic import arithmetic
from ys_llm.gendata.formats import formats
from ys_llm.gendata.record import Record
from ys_llm.gendata.scenes import scenes
from ys_llm.gendata.spelling import spelling
from ys_llm.gendata.stories import story

_MOST = 1_000_000  # records of a kind: 1 GB of stories; what nobody can want would never end
LONGEST_DROUGHT = 1000  # tries without a new record; after so many a kind is exhausted


@dataclass(frozen=True)
class Kinds:
    """Records of each kind; the defaults make `training_data/`, 70 % of the bytes are stories."""

    stories: int = setting(3500, "short stories from a story grammar", minimum=0, maximum=_MOST)
    arithmetic: int = setting(2000, "arithmetic with every step", minimum=0, maximum=_MOST)
    spelling: int = setting(1500, "spelling and letter counts", minimum=0, maximum=_MOST)
    formats: int = setting(1500, "tables from one format to another", minimum=0, maximum=_MOST)
    scenes: int = setting(2000, "questions about a small scene", minimum=0, maximum=_MOST)


@dataclass(frozen=True)
class Recipe:
    """A corpus recipe; `configs/gen/starter.yaml` says the same as these defaults."""

    seed: int = setting(1337, "the same seed gives the same bytes")
    kinds: Kinds = field(default_factory=Kinds)


MAKERS: tuple[tuple[str, Callable[[random.Random], Record]], ...] = (
    ("stories", story),
    ("arithmetic", arithmetic),
    ("spelling", spelling),
    ("formats", formats),
    ("scenes", scenes),
)
assert [name for name, _ in MAKERS] == [field.name for field in fields(Kinds)]


def load_recipe(path: Path | None) -> Recipe:
    """Read a recipe strictly, or take the built-in one; raise UserError with all problems."""
    if path is None:
        return Recipe()
    recipe: Recipe = load_dataclass(Recipe, path)
    return recipe


def make_records(recipe: Recipe) -> dict[str, list[Record]]:
    """All records by kind; record i of a kind depends on the seed, the kind and i alone."""
    return {
        kind: _different(recipe.seed, kind, make, getattr(recipe.kinds, kind))
        for kind, make in MAKERS
    }


def _different(
    seed: int, kind: str, make: Callable[[random.Random], Record], count: int
) -> list[Record]:
    """The first `count` records that differ from all before them."""
    # Strings seed a generator through SHA-512, on every platform alike; hash() would not.
    found: dict[Record, None] = {}
    index = last_new = 0
    while len(found) < count and index - last_new < LONGEST_DROUGHT:
        record = make(random.Random(f"{seed}:{kind}:{index}"))
        if record not in found:
            found[record] = None
            last_new = index
        index += 1
    if len(found) < count:
        raise UserError(
            f"kinds.{kind} is {count}, but only {len(found)} different records were found",
            f"Write `{kind}: {len(found)}` or less into the recipe.",
        )
    return list(found)
