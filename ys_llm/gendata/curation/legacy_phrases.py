"""The phrase list with which an earlier project searched its corpora, for comparison.

Each phrase is one rule, which drops responses that contain it, in any case. `AIMS` names the defect
that each phrase was meant to find.
"""

import re
from collections.abc import Callable
from functools import partial

from ys_llm.data.records import Record
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict

AIMS: dict[str, str] = {
    "note:": "note",
    "**note**": "note",
    "**note:**": "note",
    "cannot": "refusal",
    "can't write": "refusal",
    "can't generate": "refusal",
    "can't help": "refusal",
    "i'm an ai": "self_reference",
    "references:": "link",
    "**references**": "link",
    "sources": "link",
    "**sources**": "link",
    "links": "link",
    "citation": "link",
    "real": "self_reference",
    "http://": "link",
    "https://": "link",
    "www.": "link",
}
_BRACKETS = re.compile(r"\[.*\]")


def _phrase(record: Record, *, phrase: str) -> RuleResult:
    at = record.response.lower().find(phrase)
    if at < 0:
        return None
    return Verdict(f"legacy/{phrase}", f"contains {phrase!r}", (at, at + len(phrase)))


def _brackets(record: Record) -> RuleResult:
    match = _BRACKETS.search(record.response)
    return match and Verdict("legacy/[...]", "contains brackets", match.span())


def _rule(phrase: str, apply: Callable[[Record], RuleResult]) -> Rule:
    return Rule(
        f"legacy/{phrase}",
        "drop",
        f"a response that contains {phrase}",
        apply,
        positives=(Record("Go on.", f"A river. {phrase} A sea."),),
        negatives=(Record("Go on.", "A river. A sea."),),
    )


LEGACY_PHRASES: tuple[Rule, ...] = (
    *(_rule(phrase, partial(_phrase, phrase=phrase)) for phrase in AIMS),
    _rule("[...]", _brackets),
)
