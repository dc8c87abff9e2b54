"""Verifiers of letter counts and of equations."""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from ys_llm.data.records import Record

_EQUATION = re.compile(
    r"(-?\(*\d[\d.\s()+*/-]*?)\s*=\s*(-?\d+(?:\.\d+)?)(?![\d.]*\s*[+*/-]\s*[\d(])"
)
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "·": "*"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST = 200  # characters of one expression; a model may write endless brackets

_SPELLED = re.compile(r"\b\w(?:-[\w ])+\b")
_COUNTED = re.compile(
    r"letter (\w) (?:occurs|appears|is found)(?: exactly)? (\d+) times?", re.IGNORECASE
)
_LENGTH = re.compile(r"(?:word|it) has (\d+) letters?", re.IGNORECASE)
_END = re.compile(r"(first|last) letter of (\w+) is (\w)\b", re.IGNORECASE)


def arithmetic(record: Record, slots: Mapping[str, str], least: int = 1) -> str:
    """Every equation of the response is correct, and there are at least `least`.

    A decimal result may be rounded to the decimals that it shows.
    """
    text = _THOUSANDS.sub("", record.response.translate(_SIGNS))
    number = 0
    for match in _EQUATION.finditer(text):
        before = text[: match.start()].rstrip(" ")[-1:]
        if not re.search(r"\d[\s)]*[+*/-]", match[1]) or before in tuple("+*/-^="):
            continue  # the end of something longer, such as `2 * x + 3 = 7`
        try:
            result = calculated(match[1])
        except ValueError:
            continue
        if not _shows(result, match[2]):
            return f"{match[1].strip()} is not {match[2]}"
        number += 1
    return f"{number} equations, expected at least {least}" if number < least else ""


def calculated(expression: str) -> Fraction:
    """The exact value of an arithmetic expression. Raises ValueError for anything else."""
    if len(expression) > _LONGEST:
        raise ValueError("too long")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, expression.strip())
    except (SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _value(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(ast.get_source_segment(source, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, source)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        operation = _OPERATIONS[type(node.op)]
        return operation(_value(node.left, source), _value(node.right, source))
    raise ValueError(ast.dump(node))


def _shows(result: Fraction, written: str) -> bool:
    decimals = len(written.partition(".")[2])
    error = abs(result - Fraction(written))
    return error == 0 or (decimals > 0 and error * 2 <= Fraction(1, 10**decimals))


def spelling(record: Record, slots: Mapping[str, str]) -> str:
    """The response is right about the letters of a word of the prompt, in any case."""
    prompt = record.prompt.lower()
    spelled = [text.replace("-", "").lower() for text in _SPELLED.findall(record.response)]
    for word in spelled:
        if not _is_word(word, prompt) and not _is_word(word[::-1], prompt):
            return f"{word} is not a word of the prompt"
    for end, word, letter in _END.findall(record.response):
        right = word[0] if end.lower() == "first" else word[-1]
        if right.lower() != letter.lower() or not _is_word(word.lower(), prompt):
            return f"the {end} letter of {word} is not {letter}"
    word = spelled[0] if spelled else ""
    for letter, number in _COUNTED.findall(record.response):
        if word.count(letter.lower()) != int(number):
            return f"{letter} occurs {word.count(letter.lower())} times in {word!r}, not {number}"
    for number in _LENGTH.findall(record.response):
        if len(word) != int(number):
            return f"{word!r} has {len(word)} letters, not {number}"
    return "" if spelled or _END.search(record.response) else "nothing is spelled"


def _is_word(word: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text))
