"""Brackets, comparisons, sequences, remainders, fractions, percentages, equations, step by step."""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from ys_llm.data.records import Record

COMPARED = {"<": operator.lt, ">": operator.gt, "==": operator.eq, "!=": operator.ne}
ASKING = ("What is {}?", "Calculate {}.", "Work out {} step by step.", "{} = ?")


@dataclass(frozen=True)
class Sum:
    """Two operands and an operator; `str()` adds the necessary brackets."""

    left: "int | Sum"
    sign: str
    right: "int | Sum"

    def __str__(self) -> str:
        right = _bracketed(self.right, self.sign, is_right=True)
        return f"{_bracketed(self.left, self.sign, is_right=False)} {self.sign} {right}"


def _bracketed(part: "int | Sum", sign: str, *, is_right: bool) -> str:
    if isinstance(part, int):
        return str(part)
    needs = part.sign != "*" and (sign == "*" or (is_right and sign == "-"))
    return f"({part})" if needs else str(part)


def steps(part: "int | Sum", lines: list[str]) -> int:
    """The value of a term; each operation is appended to `lines`."""
    if isinstance(part, int):
        return part
    left, right = steps(part.left, lines), steps(part.right, lines)
    value = {"+": left + right, "-": left - right, "*": left * right}[part.sign]
    lines.append(f"{left} {part.sign} {right} = {value}")
    return value


def _sum(rng: random.Random) -> Sum:
    """Two or three operations; all results are natural numbers."""
    a, b, c = rng.randint(2, 60), rng.randint(2, 40), rng.randint(2, 12)
    d = rng.randint(1, b)
    shapes = (
        Sum(a, "+", Sum(b, "*", c)),
        Sum(Sum(a, "+", b), "*", c),
        Sum(Sum(a, "*", c), "+", Sum(b, "*", d)),
        Sum(c, "*", Sum(b, "-", d)),
        Sum(a + b + c, "-", Sum(b, "+", c)),
        Sum(Sum(a, "+", c), "*", Sum(b, "-", d)),
        Sum(Sum(a, "*", b), "-", Sum(d, "+", 1)),
        Sum(Sum(Sum(a, "+", b), "-", d), "*", c),
    )
    return rng.choice(shapes)


def brackets(rng: random.Random) -> Record:
    """The order of operations."""
    asked, lines = _sum(rng), list[str]()
    value = steps(asked, lines)
    return Record(rng.choice(ASKING).format(asked), "\n".join([*lines, f"{asked} = {value}"]))


def truth(rng: random.Random) -> Record:
    """Whether one or two comparisons hold."""
    claims = [_claim(rng) for _ in range(rng.randint(1, 2))]
    lines = [line for _, work, _ in claims for line in work]
    held = [holds for _, _, holds in claims]
    joint = rng.choice(("and", "or"))
    result = all(held) if joint == "and" else any(held)
    if len(claims) == 2:
        words = [str(holds).lower() for holds in held]
        lines.append(f"{words[0]} {joint} {words[1]} is {str(result).lower()}.")
    prompt = rng.choice(("Is this true or false: {}?", "True or false: {}?"))
    shown = f" {joint} ".join(claim for claim, _, _ in claims)
    return Record(prompt.format(shown), "\n".join([*lines, str(result)]))


def _claim(rng: random.Random) -> tuple[str, list[str], bool]:
    """A comparison, how it is decided, and whether it holds."""
    asked = Sum(rng.randint(2, 50), rng.choice("+*"), rng.randint(2, 12))
    lines: list[str] = []
    value = steps(asked, lines)
    other = value if rng.random() < 0.25 else max(0, value + rng.randint(-9, 9))
    sign = rng.choice(("<", ">", "==", "!="))
    holds = COMPARED[sign](value, other)
    lines.append(f"{value} {sign} {other} is {str(holds).lower()}.")
    return f"{asked} {sign} {other}", lines, holds


def sequence(rng: random.Random) -> Record:
    """The next number of a sequence that adds, subtracts or multiplies."""
    count, by = rng.randint(4, 5), rng.randint(2, 15)
    kind = rng.choice(("more", "less", "times"))
    if kind == "times":
        by = rng.randint(2, 4)
        numbers = [rng.randint(1, 6)]
        for _ in range(count - 1):
            numbers.append(numbers[-1] * by)
        rule, step = f"Each number is {by} times the one before.", f"{numbers[-1]} * {by}"
        result = numbers[-1] * by
    else:
        sign = 1 if kind == "more" else -1
        start = rng.randint(1, 40) + (by * count if kind == "less" else 0)
        numbers = [start + sign * by * i for i in range(count)]
        rule = f"Each number is {by} {kind} than the one before."
        step, result = f"{numbers[-1]} {'+' if sign > 0 else '-'} {by}", numbers[-1] + sign * by
    shown = ", ".join(map(str, numbers))
    prompt = rng.choice(("What comes next: {}?", "Continue the sequence {}."))
    return Record(prompt.format(shown), f"{rule}\n{step} = {result}")


def division(rng: random.Random) -> Record:
    """Division with a remainder."""
    a, b = rng.randint(10, 299), rng.randint(2, 12)
    times, rest = divmod(a, b)
    end = f"with remainder {rest}" if rest else "with no remainder"
    lines = (f"{b} * {times} = {b * times}", f"{a} - {b * times} = {rest}",
             f"{a} divided by {b} is {times} {end}.")  # fmt: skip
    prompt = rng.choice(("Divide {} by {}.", "What is {} divided by {}, and what is left over?"))
    return Record(prompt.format(a, b), "\n".join(lines))


def fraction(rng: random.Random) -> Record:
    """A fraction in lowest terms."""
    top, bottom = sorted(rng.sample(range(1, 16), 2))
    factor = rng.randint(1, 9)
    top, bottom = top * factor, bottom * factor
    common = gcd(top, bottom)
    prompt = f"Simplify the fraction {top}/{bottom}."
    if common == 1:
        return Record(prompt, f"No number above 1 divides both.\n{top}/{bottom} stays as it is.")
    lines = (f"{common} divides both numbers.", f"{top} / {common} = {top // common}",
             f"{bottom} / {common} = {bottom // common}",
             f"{top}/{bottom} = {top // common}/{bottom // common}")  # fmt: skip
    return Record(prompt, "\n".join(lines))


def percentage(rng: random.Random) -> Record:
    """A percentage of a number, without a remainder."""
    share = rng.randrange(5, 100, 5)
    whole = rng.randint(1, 40) * 20
    product = share * whole
    lines = (f"{whole} * {share} = {product}", f"{product} / 100 = {product // 100}",
             f"{share} % of {whole} is {product // 100}.")  # fmt: skip
    return Record(f"What is {share} % of {whole}?", "\n".join(lines))


def equation(rng: random.Random) -> Record:
    """An equation with one unknown and one operation."""
    x, a = rng.randint(1, 60), rng.randint(2, 12)
    shown, undone, check = rng.choice((
        (f"x + {a} = {x + a}", f"{x + a} - {a} = {x}", f"{x} + {a} = {x + a}"),
        (f"x - {a} = {x}", f"{x} + {a} = {x + a}", f"{x + a} - {a} = {x}"),
        (f"{a} * x = {a * x}", f"{a * x} / {a} = {x}", f"{a} * {x} = {a * x}"),
    ))  # fmt: skip
    found = undone.rpartition(" = ")[2]
    prompt = rng.choice(("Solve {}.", "{}. What is x?"))
    return Record(prompt.format(shown), f"{undone}\nx = {found}\nCheck: {check}")


TASKS: tuple[Callable[[random.Random], Record], ...] = (
    brackets, brackets, truth, sequence, division, fraction, percentage, equation,
)  # fmt: skip


def maths(rng: random.Random) -> Record:
    """One of the tasks."""
    return rng.choice(TASKS)(rng)
