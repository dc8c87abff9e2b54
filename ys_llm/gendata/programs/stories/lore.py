"""What all stories share, as files that a writer edits: traits, places, phrases, details.

Their texts are templates in the language of `programs/grammar.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from ys_llm.config.shipped import shipped_folder
from ys_llm.config.sources import load_dataclass
from ys_llm.config.strict_reader import setting
from ys_llm.gendata.programs.stories.variations import varied

Row = Mapping[str, str]


def stories_folder() -> Path:
    """The folder of the stories' files."""
    return shipped_folder() / "gen" / "stories"


@dataclass(frozen=True)
class Trait:
    """How a character with a trait acts."""

    habits: tuple[str, ...] = setting((), "what everybody knows about {a}")
    manner: tuple[str, ...] = setting((), "continues `said {a}`")
    stuck: tuple[str, ...] = setting((), "what {a} does when something goes wrong")
    dares: tuple[str, ...] = setting((), "what {a} does just before the deed that matters")
    glad: tuple[str, ...] = setting((), "what {a} does when it has gone well")
    ends: tuple[str, ...] = setting((), "the last sentence of a story, on its evening")
    lasting: tuple[str, ...] = setting((), "the last sentence, however much later")


@dataclass(frozen=True)
class Place:
    """A place: `name` with its article, `at` with its preposition, spots where a thing can lie."""

    name: str = setting("", "`the pond`")
    at: str = setting("", "`by the pond`")
    spots: tuple[str, ...] = setting((), "where a thing can lie")
    sights: tuple[str, ...] = setting((), "what there is to see, in any season")


@dataclass(frozen=True)
class Weather:
    """Words for a day, and what there is to see and feel on it."""

    day: str = setting("", "adjectives of the day")
    air: str = setting("", "a sentence without its full stop")


@dataclass(frozen=True)
class Scenery:
    """Where and when stories take place."""

    wild: tuple[Place, ...] = setting((), "places of animals")
    town: tuple[Place, ...] = setting((), "places of children")
    weathers: tuple[Weather, ...] = setting((), "one is chosen for each story")
    decoys: tuple[str, ...] = setting((), "what lies about in the place of what is sought")


@dataclass(frozen=True)
class Detail:
    """Something that has nothing to do with the plot, told early and picked up near the end."""

    opening: str = setting("", "sentences near the beginning, each with its full stop")
    again: str = setting("", "a sentence near the end")
    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Details:
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True)
class _Traits:
    traits: Mapping[str, Trait] = field(default_factory=dict)


@dataclass(frozen=True)
class _Phrases:
    phrases: Mapping[str, str] = field(default_factory=dict)


@cache
def traits() -> Mapping[str, Trait]:
    """The traits by name. Raises UserError with all problems of their file."""
    found: _Traits = load_dataclass(_Traits, stories_folder() / "traits.yaml")
    return {name: _varied_trait(trait) for name, trait in found.traits.items()}


def _varied_trait(trait: Trait) -> Trait:
    """A trait whose sentences say the same in other words, too."""
    texts = {
        name: tuple(map(varied, getattr(trait, name)))
        for name in ("habits", "stuck", "dares", "glad", "ends", "lasting")
    }
    return replace(trait, **texts)


@cache
def phrases() -> Mapping[str, str]:
    """The phrases that every plot may use. Raises UserError with all problems of their file."""
    found: _Phrases = load_dataclass(_Phrases, stories_folder() / "phrases.yaml")
    return {name: varied(text) for name, text in found.phrases.items()}


@cache
def details() -> Mapping[str, Detail]:
    """The details by name. Raises UserError with all problems of their file."""
    found: _Details = load_dataclass(_Details, stories_folder() / "details.yaml")
    return found.details


@cache
def scenery() -> Scenery:
    """Places, weather and what lies about. Raises UserError with all problems of their file."""
    found: Scenery = load_dataclass(Scenery, stories_folder() / "scenery.yaml")
    return found
