"""Spelling, forwards and backwards, the number of letters, and the first and last one."""

import re
from collections.abc import Mapping

from ys_llm.data.records import Record
from ys_llm.gendata.programs.spelling import spelled
from ys_llm.gendata.verifiers.sums import spelling as is_consistent

_SPELL = re.compile(r"(?:Spell the word|How do you spell|Please spell|Spell) (\w+)[.?]")
_BACKWARDS = re.compile(r"(?:Spell|Write the word) (\w+) backwards\.")
_COUNT = (
    re.compile(r"How many times does the letter (?P<letter>\w) occur in (?P<word>\w+)\?"),
    re.compile(r"How often does (?P<letter>\w) occur in the word (?P<word>\w+)\?"),
    re.compile(r"Count the letter (?P<letter>\w) in (?P<word>\w+)\."),
)
_LENGTH = re.compile(r"(?:How many letters does (\w+) have|How long is the word (\w+))\?")
_END = re.compile(r"What is the (first|last) letter of (\w+)\?")


def spelling(prompt: str, answer: str) -> Mapping[str, bool]:
    """`spell`, `backwards`, `count` of a letter, `length`, `first_or_last` letter.

    For `count` and `length` the word must be spelled right, too, as the records do.
    """
    said = answer.strip()
    if found := _SPELL.fullmatch(prompt):
        return {"spell": said.upper() == spelled(found[1])}
    if found := _BACKWARDS.fullmatch(prompt):
        return {"backwards": said.upper() == spelled(found[1][::-1])}
    if found := next((match for form in _COUNT if (match := form.fullmatch(prompt))), None):
        number = found["word"].lower().count(found["letter"].lower())
        right = bool(re.search(rf"\b{found['letter']} occurs {number} times?\b", said))
        return {"count": right and _spells(prompt, said, found["word"])}
    if found := _LENGTH.fullmatch(prompt):
        word = found[1] or found[2]
        right = bool(re.search(rf"\bhas {len(word)} letters?\b", said))
        return {"length": right and _spells(prompt, said, word)}
    if found := _END.fullmatch(prompt):
        letter = found[2][0 if found[1] == "first" else -1]
        return {"first_or_last": said.lower().endswith(f" is {letter.lower()}.")}
    return {}


def _spells(prompt: str, answer: str, word: str) -> bool:
    """The word is spelled in the first line, and nothing else in the answer is wrong."""
    first = answer.partition("\n")[0].strip().upper()
    return first == spelled(word) and not is_consistent(Record(prompt, answer), {})
