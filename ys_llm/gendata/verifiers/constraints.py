"""Constraints on a text that a program can check: length, case, commas, words, paragraphs, form.

The slot `constraints` holds them as JSON: `[{"rule": "most_characters", "value": 200}, ...]`.
"""

import json
import re
from collections.abc import Callable, Mapping

from ys_llm.data.records import Record

Value = int | str
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_BULLET = re.compile(r"^\s*[-*•] +\S", re.MULTILINE)
_SENTENCE = re.compile(r"[.!?]+[\"”')]*(?=\s|$)")


def _number(value: Value) -> int:
    return int(value)


def _has_word(text: str, word: Value) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(str(word))}(?!\w)", text, re.IGNORECASE))


def _is_json(text: str) -> bool:
    bare = re.sub(r"^```(?:json)?\s*\n(.*)\n```$", r"\1", text.strip(), flags=re.DOTALL)
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def paragraphs(text: str) -> int:
    """Number of blocks of text between empty lines."""
    return sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text))


SATISFIED: Mapping[str, Callable[[str, Value], bool]] = {
    "most_characters": lambda text, value: len(text) <= _number(value),
    "least_words": lambda text, value: len(_WORD.findall(text)) >= _number(value),
    "most_words": lambda text, value: len(_WORD.findall(text)) <= _number(value),
    "no_commas": lambda text, value: "," not in text,
    "lowercase": lambda text, value: text == text.lower() and text != text.upper(),
    "uppercase": lambda text, value: text == text.upper() and text != text.lower(),
    "paragraphs": lambda text, value: paragraphs(text) == _number(value),
    "sentences": lambda text, value: len(_SENTENCE.findall(text)) == _number(value),
    "bullets": lambda text, value: len(_BULLET.findall(text)) == _number(value),
    "without_word": lambda text, value: not _has_word(text, value),
    "with_word": lambda text, value: _has_word(text, value),
    "starts_with": lambda text, value: text.startswith(str(value)),
    "ends_with": lambda text, value: text.endswith(str(value)),
    "json": lambda text, value: _is_json(text),
}


def constraints(record: Record, slots: Mapping[str, str]) -> str:
    """The response satisfies every constraint of the slot `constraints`."""
    text = record.response.strip()
    for wanted in json.loads(slots["constraints"]):
        if not SATISFIED[wanted["rule"]](text, wanted["value"]):
            return f"{wanted['rule']} {wanted['value']} is not satisfied".replace(" True ", " ")
    return ""
