"""Lengths, weights, volumes, times and money, converted exactly."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ys_llm.data.records import Record


@dataclass(frozen=True)
class Unit:
    """A unit; `size` is in the smallest unit of its family."""

    one: str
    many: str
    size: int
    decimal: bool = True  # whether people write 2.5 of it


FAMILIES = (
    (Unit("kilometre", "kilometres", 1_000_000), Unit("metre", "metres", 1000),
     Unit("centimetre", "centimetres", 10), Unit("millimetre", "millimetres", 1)),
    (Unit("tonne", "tonnes", 1_000_000), Unit("kilogram", "kilograms", 1000),
     Unit("gram", "grams", 1)),
    (Unit("litre", "litres", 1000), Unit("decilitre", "decilitres", 100),
     Unit("millilitre", "millilitres", 1)),
    (Unit("week", "weeks", 604_800, False), Unit("day", "days", 86_400, False),
     Unit("hour", "hours", 3600, False), Unit("minute", "minutes", 60, False),
     Unit("second", "seconds", 1, False)),
    (Unit("euro", "euros", 100), Unit("cent", "cents", 1)),
    (Unit("dollar", "dollars", 100), Unit("cent", "cents", 1)),
)  # fmt: skip
LARGEST_FACTOR = 10_000  # between the units of one question


def written(number: Fraction) -> str:
    """The number as a decimal without trailing zeros; it must have a finite one."""
    text = f"{float(number):.6f}".rstrip("0").rstrip(".")
    assert Fraction(text) == number, number
    return text


def _with(number: Fraction, unit: Unit) -> str:
    return f"{written(number)} {unit.one if number == 1 else unit.many}"


def _pair(rng: random.Random) -> tuple[Unit, Unit]:
    """A larger and a smaller unit of one family."""
    while True:
        family = rng.choice(FAMILIES)
        large, small = sorted(rng.sample(family, 2), key=lambda unit: -unit.size)
        if large.size // small.size <= LARGEST_FACTOR:
            return large, small


def _amount(rng: random.Random, unit: Unit) -> Fraction:
    if unit.decimal and rng.random() < 0.4:
        return Fraction(rng.randint(1, 199), 10)
    return Fraction(rng.randint(1, 60))


def down(rng: random.Random) -> Record:
    """From a larger to a smaller unit."""
    large, small = _pair(rng)
    number, factor = _amount(rng, large), Fraction(large.size, small.size)
    result = number * factor
    prompt = rng.choice(("How many {small} are {amount}?", "Convert {amount} to {small}."))
    lines = (f"One {large.one} has {_with(factor, small)}.",
             f"{written(number)} * {factor} = {written(result)}",
             f"{_with(number, large)} = {_with(result, small)}")  # fmt: skip
    asked = prompt.format(small=small.many, amount=_with(number, large))
    return Record(asked, "\n".join(lines))


def up(rng: random.Random) -> Record:
    """From a smaller to a larger unit."""
    large, small = _pair(rng)
    number, factor = _amount(rng, large), Fraction(large.size, small.size)
    prompt = rng.choice(("How many {large} are {amount}?", "Convert {amount} to {large}."))
    given = number * factor
    lines = (f"One {large.one} has {_with(factor, small)}.",
             f"{written(given)} / {factor} = {written(number)}",
             f"{_with(given, small)} = {_with(number, large)}")  # fmt: skip
    asked = prompt.format(large=large.many, amount=_with(given, small))
    return Record(asked, "\n".join(lines))


def compare(rng: random.Random) -> Record:
    """The larger of two amounts in different units."""
    large, small = _pair(rng)
    number, factor = _amount(rng, large), Fraction(large.size, small.size)
    result = number * factor
    other = (
        result
        if rng.random() < 0.15
        else Fraction(max(1, int(result * Fraction(rng.randint(50, 150), 100))))
    )
    shown = [_with(number, large), _with(other, small)]
    lines = [f"One {large.one} has {_with(factor, small)}.",
             f"{written(number)} * {factor} = {written(result)}"]  # fmt: skip
    if result == other:
        lines.append("Both are the same.")
    else:
        lines.append(f"{shown[0] if result > other else shown[1]} is more.")
    rng.shuffle(shown)
    return Record(f"Which is more, {shown[0]} or {shown[1]}?", "\n".join(lines))


def both(rng: random.Random) -> Record:
    """An amount in two units, converted to the smaller one."""
    large, small = _pair(rng)
    factor = large.size // small.size
    many, few = rng.randint(1, 20), rng.randint(1, factor - 1)
    total = many * factor + few
    lines = (f"{many} * {factor} = {many * factor}", f"{many * factor} + {few} = {total}",
             f"It is {_with(Fraction(total), small)}.")  # fmt: skip
    shown = f"{_with(Fraction(many), large)} and {_with(Fraction(few), small)}"
    return Record(f"How many {small.many} are {shown}?", "\n".join(lines))


TASKS: tuple[Callable[[random.Random], Record], ...] = (down, up, compare, both)


def units(rng: random.Random) -> Record:
    """One of the tasks."""
    return rng.choice(TASKS)(rng)
