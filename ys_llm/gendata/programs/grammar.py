"""A small text grammar: choices in brackets, slots in braces, and the spelling rules of English.

`[one|two|]` chooses one of its alternatives (the last one here is empty), `{name}` inserts the slot
of that name, which may itself contain choices and slots. A blank line starts a paragraph.
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

TOKEN = re.compile(r"([\[\]|]|\{[^{}]+\})")
LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")
ARTICLE = re.compile(r"\b([Aa])n? (?=(\"?[A-Za-z]+))")
SENTENCE_START = re.compile(r"((?:^|\n|[.!?] |\.\" |[.!?]\" (?=\"))\"?)([a-z])")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+(?=[A-Z\"])|\n+")
SILENT_H = ("hour", "honest", "heir")
SOUNDS_LIKE_YOU = ("uni", "use", "usu", "one", "once", "eu")


@dataclass(frozen=True)
class SlotRef:
    """A reference to a slot in a template."""

    name: str


@dataclass(frozen=True)
class Alternatives:
    """A choice between several sequences in a template."""

    alternatives: tuple["Sequence", ...]


Sequence = tuple[str | SlotRef | Alternatives, ...]


def _sequences(tokens: list[str]) -> tuple[Sequence, ...]:
    """Parse alternatives up to the closing bracket; `tokens` is reversed, for pop()."""
    alternatives: list[Sequence] = []
    current: list[str | SlotRef | Alternatives] = []
    while tokens:
        token = tokens.pop()
        if token == "[":
            current.append(Alternatives(_sequences(tokens)))
        elif token == "|":
            alternatives.append(tuple(current))
            current = []
        elif token == "]":
            break
        elif token.startswith("{"):
            current.append(SlotRef(token[1:-1]))
        elif token:
            current.append(token)
    return (*alternatives, tuple(current))


@cache
def parse(template: str) -> Sequence:
    """Parse a template into a tree; cached, since templates are expanded many times."""
    tokens = TOKEN.split(LINE_BREAK.sub(" ", template))
    if tokens.count("[") != tokens.count("]"):
        raise ValueError(f"brackets do not close in {template[:60]!r}")
    sequences = _sequences(tokens[::-1])
    if len(sequences) != 1:
        raise ValueError(f"a | stands outside brackets in {template[:60]!r}")
    return sequences[0]


def expand(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    """Fill a template: the same template, slots and state of `rng` give the same text."""
    return expand_parsed(parse(template), slots, rng)


def expand_parsed(sequence: Sequence, slots: Mapping[str, str], rng: random.Random) -> str:
    """Fill a template that was parsed before."""
    parts: list[str] = []
    for part in sequence:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, SlotRef):
            parts.append(expand_parsed(parse(slots[part.name]), slots, rng))
        else:
            parts.append(expand_parsed(rng.choice(part.alternatives), slots, rng))
    return "".join(parts)


def slots_in(part: str | SlotRef | Alternatives) -> Iterator[str]:
    """The names of the slots that a part of a template uses itself."""
    if isinstance(part, SlotRef):
        yield part.name
    elif isinstance(part, Alternatives):
        for inner in itertools.chain.from_iterable(part.alternatives):
            yield from slots_in(inner)


def article(word: str) -> str:
    """`a` or `an`, by the sound that the word begins with."""
    lowered = word.lower().lstrip('"')
    if lowered.startswith(SILENT_H):
        return "an"
    if lowered.startswith(SOUNDS_LIKE_YOU):
        return "a"
    return "an" if lowered[:1] in "aeiou" else "a"


def tidy(text: str) -> str:
    """Correct spacing, articles and capitals; single line breaks become spaces."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    text = "\n\n".join(part for part in paragraphs if part)
    text = re.sub(r" ([,.!?])", r"\1", text)
    text = re.sub(r",([,.!?])", r"\1", text)
    text = ARTICLE.sub(lambda m: m[1] + article(m[2])[1:] + " ", text)
    return SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), text)


def sentences(text: str) -> list[str]:
    """The sentences of a tidy text; a quotation with its `said Mia` is one sentence."""
    return [part for part in SENTENCE_END.split(text) if part]


def plural(noun: str) -> str:
    """The plural of a regular English noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def counted(number: int, noun: str) -> str:
    """`1 time`, `2 times`."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
