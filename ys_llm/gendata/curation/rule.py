"""Rules, and their application to one record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ys_llm.data.records import Record
from ys_llm.gendata.curation.structure import balance


@dataclass(frozen=True)
class Verdict:
    """Why a record is dropped; `span` marks the place, as offsets into the response."""

    rule: str
    reason: str
    span: tuple[int, int] = (0, 0)


RuleResult = Record | Verdict | None


@dataclass(frozen=True)
class Rule:
    """One check of a record; `apply` returns the fixed record, a verdict, or None if it is fine.

    A rule of kind `fix` may return a verdict too, if nothing would remain. A rule of kind `drop`
    never returns a record. `positives` and `negatives` are examples, and run as tests: records that
    the rule acts on, and similar records that are fine.
    """

    name: str
    kind: Literal["fix", "drop"]
    description: str
    apply: Callable[[Record], RuleResult]
    positives: tuple[Record, ...] = ()
    negatives: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Edit:
    """The change made by one rule."""

    rule: str
    before: Record
    after: Record


@dataclass(frozen=True)
class Curated:
    """The result for a record: the record, possibly fixed, or None and the verdict."""

    record: Record | None
    edits: tuple[Edit, ...] = ()
    verdict: Verdict | None = None


@dataclass
class _Progress:
    record: Record
    edits: list[Edit] = field(default_factory=list)


def apply_rules(record: Record, rules: Sequence[Rule]) -> Curated:
    """Apply fixes until none changes anything, then the rules that drop; the first verdict counts.

    Every fix shortens the record, so this ends; applying it again changes nothing.
    """
    progress = _Progress(record)
    while verdict_or_done := _fix(progress, rules):
        if isinstance(verdict_or_done, Verdict):
            return Curated(None, tuple(progress.edits), verdict_or_done)
    for rule in rules:
        verdict = rule.apply(progress.record) if rule.kind == "drop" else None
        if isinstance(verdict, Verdict):
            return Curated(None, tuple(progress.edits), verdict)
    return Curated(progress.record, tuple(progress.edits))


def _fix(progress: _Progress, rules: Sequence[Rule]) -> Verdict | bool:
    """One round of all fixes: a verdict, else whether anything changed."""
    before = progress.record
    for rule in rules:
        if rule.kind != "fix":
            continue
        result = rule.apply(progress.record)
        if isinstance(result, Verdict):
            return result
        if result is not None:
            assert _length(result) < _length(progress.record), (rule.name, progress.record)
            progress.edits.append(Edit(rule.name, progress.record, result))
            progress.record = result
    return progress.record is not before


def _length(record: Record) -> int:
    return len(record.prompt) + len(record.response)


def all_verdicts(record: Record, rules: Sequence[Rule]) -> dict[str, Verdict | Edit]:
    """The first result of every rule that acts on the record, by rule name.

    Each rule sees the original record and the one fixed by the other rules, so that rules can be
    judged separately; `apply_rules` stops at the first verdict.
    """
    found: dict[str, Verdict | Edit] = {}
    for rule in rules:
        result = rule.apply(record)
        if result is not None:
            found[rule.name] = _as_edit(rule, record, result)
    curated = apply_rules(record, [rule for rule in rules if rule.kind == "fix"])
    for edit in curated.edits:
        found.setdefault(edit.rule, edit)
    if curated.verdict:
        found.setdefault(curated.verdict.rule, curated.verdict)
    for rule in rules:
        result = rule.apply(curated.record) if curated.record and rule.kind == "drop" else None
        if isinstance(result, Verdict):
            found.setdefault(rule.name, result)
    return found


def _as_edit(rule: Rule, record: Record, result: Record | Verdict) -> Verdict | Edit:
    return result if isinstance(result, Verdict) else Edit(rule.name, record, result)


def with_response(record: Record, response: str, rule: str) -> RuleResult:
    """The record with another response; a verdict if it is empty, None if it is unchanged.

    None too if a fence or a bracket would lose its other half: what belongs together stays.
    """
    if response == record.response:
        return None
    if not response.strip():
        return Verdict(rule, "the response has nothing else", (0, len(record.response)))
    if balance(response) != balance(record.response):
        return None
    return Record(record.prompt, response)


def answers(*responses: str, prompt: str = "Tell me about rivers.") -> tuple[Record, ...]:
    """Examples for a rule that only looks at the response."""
    return tuple(Record(prompt, response) for response in responses)
