"""Arithmetic with all steps, as on paper."""

import random

from ys_llm.data.records import Record
from ys_llm.gendata.programs.grammar import counted
from ys_llm.gendata.programs.words import CHILDREN

COLUMNS = ("Ones", "Tens", "Hundreds", "Thousands")
GOODS = ("apple", "button", "marble", "shell", "pear", "coin", "card", "cherry", "stone", "egg",
         "feather", "nut", "pencil", "sticker", "bean", "ribbon", "berry", "leek")  # fmt: skip
BOXES = ("box", "bag", "basket", "jar", "tin", "bowl")
ASKING = ("What is {}?", "Calculate {}.", "{} = ?", "Work out {}.", "How much is {}?")


def _digits(number: int, width: int) -> list[int]:
    return [number // 10**place % 10 for place in range(width)]


def _ask(rng: random.Random, expression: str) -> str:
    return rng.choice(ASKING).format(expression)


def _number(rng: random.Random) -> int:
    """Two to four digits, each width equally often."""
    low = 10 ** rng.randint(1, 3)
    return rng.randint(low, 10 * low - 1)


def addition(rng: random.Random) -> Record:
    """Column addition with its carries."""
    a, b = _number(rng), _number(rng)
    width = len(str(max(a, b)))
    lines, carry = [], 0
    for name, x, y in zip(COLUMNS, _digits(a, width), _digits(b, width), strict=False):
        total = x + y + carry
        terms = f"{x} + {y} + 1" if carry else f"{x} + {y}"
        carry = total // 10
        end = f"Write {total % 10}, carry 1." if carry else f"Write {total}."
        lines.append(f"{name}: {terms} = {total}. {end}")
    if carry:
        lines.append("Write the last 1 in front.")
    lines.append(f"{a} + {b} = {a + b}")
    return Record(_ask(rng, f"{a} + {b}"), "\n".join(lines))


def subtraction(rng: random.Random) -> Record:
    """Column subtraction with its borrowing; the result is never negative."""
    b, a = sorted((_number(rng), _number(rng)))
    width = len(str(a))
    lines, borrowed = [], 0
    for name, x, y in zip(COLUMNS, _digits(a, width), _digits(b, width), strict=False):
        terms = f"{x} - {y} - 1" if borrowed else f"{x} - {y}"
        rest = x - y - borrowed
        borrowed = int(rest < 0)
        if borrowed:
            rest += 10
            lines.append(f"{name}: {terms} is less than 0. Borrow 10: 10 + {terms} = {rest}.")
        else:
            lines.append(f"{name}: {terms} = {rest}.")
    lines.append(f"{a} - {b} = {a - b}")
    return Record(_ask(rng, f"{a} - {b}"), "\n".join(lines))


def multiplication(rng: random.Random) -> Record:
    """Multiplication by parts: 47 * 6 = 40 * 6 + 7 * 6."""
    a, b = rng.randint(11, 999), rng.randint(2, 12)
    parts = [d * 10**place for place, d in enumerate(_digits(a, len(str(a)))) if d][::-1]
    products = [part * b for part in parts]
    lines = [f"{part} * {b} = {product}" for part, product in zip(parts, products, strict=True)]
    if len(products) > 1:
        lines.append(f"{' + '.join(map(str, products))} = {a * b}")
    if lines[-1] != f"{a} * {b} = {a * b}":
        lines.append(f"{a} * {b} = {a * b}")
    return Record(_ask(rng, f"{a} * {b}"), "\n".join(lines))


def comparison(rng: random.Random) -> Record:
    """The larger of two numbers, and why."""
    a = _number(rng)
    near = rng.random() < 0.7
    b = max(10, a + rng.choice((-1, 1)) * rng.randint(1, 99)) if near else _number(rng)
    kind = rng.choice(("larger", "smaller"))
    prompt = f"Which number is {kind}, {a} or {b}?"
    if a == b:
        return Record(prompt, "Neither. The two numbers are equal.")
    answer = max(a, b) if kind == "larger" else min(a, b)
    return Record(prompt, f"{_difference(a, b)}\nThe {kind} number is {answer}.")


def _difference(a: int, b: int) -> str:
    x, y = str(a), str(b)
    if len(x) != len(y):
        return f"{a} has {len(x)} digits, and {b} has {len(y)} digits."
    place = next(i for i in range(len(x)) if x[i] != y[i])
    sign = "<" if x[place] < y[place] else ">"
    column = COLUMNS[len(x) - 1 - place].lower()
    return f"Both have {len(x)} digits. The first difference is in the {column}: " + (
        f"{x[place]} {sign} {y[place]}."
    )


def word_problem(rng: random.Random) -> Record:
    """A word problem in two steps: boxes of equal size, then some more or fewer."""
    pronoun = rng.choice(("he", "she"))
    name = rng.choice(CHILDREN["he" if pronoun == "he" else "she"])
    good, box = rng.choice(GOODS), rng.choice(BOXES)
    boxes, each = rng.randint(2, 9), rng.randint(2, 25)
    filled = boxes * each
    gives = rng.random() < 0.5
    change = rng.randint(1, filled - 1) if gives else rng.randint(1, 60)
    verb = rng.choice(("gives away", "loses", "uses") if gives else ("finds", "buys", "gets"))
    more = "" if gives else " more"
    total = filled - change if gives else filled + change
    changed = f"{change}{more} {counted(change, good).split(' ', 1)[1]}"
    holds = "each with" if boxes > 1 else "with"
    prompt = (
        f"{name} has {counted(boxes, box)}, {holds} {counted(each, good)}. "
        f"Then {pronoun} {verb} {changed}. "
        f"How many {counted(2, good).split(' ', 1)[1]} does {name} have now?"
    )
    sign = "-" if gives else "+"
    lines = (
        f"First: {boxes} * {each} = {filled}",
        f"Then: {filled} {sign} {change} = {total}",
        f"{name} has {counted(total, good)}.",
    )
    return Record(prompt, "\n".join(lines))


def arithmetic(rng: random.Random) -> Record:
    """One of the five kinds of problem."""
    kind = rng.choice((addition, subtraction, multiplication, comparison, word_problem))
    return kind(rng)
