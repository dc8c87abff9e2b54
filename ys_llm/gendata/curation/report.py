"""The report of a curation: counts by rule and by kind, examples, diffs of edits."""

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from ys_llm.errors import command_line
from ys_llm.gendata.curation.rule import Edit, Rule

MADE_BY = command_line("gen-data", "curate")
EXAMPLES = 10
_EXAMPLE_CHARS = 400
_LONGEST_DIFF = 2000  # lines; a minimal diff takes quadratic time
_LOOK_AHEAD = 200  # lines that a changed stretch of a longer text may have
OTHER_REASONS = {
    "unreadable": "not a record, or not text",
    "length": "a response outside the length limits",
    "duplicate": "identical to an earlier record",
    "near_duplicate": "nearly identical to an earlier record in 5-word shingles",
    "per_prompt": "more responses to one prompt than the limit",
}


@dataclass
class KindCount:
    """Counts of the records of one kind."""

    read: int = 0
    kept: int = 0
    edited: int = 0
    dropped: int = 0


@dataclass
class RuleCount:
    """Counts of one rule."""

    records: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class CurationReport:
    """All counts of one curation; `str()` is a summary, `markdown()` has everything."""

    settings: Mapping[str, object]
    descriptions: Mapping[str, str]
    kinds: dict[str, KindCount] = field(default_factory=dict)
    rules: dict[str, RuleCount] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_kept: int = 0

    def kind(self, name: str) -> KindCount:
        """The counts of a kind, initially zero."""
        return self.kinds.setdefault(name, KindCount())

    def count(self, rule: str, kind: str, example: dict[str, str]) -> None:
        """Count one record that a rule acted on."""
        count = self.rules.setdefault(rule, RuleCount())
        count.records += 1
        count.kinds[kind] = count.kinds.get(kind, 0) + 1
        if len(count.examples) < EXAMPLES:
            count.examples.append({name: value[:_EXAMPLE_CHARS] for name, value in example.items()})

    @property
    def totals(self) -> KindCount:
        """The sum over all kinds."""
        counts = [asdict(count) for count in self.kinds.values()]
        return KindCount(**{name: sum(c[name] for c in counts) for name in asdict(KindCount())})

    def __str__(self) -> str:
        total = self.totals
        lines = [
            f"{total.read:,} records read, {total.kept:,} kept ({total.edited:,} of them fixed), "
            f"{total.dropped:,} dropped; {self.bytes_read / 1e6:.1f} MB became "
            f"{self.bytes_kept / 1e6:.1f} MB"
        ]
        lines += [f"  {name:16} {count.records:7,}" for name, count in self._by_size()]
        return "\n".join(lines)

    def _by_size(self) -> list[tuple[str, RuleCount]]:
        return sorted(self.rules.items(), key=lambda pair: (-pair[1].records, pair[0]))

    def json(self) -> str:
        """The report as JSON; without times, so that equal input gives equal bytes."""
        content = {
            "made_by": MADE_BY,
            "settings": dict(self.settings),
            "bytes": {"read": self.bytes_read, "kept": self.bytes_kept},
            "totals": asdict(self.totals),
            "kinds": {name: asdict(self.kinds[name]) for name in sorted(self.kinds)},
            "rules": {
                name: {"description": self.descriptions.get(name, ""), **asdict(count)}
                for name, count in self._by_size()
            },
            "silent": sorted(set(self.descriptions) - set(self.rules)),
            "files": self.files,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        """The report as Markdown."""
        parts = ["# Curation", "", "```text", str(self), "```", "", *self._kind_table(), ""]
        for name, count in self._by_size():
            parts += [f"## {name}: {count.records:,}", "", self.descriptions.get(name, ""), ""]
            kinds = ", ".join(f"{kind} {n:,}" for kind, n in sorted(count.kinds.items()))
            parts += [f"By kind: {kinds}.", ""]
            for example in count.examples:
                where, text = example["where"], example.get("diff") or example.get("reason", "")
                parts += [f"- {where}", "", *(f"      {line}" for line in text.splitlines()), ""]
        return "\n".join(parts) + "\n"

    def _kind_table(self) -> list[str]:
        rows = [
            f"| {name} | {count.read:,} | {count.kept:,} | {count.edited:,} | {count.dropped:,} |"
            for name, count in sorted(self.kinds.items())
        ]
        return ["| kind | read | kept | fixed | dropped |", "|---|---|---|---|---|", *rows]


def descriptions(rules: tuple[Rule, ...]) -> dict[str, str]:
    """One line for every rule and every other reason to drop a record."""
    return {rule.name: rule.description for rule in rules} | OTHER_REASONS


def difference(edit: Edit) -> str:
    """The diff of an edit, with one line of context."""
    parts = [
        _line_diff(before, after)
        for before, after in (
            (edit.before.prompt, edit.after.prompt),
            (edit.before.response, edit.after.response),
        )
        if before != after
    ]
    return "\n".join(parts)


def _line_diff(before: str, after: str) -> str:
    one, other = before.splitlines(), after.splitlines()
    if len(one) + len(other) > _LONGEST_DIFF:
        return "\n".join(_long_diff(one, other))
    lines = difflib.unified_diff(one, other, n=1, lineterm="")
    return "\n".join(itertools.islice(lines, 2, None))  # after the names of two files


def _long_diff(one: list[str], other: list[str]) -> Iterator[str]:
    """The hunks of a long text in linear time: a changed stretch ends where both agree again."""
    at = into = 0
    while at < len(one) or into < len(other):
        if at < len(one) and into < len(other) and one[at] == other[into]:
            at, into = at + 1, into + 1
            continue
        end, stop = _agree_again(one, other, at, into)
        yield f"@@ -{at + 1},{end - at} +{into + 1},{stop - into} @@"
        yield from (f"-{line}" for line in one[at:end])
        yield from (f"+{line}" for line in other[into:stop])
        at, into = end, stop


def _agree_again(one: list[str], other: list[str], at: int, into: int) -> tuple[int, int]:
    for distance in range(1, _LOOK_AHEAD):
        for ahead in range(distance + 1):
            end, stop = at + distance - ahead, into + ahead
            if end < len(one) and stop < len(other) and one[end] == other[stop]:
                return end, stop
    return len(one), len(other)
