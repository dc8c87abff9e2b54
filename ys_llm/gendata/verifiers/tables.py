"""Verifiers of tables: JSON, CSV, YAML and markdown are parsed and compared with their source."""

import csv
import io
import json
import re
from collections.abc import Mapping

from ys_llm.config.yaml_io import parse_yaml
from ys_llm.data.records import Record
from ys_llm.errors import UserError

Rows = list[dict[str, str]]
_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```\s*$", re.DOTALL)


def parsed(form: str, text: str) -> Rows:
    """A table as text cells. Raises ValueError if the text is not a table in this format."""
    text = _FENCE.sub(r"\1", text.strip())
    readers = {"json": _json, "csv": _csv, "yaml": _yaml, "markdown": _markdown}
    rows = readers[form](text)
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("no rows, or rows with different columns")
    return rows


def guessed_form(text: str) -> str:
    """The probable format of a table."""
    text = _FENCE.sub(r"\1", text.strip())
    starts = {"[": "json", "{": "json", "|": "markdown", "-": "yaml"}
    return starts.get(text[:1], "csv")


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: ""}[value]
    if isinstance(value, list | dict):
        raise ValueError("a cell that is no plain value")
    return str(value)


def _records(value: object) -> Rows:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError("not a list of records")
    return [{str(name): _cell(cell) for name, cell in row.items()} for row in value]


def _json(text: str) -> Rows:
    return _records(json.loads(text))


def _yaml(text: str) -> Rows:
    try:
        read = parse_yaml(text, name="the table")
    except UserError as error:
        raise ValueError(str(error)) from error
    if read.problems:
        raise ValueError(read.problems[0][1])
    return _records(read.values)


def _csv(text: str) -> Rows:
    return _with_head(list(csv.reader(io.StringIO(text), strict=True)))


def _markdown(text: str) -> Rows:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or any(line[0] != "|" or line[-1] != "|" for line in lines):
        raise ValueError("a line without its two outer bars")
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    if not all(re.fullmatch(r":?-+:?", cell) for cell in cells[1]):
        raise ValueError("the second line is not made of dashes")
    return _with_head([cells[0], *cells[2:]])


def _with_head(lines: list[list[str]]) -> Rows:
    try:
        return [dict(zip(lines[0], cells, strict=True)) for cells in lines[1:] if cells]
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(f"lines of different length: {error}") from error


def table(record: Record, slots: Mapping[str, str]) -> str:
    """The response is the source table, cell by cell.

    The source is the slot `rows` (JSON) or else what follows the first empty line, or the first
    line, of the prompt;
    the form is the slot `form`, or else the one that the response seems to have.
    """
    gap = "\n\n" if "\n\n" in record.prompt.strip() else "\n"
    source = slots.get("rows") or record.prompt.strip().partition(gap)[2]
    form = slots.get("form") or guessed_form(record.response)
    try:
        expected = parsed(guessed_form(source), source)
    except (ValueError, csv.Error) as error:
        return f"the prompt holds no table: {error}"
    try:
        found = parsed(form, record.response)
    except (ValueError, csv.Error, RecursionError) as error:
        return f"no {form}: {error}"
    return _difference(expected, found)


def _difference(expected: Rows, found: Rows) -> str:
    if len(expected) != len(found):
        return f"{len(found)} rows, the source has {len(expected)}"
    if list(expected[0]) != list(found[0]):
        return f"columns {', '.join(found[0])}, the source has {', '.join(expected[0])}"
    for i, (right, row) in enumerate(zip(expected, found, strict=True), 1):
        for name in right:
            if row[name] != right[name]:
                return f"row {i}: {name} is {row[name]!r}, the source has {right[name]!r}"
    return ""


def facts_in_prose(record: Record, slots: Mapping[str, str]) -> str:
    """The prompt contains every cell of the slot `rows` (JSON), numbers as numbers."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", record.prompt)
    for row in _json(slots["rows"]):
        for name, cell in row.items():
            if not re.search(rf"(?<![\w.]){re.escape(cell)}(?!\w|\.\d)", text, re.IGNORECASE):
                return f"{name} {cell!r} is not in the text"
    return ""
