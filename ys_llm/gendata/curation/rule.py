"""What a rule is, and what a set of rules does to one record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ys_llm.data.records import Record


@dataclass(frozen=True)
class Verdict:
    """Why a record is dropped; `span` is what to look at, as offsets into the response."""

    rule: str
    reason: str
    span: tuple[int, int] = (0, 0)


Outcome = Record | Verdict | None


@dataclass(frozen=True)
class Rule:
    """One test of a record; `apply` gives the mended record, a verdict, or None: nothing to say.

    A rule that fixes may give a verdict too, where nothing would be left. A rule that drops gives
    no record. `fires` and `spares` are its examples: records that it acts on, and records that look
    alike and are right; both are run as tests.
    """

    name: str
    kind: Literal["fix", "drop"]
    description: str
    apply: Callable[[Record], Outcome]
    fires: tuple[Record, ...] = ()
    spares: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Edit:
    """What one rule changed."""

    rule: str
    before: Record
    after: Record


@dataclass(frozen=True)
class Curated:
    """What is left of a record: itself, mended, or nothing and the verdict that says why."""

    record: Record | None
    edits: tuple[Edit, ...] = ()
    verdict: Verdict | None = None


@dataclass
class _Progress:
    record: Record
    edits: list[Edit] = field(default_factory=list)


def apply_rules(record: Record, rules: Sequence[Rule]) -> Curated:
    """Mend until no rule mends any more, then ask the rules that drop; the first verdict counts.

    Every fix makes the record shorter, so this ends; and what comes out comes out unchanged again.
    """
    progress = _Progress(record)
    while verdict_or_done := _mend(progress, rules):
        if isinstance(verdict_or_done, Verdict):
            return Curated(None, tuple(progress.edits), verdict_or_done)
    for rule in rules:
        verdict = rule.apply(progress.record) if rule.kind == "drop" else None
        if isinstance(verdict, Verdict):
            return Curated(None, tuple(progress.edits), verdict)
    return Curated(progress.record, tuple(progress.edits))


def _mend(progress: _Progress, rules: Sequence[Rule]) -> Verdict | bool:
    """One round of all that fix: a verdict, else whether anything has changed."""
    before = progress.record
    for rule in rules:
        if rule.kind != "fix":
            continue
        outcome = rule.apply(progress.record)
        if isinstance(outcome, Verdict):
            return outcome
        if outcome is not None:
            assert _length(outcome) < _length(progress.record), (rule.name, progress.record)
            progress.edits.append(Edit(rule.name, progress.record, outcome))
            progress.record = outcome
    return progress.record is not before


def _length(record: Record) -> int:
    return len(record.prompt) + len(record.response)


def all_verdicts(record: Record, rules: Sequence[Rule]) -> dict[str, Verdict | Edit]:
    """Rule -> the first thing it says, of every rule that says something about the record.

    Each is asked about the record as it was and as the others mend it, so that it can be judged
    alone; `apply_rules` stops at the first verdict.
    """
    found: dict[str, Verdict | Edit] = {}
    for rule in rules:
        outcome = rule.apply(record)
        if outcome is not None:
            found[rule.name] = _as_said(rule, record, outcome)
    curated = apply_rules(record, [rule for rule in rules if rule.kind == "fix"])
    for edit in curated.edits:
        found.setdefault(edit.rule, edit)
    if curated.verdict:
        found.setdefault(curated.verdict.rule, curated.verdict)
    for rule in rules:
        outcome = rule.apply(curated.record) if curated.record and rule.kind == "drop" else None
        if isinstance(outcome, Verdict):
            found.setdefault(rule.name, outcome)
    return found


def _as_said(rule: Rule, record: Record, outcome: Record | Verdict) -> Verdict | Edit:
    return outcome if isinstance(outcome, Verdict) else Edit(rule.name, record, outcome)


def mended(record: Record, response: str, rule: str) -> Outcome:
    """The record with another response; a verdict where none is left, None where it is the same."""
    if response == record.response:
        return None
    if not response.strip():
        return Verdict(rule, "nothing else is in the response", (0, len(record.response)))
    return Record(record.prompt, response)


def answers(*responses: str, prompt: str = "Tell me about rivers.") -> tuple[Record, ...]:
    """Examples of a rule that looks at the response alone."""
    return tuple(Record(prompt, response) for response in responses)
