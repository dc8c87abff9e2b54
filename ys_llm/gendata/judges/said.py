"""What an answer comes to: its last line, and the last number or name in it."""

import re
from collections.abc import Iterable
from fractions import Fraction

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def last_line(answer: str) -> str:
    """The last line with text in it."""
    lines = answer.strip().splitlines()
    return lines[-1].strip() if lines else ""


def ends_with_number(answer: str, expected: Fraction | int) -> bool:
    """Whether the last number of the last line is the expected one."""
    found = _NUMBER.findall(last_line(answer))
    return bool(found) and Fraction(found[-1]) == expected


def last_named(answer: str, words: Iterable[str]) -> str:
    """The one of these words that comes last in the last line, or ""."""
    found = re.findall(rf"\b(?:{'|'.join(map(re.escape, words))})\b", last_line(answer))
    return found[-1] if found else ""
