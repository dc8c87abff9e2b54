"""The records of a file as objects: lines of JSON, an array of JSON, or the rows of a table."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

TABLE_SUFFIXES = (".json", ".csv", ".tsv")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_CELL = 1 << 30  # characters
_DECODER_BLANKS = " \t\r\n"


class Row(NamedTuple):
    """A record with the line where it begins; `problem` says why there are no fields."""

    line: int
    fields: Any
    problem: str = ""


def load_json(text: str) -> Any:
    """Parse JSON; raise ValueError with the problem, also for a field that is given twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("brackets nested too deep to read") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    except ValueError as error:
        problem = str(error).partition(";")[0]  # the rest is advice on the settings of Python
        raise ValueError(f"not JSON ({problem})") from error


def rows_of(text: str, suffix: str) -> Iterator[Row]:
    """Yield the records of a `.json`, `.csv` or `.tsv` file; after an unreadable one, none."""
    rows = _array(text) if suffix == ".json" else _table(text, _DELIMITERS[suffix])
    line = 1
    try:
        for row in rows:
            line = row.line
            yield row
    except (ValueError, RecursionError, csv.Error) as error:
        what = "JSON" if suffix == ".json" else "a table"
        yield Row(line, None, f"from here on not {what} ({error})")


def _array(text: str) -> Iterator[Row]:
    """Yield the elements of an array, each with its line."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    at = _past_blanks(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError("expected an array of records: [{...}, {...}]")
    line, counted = 1, 0
    at = _past_blanks(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        fields, end = decoder.raw_decode(text, at)
        yield Row(line, fields)
        at = _past_blanks(text, end)
        if text[at : at + 1] == ",":
            at = _past_blanks(text, at + 1)
        elif text[at : at + 1] != "]":
            raise ValueError("expected , or ] after a record")


def _past_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in _DECODER_BLANKS:
        at += 1
    return at


def _table(text: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows below the header; empty lines are none."""
    with _long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = next(reader, [])
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ValueError(f"the column {repeated[0][:40]!r} is there twice")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(names):
                problem = f"{len(cells)} cells below {len(names)} columns"
                yield Row(line, None, problem)
            elif cells:
                yield Row(line, dict(zip(names, cells, strict=True)))
            line = reader.line_num + 1


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _without_repeats(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Build the object; of a field given twice, the JSON reader would silently drop the first."""
    every = list(pairs)
    fields = dict(every)
    if len(fields) < len(every):
        counts = Counter(name for name, _ in every)
        name = next(name for name, _ in every if counts[name] > 1)
        raise ValueError(f"the field {name[:40]!r} is given twice")
    return fields
