"""Sorting numbers and words, the largest of a list, a place in it, and people put in order."""

import re
from collections.abc import Mapping

from ys_llm.gendata.judges.said import ends_with_number, last_line
from ys_llm.gendata.programs.ordering import PLACES, SCALES

_NUMBERS = re.compile(
    r"(?:Sort these numbers|Put these numbers in order,) from the (\w+) .*: (.+)\."
)
_WORDS = re.compile(r"(?:Sort these words by the alphabet|Put these words in .* order): (.+)\.")
_EXTREME = re.compile(r"Which number is the (second )?(largest|smallest) of (.+)\?")
_PLACE = re.compile(r"What is the (\w+) word of this list: (.+)\?")
_WHO_IS_MOST = re.compile(r"Who is the (\w+)\?")
_IS_MORE = re.compile(r"Is (\w+) (\w+) than (\w+)\?")
_WHO_IS_MORE = re.compile(r"Who is (\w+) than (\w+)\?")
_CLUE = re.compile(r"(\w+) is (\w+) than (\w+)\. ")


def ordering(prompt: str, answer: str) -> Mapping[str, bool]:
    """`sorted`, `extreme`, `place`, `people`."""
    for judge in (_sorted, _extreme, _place, _people):
        if found := judge(prompt, answer):
            return found
    return {}


def _sorted(prompt: str, answer: str) -> Mapping[str, bool]:
    if found := _NUMBERS.fullmatch(prompt):
        numbers = sorted(map(int, found[2].split(", ")), reverse=found[1] == "largest")
        return {"sorted": answer.strip() == ", ".join(map(str, numbers))}
    if found := _WORDS.fullmatch(prompt):
        return {"sorted": answer.strip() == ", ".join(sorted(found[1].split(", ")))}
    return {}


def _extreme(prompt: str, answer: str) -> Mapping[str, bool]:
    found = _EXTREME.fullmatch(prompt)
    if not found:
        return {}
    numbers = sorted(map(int, found[3].split(", ")), reverse=found[2] == "largest")
    return {"extreme": ends_with_number(answer, numbers[1 if found[1] else 0])}


def _place(prompt: str, answer: str) -> Mapping[str, bool]:
    found = _PLACE.fullmatch(prompt)
    if not found or found[1] not in (*PLACES, "last"):
        return {}
    words = found[2].split(", ")
    at = -1 if found[1] == "last" else PLACES.index(found[1])
    return {"place": last_line(answer).endswith(f" is {words[at]}.")}


def _people(prompt: str, answer: str) -> Mapping[str, bool]:
    clues = _CLUE.findall(prompt)
    scale = next((one for one in SCALES if clues and clues[0][1] in one), None)
    if scale is None:
        return {}
    more, most, less, _ = scale
    pairs = [(a, b) if how == more else (b, a) for a, how, b in clues if how in (more, less)]
    order = _in_order(pairs)
    said = last_line(answer)
    question = prompt[prompt.rfind(". ") + 2 :]
    if found := _WHO_IS_MOST.fullmatch(question):
        name = order[0] if found[1] == most else order[-1]
        return {"people": said == f"{name} is the {found[1]}."}
    if found := _IS_MORE.fullmatch(question):
        holds = order.index(found[1]) < order.index(found[3])
        return {"people": said.startswith("Yes," if holds else "No,")}
    if found := _WHO_IS_MORE.fullmatch(question):
        above = order[: order.index(found[2])]
        names = re.findall(r"\w+", re.split(r" (?:is|are) ", said)[0].replace(" and ", " "))
        return {"people": sorted(names) == sorted(above)}
    return {}


def _in_order(pairs: list[tuple[str, str]]) -> list[str]:
    """The chain of these pairs, the most first."""
    after = dict(pairs)
    first = next(iter(after.keys() - after.values()))
    order = [first]
    while order[-1] in after and len(order) <= len(after):
        order.append(after[order[-1]])
    return order
