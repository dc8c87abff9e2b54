"""Regular expressions for a description, tested on texts; `re` decides each answer."""

import random
import re
from collections.abc import Callable
from string import ascii_lowercase

from ys_llm.data.records import Record
from ys_llm.gendata.programs.spelling import MORE_WORDS

Target = tuple[
    str, str, Callable[[random.Random], str]
]  # description, pattern, generator of similar texts
COMMON = "aeiorstlnbcmp"
WHOLE = "The pattern has to match the whole text."


def _word(rng: random.Random) -> str:
    return rng.choice(MORE_WORDS)


def _number(rng: random.Random) -> str:
    return str(rng.randint(0, 10 ** rng.randint(1, 6)))


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choices(ascii_lowercase, k=rng.randint(1, 3)))
    text = rng.choice((letters, letters.upper())) + rng.choice(("", "-")) + _number(rng)
    return text if rng.random() < 0.8 else text[::-1]


def _date(rng: random.Random) -> str:
    year, month, day = rng.randint(1900, 2099), rng.randint(1, 12), rng.randint(1, 28)
    form = rng.choice(("{0}-{1:02}-{2:02}", "{2:02}.{1:02}.{0}", "{0}/{1}/{2}", "{0}-{1}-{2}"))
    return form.format(year, month, day)


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 29):0{rng.randint(1, 2)}}:{rng.randint(0, 79):02}"


def _price(rng: random.Random) -> str:
    cents = f"{rng.randint(0, 999)}"[: rng.randint(1, 3)]
    return f"{rng.randint(0, 120)}{rng.choice(('.', ',', ''))}{cents}"


def _colour(rng: random.Random) -> str:
    digits = "".join(rng.choices("0123456789abcdefgh", k=rng.choice((3, 6, 6, 7))))
    return rng.choice(("#", "#", "")) + digits


def draw_target(rng: random.Random) -> Target:
    """One description that a pattern can match."""
    a, b = rng.sample(COMMON, 2)
    few = rng.randint(2, 4)
    more = few + rng.randint(1, 3)
    end = rng.choice(("er", "ing", "le", "on", "et", "y", "t"))
    return rng.choice((
        (f"words that begin with {a}", f"{a}.*", _word),
        (f"words that end with {end}", f".*{end}", _word),
        (f"words that begin with {a} or {b}", f"[{a}{b}].*", _word),
        (f"words that contain {a} at least twice", f".*{a}.*{a}.*", _word),
        (f"words without the letter {a}", f"[^{a}]*", _word),
        (f"words of exactly {more} letters", f"[a-z]{{{more}}}", _word),
        (f"words of {more} to {more + 2} letters", f"[a-z]{{{more},{more + 2}}}", _word),
        ("words with a double letter", r".*([a-z])\1.*", _word),
        ("words that begin and end with the same letter", r"([a-z]).*\1", _word),
        ("words that begin with a vowel", "[aeiou].*", _word),
        ("words with two vowels in a row", ".*[aeiou]{2}.*", _word),
        ("words without a vowel or with only one", "[^aeiou]*[aeiou]?[^aeiou]*", _word),
        (f"words that contain {a} and later {b}", f".*{a}.*{b}.*", _word),
        (f"numbers of {few} digits", rf"\d{{{few}}}", _number),
        (f"numbers of {few} to {more} digits", rf"\d{{{few},{more}}}", _number),
        ("even numbers", r"\d*[02468]", _number),
        ("numbers that can be divided by five", r"\d*[05]", _number),
        ("whole numbers without a leading zero", r"0|[1-9]\d*", lambda r: "0" * r.randint(0, 1) +
         _number(r)),
        ("capital letters followed by digits", r"[A-Z]+\d+", _code),
        ("letters, a hyphen and digits", r"[A-Za-z]+-\d+", _code),
        ("two small letters followed by digits", r"[a-z]{2}\d+", _code),
        ("dates such as 2024-03-09", r"\d{4}-\d{2}-\d{2}", _date),
        ("dates such as 09.03.2024", r"\d{2}\.\d{2}\.\d{4}", _date),
        ("times from 00:00 to 23:59", r"([01]\d|2[0-3]):[0-5]\d", _clock),
        ("prices with two decimals, such as 3.50", r"\d+\.\d{2}", _price),
        ("colours such as #1f9a0c", "#[0-9a-f]{6}", _colour),
    ))  # fmt: skip


def _examples(rng: random.Random, target: Target, count: int) -> tuple[list[str], list[str]]:
    """Up to `count` different texts that the pattern matches, and as many that it does not."""
    _, pattern, make = target
    matches: dict[str, None] = {}
    misses: dict[str, None] = {}
    for _ in range(300):
        text = make(rng)
        group = matches if re.fullmatch(pattern, text) else misses
        if len(group) < count:
            group[text] = None
    return list(matches), list(misses)


def _listed(texts: list[str]) -> str:
    return ", ".join(texts)


def write_pattern(rng: random.Random) -> Record:
    """A pattern for a description, with positive and negative examples."""
    matches, misses, target = _two_sided(rng, 3)
    prompt = rng.choice((
        "Write a regular expression for {}.",
        "Which regular expression matches {}?",
        "I need a regular expression that matches {}.",
    )).format(target[0])  # fmt: skip
    examples = f"It matches: {_listed(matches)}.\nIt does not match: {_listed(misses)}."
    return Record(f"{prompt} {WHOLE}", f"`{target[1]}`\n\n{examples}")


def choose_matches(rng: random.Random) -> Record:
    """Which texts of a list a pattern matches."""
    matches, misses, target = _two_sided(rng, 3)
    right = matches[: rng.randint(0, len(matches))]
    texts = right + misses
    rng.shuffle(texts)
    found = [text for text in texts if text in right]
    prompt = f"Which of these does the regular expression `{target[1]}` match as a whole: "
    answer = f"It matches {_listed(found)}." if found else "It matches none of them."
    return Record(f"{prompt}{_listed(texts)}?", f"The pattern stands for {target[0]}.\n{answer}")


def _two_sided(rng: random.Random, count: int) -> tuple[list[str], list[str], Target]:
    while True:
        target = draw_target(rng)
        matches, misses = _examples(rng, target, count)
        if matches and misses:
            return matches, misses, target


def patterns(rng: random.Random) -> Record:
    """One of the two tasks."""
    return rng.choice((write_pattern, choose_matches))(rng)
