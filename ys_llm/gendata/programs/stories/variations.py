"""Words that may stand for each other: what `variations.yaml` names becomes a choice."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ys_llm.config.shipped import shipped_folder
from ys_llm.config.sources import load_dataclass
from ys_llm.config.strict_reader import setting

_SLOT = r"\{[^{}]*\}"


@dataclass(frozen=True)
class _Variations:
    words: tuple[tuple[str, ...], ...] = setting((), "rows of words of which each may stand")


def varied(template: str) -> str:
    """A template in which each word of a row of `variations.yaml` is a choice of the whole row.

    Slots stay as they are; a word with a capital has capitals in all its places.
    """
    return _pattern().sub(_choice, template)


def _choice(found: re.Match[str]) -> str:
    said = found[0]
    if said.startswith("{"):
        return said
    row = _rows()[said[0].lower() + said[1:]]
    if said[0].isupper():
        row = tuple(word[0].upper() + word[1:] for word in row)
    return f"[{'|'.join(row)}]"


@cache
def _rows() -> Mapping[str, tuple[str, ...]]:
    """The row of each word. Raises UserError with all problems of the file."""
    path = shipped_folder() / "gen" / "stories" / "variations.yaml"
    found: _Variations = load_dataclass(_Variations, path)
    return {word: row for row in found.words for word in row}


@cache
def _pattern() -> re.Pattern[str]:
    """Slots, and the words of all rows, the longest first; either may begin with a capital."""
    words = sorted(_rows(), key=len, reverse=True)
    said = "|".join(f"[{w[0].upper()}{w[0]}]{re.escape(w[1:])}" for w in words)
    return re.compile(rf"{_SLOT}|(?<![\w'-])(?:{said})(?![\w'-])")
