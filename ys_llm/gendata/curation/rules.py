"""The rule sets: all rules, their order, and the names by which they are chosen."""

from collections.abc import Iterable

from ys_llm.data.records import Record
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.gendata.curation.closings import OFFER
from ys_llm.gendata.curation.comments import CHAT_LINE, COMMENT
from ys_llm.gendata.curation.corruption import LANGUAGE, MOJIBAKE
from ys_llm.gendata.curation.feedback import FEEDBACK
from ys_llm.gendata.curation.legacy_phrases import LEGACY_PHRASES
from ys_llm.gendata.curation.notes_and_links import (
    CONTROL_TAG,
    LINK,
    NOTE,
    SELF_REFERENCE,
)
from ys_llm.gendata.curation.placeholders import PLACEHOLDER
from ys_llm.gendata.curation.preambles import COPY, ECHO, PREAMBLE, REFUSAL
from ys_llm.gendata.curation.repetition import REPETITION
from ys_llm.gendata.curation.rule import Rule, RuleResult, Verdict, answers
from ys_llm.gendata.curation.truncation import TRUNCATED
from ys_llm.gendata.curation.word_salad import WORD_SALAD


def _empty(record: Record) -> RuleResult:
    if any(map(str.isalnum, record.response)):
        return None
    return Verdict("empty", "the response has no letter and no digit", (0, len(record.response)))


EMPTY = Rule(
    "empty",
    "drop",
    "a response without a letter or a digit",
    _empty,
    positives=answers("", " \n---\n"),
    negatives=answers("4", "joy"),
)

STANDARD: tuple[Rule, ...] = (
    MOJIBAKE,
    FEEDBACK,
    ECHO,
    PREAMBLE,
    NOTE,
    CHAT_LINE,
    OFFER,
    COMMENT,
    LINK,
    PLACEHOLDER,
    EMPTY,
    CONTROL_TAG,
    REFUSAL,
    COPY,
    SELF_REFERENCE,
    LANGUAGE,
    REPETITION,
    WORD_SALAD,
    TRUNCATED,
)
RULE_SETS: dict[str, tuple[Rule, ...]] = {"standard": STANDARD, "legacy": LEGACY_PHRASES}


def rules_named(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of these sets and names, each once, in order. Raises UserError for unknown ones."""
    single = {rule.name: rule for rules in RULE_SETS.values() for rule in rules}
    chosen: dict[str, Rule] = {}
    for name in names:
        rules = RULE_SETS.get(name) or (single.get(name),)
        for rule in rules:
            if rule is None:
                raise UserError(
                    f"there is no curation rule {name!r}",
                    f"Sets are {', '.join(RULE_SETS)}; rules are {', '.join(single)}.",
                    exit_code=EXIT_USAGE,
                )
            chosen.setdefault(rule.name, rule)
    return tuple(chosen.values())
