"""What the rules find in one record, and where."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ys_llm.data.items import Item, is_record_file, read_items
from ys_llm.data.records import Record
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.gendata.curation.reading import corpus_files
from ys_llm.gendata.curation.report import difference
from ys_llm.gendata.curation.rule import Edit, Rule, Verdict, all_verdicts, apply_rules
from ys_llm.gendata.curation.rules import STANDARD

_SHOWN = 60  # characters of context on both sides


def explain(path: Path, which: int | str, *, rules: Sequence[Rule] = STANDARD) -> str:
    """Every rule that acts on a record, where, and the result.

    `which` is the record's number in the file, or a part of its text, searched in all files of a
    folder. Raises UserError if there is no such record.
    """
    name, item = _find(path, which)
    head = f"{name}:{item.number}"
    if item.record is None:
        return f"{head}: {item.problem or 'plain text, to which no rules apply'}"
    found = all_verdicts(item.record, rules)
    lines = [
        line for rule, result in found.items() for line in _describe(rule, result, item.record)
    ]
    curated = apply_rules(item.record, rules)
    if curated.verdict:
        end = f"dropped: {curated.verdict.rule}"
    else:
        end = "kept, fixed" if curated.edits else "kept unchanged"
    return "\n".join([f"{head}: {end}", *lines])


def _find(path: Path, which: int | str) -> tuple[str, Item]:
    for file in corpus_files(path):
        for item in read_items(file) if is_record_file(file) else ():
            if _is_it(item, which):
                return str(file), item
    raise UserError(
        f"{path} holds no record {which if isinstance(which, int) else repr(which[:60])}",
        "Give a file and the number of a record in it, from 1, or a part of the record's text.",
        exit_code=EXIT_USAGE,
    )


def _is_it(item: Item, which: int | str) -> bool:
    if isinstance(which, int):
        return item.number == which
    record = item.record
    return which in (f"{record.prompt}\n{record.response}" if record else item.text)


def _describe(rule: str, result: Verdict | Edit, record: Record) -> Iterator[str]:
    if isinstance(result, Edit):
        yield f"  {rule} fixes:"
        yield from (f"    {line}" for line in difference(result).splitlines())
        return
    yield f"  {rule} drops: {result.reason}"
    begin, end = result.span
    if end > begin:
        line = record.response.count("\n", 0, begin) + 1
        around = record.response[max(0, begin - _SHOWN) : min(end, begin + 200) + _SHOWN]
        yield f"    line {line}: {around!r}"
