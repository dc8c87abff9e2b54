"""Tables in another form, texts under constraints, and the word that fills a gap."""

import json
import re
from collections import Counter
from collections.abc import Mapping

from ys_llm.data.records import Record
from ys_llm.gendata.programs.instruction_following import NUMBERS
from ys_llm.gendata.verifiers.constraints import SATISFIED, Value
from ys_llm.gendata.verifiers.tables import table

_FORM = re.compile(r"\b(?:to|into|as) (?:a )?(json|csv|yaml|markdown)\b")
# A wish: the constraint that it is, and what it names.
_WISHES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("sentences", re.compile(r"Write exactly (\w+) sentences?\.")),
    ("bullets", re.compile(r"Write exactly (\w+) bullet points? that begins? with a hyphen\.")),
    ("paragraphs", re.compile(r"Write exactly (\w+) paragraphs?\b")),
    ("json_sentences", re.compile(r"Answer with valid JSON: a list of (\w+) sentences?\.")),
    ("starts_with", re.compile(r'Begin with the words "(.+?)"\.')),
    ("ends_with", re.compile(r'End with the words "(.+?)"\.')),
    ("uppercase", re.compile(r"Use (capital) letters only\.")),
    ("lowercase", re.compile(r"Use (small) letters only\.")),
    ("no_commas", re.compile(r"Use (no) commas\.")),
    ("most_words", re.compile(r"Use at most (\d+) words\.")),
    ("without_word", re.compile(r'Do not use the word "(\w+)"\.')),
)
_GAP = "\n\nWhich word fills the gap?\n"
# In the table these wishes are one check each; a kind of one prompt in twenty says little.
_CHECK = {
    "sentences": "count",
    "bullets": "count",
    "paragraphs": "count",
    "json_sentences": "json",
    "starts_with": "opening_or_ending",
    "ends_with": "opening_or_ending",
    "uppercase": "case",
    "lowercase": "case",
    "no_commas": "words",
    "most_words": "words",
    "without_word": "words",
}


def formats(prompt: str, answer: str) -> Mapping[str, bool]:
    """`form`: a table in the form asked for; `cells`: it is the prompt's table, cell by cell."""
    question, _, source = prompt.partition("\n\n")
    asked = _FORM.findall(question)
    if not asked or not source:
        return {}
    wrong = table(Record(prompt, answer), {"form": asked[-1]})
    if wrong.startswith("the prompt holds no table"):
        return {}
    return {"form": not wrong.startswith(f"no {asked[-1]}"), "cells": not wrong}


def instructions(prompt: str, answer: str) -> Mapping[str, bool]:
    """`count`, `json`, `opening_or_ending`, `case`, `words`: all wishes of each are satisfied."""
    text, found = answer.strip(), dict[str, bool]()
    for rule, pattern in _WISHES:
        for said in pattern.findall(prompt):
            check = _CHECK[rule]
            found[check] = found.get(check, True) and _satisfied(rule, text, said)
    return found


def _satisfied(rule: str, text: str, said: str) -> bool:
    value: Value = NUMBERS.index(said) if said in NUMBERS else said
    if rule == "no_commas":
        return "," not in text
    if rule != "json_sentences":
        return SATISFIED[rule](text, value)
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(given, list) and len(given) == value


def cloze(prompt: str, answer: str) -> Mapping[str, bool]:
    """`word`: the answer is the option that the rest of the story says most often."""
    story, is_asked, options = prompt.partition(_GAP)
    given = dict(re.findall(r"^([A-D])\) (.+)$", options, re.MULTILINE))
    words = Counter(re.findall(r"\w+", story))
    ranked = sorted(given, key=lambda letter: words[given[letter]])
    if not is_asked or not ranked or not words[given[ranked[-1]]]:
        return {}
    return {"word": answer.strip() == f"The answer is {ranked[-1]}) {given[ranked[-1]]}."}
