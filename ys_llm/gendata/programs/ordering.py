"""Sorting numbers and words, and ordering people by age, height, speed or strength."""

import itertools
import random
from collections.abc import Callable

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import listed
from ys_llm.gendata.programs.spelling import MORE_WORDS
from ys_llm.gendata.programs.words import CHILDREN

NAMES = CHILDREN["she"] + CHILDREN["he"]
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
# More, most, less, least.
SCALES = (
    ("older", "oldest", "younger", "youngest"),
    ("taller", "tallest", "shorter", "shortest"),
    ("faster", "fastest", "slower", "slowest"),
    ("stronger", "strongest", "weaker", "weakest"),
)


def _shown(items: list[str]) -> str:
    return ", ".join(items)


def numbers(rng: random.Random) -> Record:
    """Numbers in ascending or descending order."""
    drawn = rng.sample(range(1, 10 ** rng.randint(2, 3)), rng.randint(4, 7))
    down = rng.random() < 0.4
    way = "from the largest to the smallest" if down else "from the smallest to the largest"
    prompt = rng.choice(("Sort these numbers {}: {}.", "Put these numbers in order, {}: {}."))
    ordered = sorted(drawn, reverse=down)
    return Record(prompt.format(way, _shown([str(n) for n in drawn])),
                  _shown([str(n) for n in ordered]))  # fmt: skip


def words(rng: random.Random) -> Record:
    """Words in alphabetical order."""
    drawn = rng.sample(MORE_WORDS, rng.randint(3, 6))
    prompt = rng.choice(("Sort these words by the alphabet: {}.",
                         "Put these words in alphabetical order: {}."))  # fmt: skip
    return Record(prompt.format(_shown(drawn)), _shown(sorted(drawn)))


def extreme(rng: random.Random) -> Record:
    """The largest, smallest, second largest or second smallest of some numbers."""
    drawn = rng.sample(range(1, 500), rng.randint(4, 7))
    which, place = rng.choice(
        (("largest", -1), ("smallest", 0), ("second largest", -2), ("second smallest", 1))
    )
    ordered = sorted(drawn)
    return Record(
        f"Which number is the {which} of {_shown([str(n) for n in drawn])}?",
        f"In order: {_shown([str(n) for n in ordered])}\nThe {which} is {ordered[place]}.",
    )


def place(rng: random.Random) -> Record:
    """The word at a position of a list, counted from either end."""
    drawn = rng.sample(MORE_WORDS, rng.randint(4, 6))
    number = rng.randrange(len(drawn))
    if rng.random() < 0.3:
        end, found = "last", drawn[-1]
    else:
        end, found = PLACES[number], drawn[number]
    return Record(f"What is the {end} word of this list: {_shown(drawn)}?",
                  f"The {end} word is {found}.")  # fmt: skip


def people(rng: random.Random) -> Record:
    """Three to five people compared in pairs; the order follows."""
    order = rng.sample(NAMES, rng.randint(3, 5))  # the most first
    more, most, less, least = rng.choice(SCALES)
    clues = [
        f"{a} is {more} than {b}." if rng.random() < 0.5 else f"{b} is {less} than {a}."
        for a, b in itertools.pairwise(order)
    ]
    rng.shuffle(clues)
    question, answer = _about(rng, order, (more, most, least))
    line = f"From {most} to {least}: {_shown(order)}."
    return Record(f"{' '.join(clues)} {question}", f"{line}\n{answer}")


def _about(rng: random.Random, order: list[str], scale: tuple[str, str, str]) -> tuple[str, str]:
    more, most, least = scale
    kind = rng.randrange(3)
    if kind == 0:
        which, found = rng.choice(((most, order[0]), (least, order[-1])))
        return f"Who is the {which}?", f"{found} is the {which}."
    if kind == 1:
        first, second = rng.sample(order, 2)
        holds = order.index(first) < order.index(second)
        word = "Yes" if holds else "No"
        end = f"{first} is {more} than {second}" if holds else f"{second} is {more} than {first}"
        return f"Is {first} {more} than {second}?", f"{word}, {end}."
    somebody = rng.choice(order[1:])
    above = order[: order.index(somebody)]
    verb = "is" if len(above) == 1 else "are"
    return f"Who is {more} than {somebody}?", f"{listed(above)} {verb} {more} than {somebody}."


TASKS: tuple[Callable[[random.Random], Record], ...] = (
    numbers, words, extreme, place, people, people,
)  # fmt: skip


def ordering(rng: random.Random) -> Record:
    """One of the tasks."""
    return rng.choice(TASKS)(rng)
