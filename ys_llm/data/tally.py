"""What was read of a corpus and what was left out: the lines of a header, for every command."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_SHOWN_ENDINGS = 6
_SHOWN_BAD, _SHOWN_SKIPPED = 5, 20


@dataclass
class Problems:
    """What was left out, and why: a count, and the first ones of many."""

    most: int
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Note one more."""
        self.count += 1
        if len(self.first) < self.most:
            self.first.append(problem)

    def line(self, noun: str) -> str:
        """Describe them: `7 left out: A; B; and 5 more`."""
        more = self.count - len(self.first)
        rest = f"; and {more:,} more {noun}" if more > 0 else ""
        return f"{self.count:,} left out: {'; '.join(self.first)}{rest}"


@dataclass
class Tally:
    """How many records of each form there were, and which records and files were left out.

    A text counts as a record of its own. `passed_over` has the files of other kinds by their
    endings.
    """

    forms: Counter[str] = field(default_factory=Counter)
    bad_records: Problems = field(default_factory=lambda: Problems(_SHOWN_BAD))
    skipped: Problems = field(default_factory=lambda: Problems(_SHOWN_SKIPPED))
    passed_over: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Add that of one more file."""
        self.forms.update(other.forms)
        self.passed_over.update(other.passed_over)
        for mine, theirs in (
            (self.bad_records, other.bad_records),
            (self.skipped, other.skipped),
        ):
            mine.count += theirs.count
            mine.first += theirs.first[: mine.most - len(mine.first)]

    def notes(self) -> dict[str, str]:
        """Return the lines of a header, by their labels: `formats`: `1,200 messages, 3 text`."""
        notes = {"formats": _listed(self.forms)}
        if self.bad_records.count:
            notes["bad records"] = self.bad_records.line("records")
        if self.skipped.count:
            notes["skipped"] = self.skipped.line("files")
        if self.passed_over:
            notes["passed over"] = passed_over_line(self.passed_over)
        return notes


def passed_over_line(passed_over: Mapping[str, int]) -> str:
    """Describe the files that were not read, by their endings: `3 files: 2 .pdf, 1 .csv`."""
    ranked = sorted(passed_over, key=lambda ending: (-passed_over[ending], ending))
    parts = [f"{passed_over[ending]:,} {ending}" for ending in ranked[:_SHOWN_ENDINGS]]
    rest = sum(passed_over[ending] for ending in ranked[_SHOWN_ENDINGS:])
    total = sum(passed_over.values())
    noun = "file" if total == 1 else "files"
    return f"{total:,} {noun}: {', '.join([*parts, *([f'{rest:,} others'] if rest else [])])}"


def _listed(forms: Mapping[str, int]) -> str:
    ranked = sorted(forms, key=lambda name: (-forms[name], name))
    return ", ".join(f"{forms[name]:,} {name}" for name in ranked)
