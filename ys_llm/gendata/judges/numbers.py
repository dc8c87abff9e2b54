"""Sums, comparisons, sequences, fractions, equations and units: the prompt is calculated again.

Every check is of the result, which is in the last line of an answer.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from ys_llm.gendata.judges.said import ends_with_number, last_line
from ys_llm.gendata.programs.maths import COMPARED
from ys_llm.gendata.programs.units import FAMILIES
from ys_llm.gendata.verifiers.sums import calculated

_TERM = re.compile(
    r"(?:What is |Calculate |Work out |How much is )?([\d ()+*-]+?)(?: step by step)?(?: = \?|[?.])"
)
_LARGER = re.compile(r"Which number is (larger|smaller), (\d+) or (\d+)\?")
_BOXES = re.compile(
    r"\w+ has (\d+) \w+, (?:each )?with (\d+) \w+\. "
    r"Then \w+ (gives away|loses|uses|finds|buys|gets) (\d+) .*"
)
_CLAIM = re.compile(r"(.+?) (==|!=|<|>) (\d+)")
_SEQUENCE = re.compile(r"(?:What comes next: |Continue the sequence )([\d, -]+)[?.]")
_DIVISION = re.compile(r"(?:Divide (\d+) by (\d+)\.|What is (\d+) divided by (\d+), and .*)")
_FRACTION = re.compile(r"Simplify the fraction (\d+)/(\d+)\.")
_SHARE = re.compile(r"What is (\d+) % of (\d+)\?")
_EQUATION = re.compile(r"(?:Solve )?(?:x ([+-]) (\d+)|(\d+) \* x) = (\d+)(?:\.|\. What is x\?)")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ([a-z]+)")

Result = Mapping[str, bool]
NOTHING: Result = {}


def arithmetic(prompt: str, answer: str) -> Result:
    """`sum`: one operation of two numbers; `comparison`; `word_problem` in two steps."""
    if found := _TERM.fullmatch(prompt):
        if len(re.findall(r"[+*-]", found[1])) != 1:
            return NOTHING
        return {"sum": ends_with_number(answer, calculated(found[1]))}
    if found := _LARGER.fullmatch(prompt):
        pick = max if found[1] == "larger" else min
        a, b = int(found[2]), int(found[3])
        right = ends_with_number(answer, pick(a, b)) if a != b else "equal" in answer
        return {"comparison": right}
    if found := _BOXES.fullmatch(prompt):
        boxes, each, change = int(found[1]), int(found[2]), int(found[4])
        sign = -1 if found[3] in ("gives away", "loses", "uses") else 1
        return {"word_problem": ends_with_number(answer, boxes * each + sign * change)}
    return NOTHING


def maths(prompt: str, answer: str) -> Result:
    """One check for each of the program's tasks, from `brackets` to `equation`."""
    for name, judge in _MATHS.items():
        right = judge(prompt, answer)
        if right is not None:
            return {name: right}
    return NOTHING


def _brackets(prompt: str, answer: str) -> bool | None:
    found = _TERM.fullmatch(prompt)
    if not found or len(re.findall(r"[+*-]", found[1])) < 2:
        return None
    return ends_with_number(answer, calculated(found[1]))


def _truth(prompt: str, answer: str) -> bool | None:
    _, is_asked, claims = prompt.partition("rue or false: ")
    if not is_asked:
        return None
    joint = any if " or " in claims else all
    held = [_holds(claim) for claim in re.split(r" (?:and|or) ", claims.rstrip("?"))]
    return last_line(answer) == str(joint(held))


def _holds(claim: str) -> bool:
    found = _CLAIM.fullmatch(claim)
    return found is not None and COMPARED[found[2]](calculated(found[1]), int(found[3]))


def _sequence(prompt: str, answer: str) -> bool | None:
    found = _SEQUENCE.fullmatch(prompt)
    if not found:
        return None
    numbers = [int(number) for number in found[1].split(", ")]
    step = numbers[1] - numbers[0]
    if numbers[2] - numbers[1] == step:
        return ends_with_number(answer, numbers[-1] + step)
    return ends_with_number(answer, numbers[-1] * numbers[1] // numbers[0])


def _division(prompt: str, answer: str) -> bool | None:
    found = _DIVISION.fullmatch(prompt)
    if not found:
        return None
    a, b = (int(number) for number in found.groups() if number)
    times, rest = divmod(a, b)
    end = f"is {times} with {f'remainder {rest}' if rest else 'no remainder'}."
    return last_line(answer).endswith(end)


def _fraction(prompt: str, answer: str) -> bool | None:
    found = _FRACTION.fullmatch(prompt)
    if not found:
        return None
    lowest = Fraction(int(found[1]), int(found[2]))
    said = re.findall(r"\d+/\d+", last_line(answer))
    return bool(said) and said[-1] == f"{lowest.numerator}/{lowest.denominator}"


def _percentage(prompt: str, answer: str) -> bool | None:
    found = _SHARE.fullmatch(prompt)
    if not found:
        return None
    return ends_with_number(answer, Fraction(int(found[1]) * int(found[2]), 100))


def _equation(prompt: str, answer: str) -> bool | None:
    found = _EQUATION.fullmatch(prompt)
    if not found:
        return None
    result = int(found[4])
    if found[3]:
        x = Fraction(result, int(found[3]))
    else:
        x = Fraction(result - int(found[2]) if found[1] == "+" else result + int(found[2]))
    return f"x = {x}" in answer.splitlines()


_MATHS: Mapping[str, Callable[[str, str], bool | None]] = {
    "brackets": _brackets,
    "truth": _truth,
    "sequence": _sequence,
    "division": _division,
    "fraction": _fraction,
    "percentage": _percentage,
    "equation": _equation,
}


def units(prompt: str, answer: str) -> Result:
    """`conversion` into the unit asked for, of one or two amounts; `comparison` of two amounts."""
    if prompt.startswith("Which is more, "):
        shown = re.findall(r"\d+(?:\.\d+)? [a-z]+", prompt)
        sizes = [_in_smallest(amount) for amount in shown]
        if len(shown) != 2 or None in sizes:
            return NOTHING
        first, second = (size or 0 for size in sizes)
        right = "Both are the same." if first == second else f"{shown[first < second]} is more."
        return {"comparison": last_line(answer) == right}
    found = re.fullmatch(r"How many (\w+) are (.+)\?|Convert (.+) to (\w+)\.", prompt)
    if not found:
        return NOTHING
    asked, given = (found[1], found[2]) if found[1] else (found[4], found[3])
    sizes = [_in_smallest(amount) for amount in given.split(" and ")]
    if not sizes or None in sizes or asked not in _SIZES:
        return NOTHING
    said = _AMOUNT.findall(last_line(answer))
    total = sum((size for size in sizes if size is not None), Fraction(0))
    return {"conversion": bool(said) and _is(said[-1], total, asked)}


def _is(said: tuple[str, str], total: Fraction, asked: str) -> bool:
    number, unit = said
    is_asked = unit in _SIZES and _ONE[unit] == _ONE[asked]
    return is_asked and Fraction(number) * _SIZES[unit] == total


def _in_smallest(amount: str) -> Fraction | None:
    """An amount in the smallest unit of its family, or None for what is no amount."""
    found = _AMOUNT.fullmatch(amount)
    return Fraction(found[1]) * _SIZES[found[2]] if found and found[2] in _SIZES else None


_SIZES = {
    name: unit.size for family in FAMILIES for unit in family for name in (unit.one, unit.many)
}
_ONE = {name: unit.one for family in FAMILIES for unit in family for name in (unit.one, unit.many)}
