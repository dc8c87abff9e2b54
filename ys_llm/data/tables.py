"""The records of a file as objects: JSON, one a line or in an array, or the rows of a table.

All are read in blocks, and one record at a time is in memory.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ys_llm.data.containers import TABLE, column_names, read_rows, text_suffix
from ys_llm.data.formats import FIELDS, form_of, names_of
from ys_llm.data.text_files import RECORD_SUFFIXES, read_blocks, split_at

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_CELL = 1 << 30  # characters
_DECODER_BLANKS = " \t\r\n"
_NEAR_THE_END = 16  # characters: of a word or an escape that may go on in the next block


def _without_repeats(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Build the object; of a field given twice, the JSON reader would silently drop the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name = next(name for name, _ in pairs if counts[name] > 1)
        raise ValueError(f"the field {name[:40]!r} is given twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


class Row(NamedTuple):
    """A record with the line where it begins; `problem` says why there are no fields.

    `empty` is a row of a table that lacks a value which it needs, and `object` one object that is
    all of a `.json` and has no form: no record, but settings or a report.
    """

    line: int
    fields: Any
    problem: str = ""
    kind: Literal["record", "empty", "object"] = "record"


def holds_records(path: Path) -> bool:
    """Return whether a file of this name holds records; a `.txt` or `.md` may do so, too."""
    return text_suffix(path) in RECORD_SUFFIXES or path.suffix.lower() == TABLE


def record_rows(path: Path) -> Iterator[Row]:
    """Yield the records of a file, compressed or not; of a `.parquet` the line is the row.

    After an unreadable one in an array or table there are none. A null of a `.parquet` is a
    missing field. Raises UserError for a file that is damaged or is not UTF-8.
    """
    if path.suffix.lower() == TABLE:
        return _rows_of_parquet(path)
    return rows_of(read_blocks(path), text_suffix(path))


def rows_of(blocks: Iterable[str], suffix: str) -> Iterator[Row]:
    """Yield the records of a text that is written as the files of this suffix are."""
    if suffix == ".jsonl":
        yield from _lines_of_json(blocks)
        return
    rows = _values(_Buffer(blocks)) if suffix == ".json" else _table(blocks, _DELIMITERS[suffix])
    line = 1
    try:
        for row in rows:
            line = row.line
            yield row
    except _BrokenError as error:
        yield Row(error.line, None, f"from here on not JSON ({error})")
    except (ValueError, csv.Error) as error:
        yield Row(line, None, f"from here on not a table ({error})")


def load_json(text: str) -> Any:
    """Parse JSON; raise ValueError with the problem, also for a field that is given twice."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("brackets nested too deep to read") from error
    except ValueError as error:
        problem = str(error).partition(";")[0]  # the rest is advice on the settings of Python
        raise ValueError(f"not JSON ({problem})") from error


def _rows_of_parquet(path: Path) -> Iterator[Row]:
    names = column_names(path)
    known = [name for name in names if name in FIELDS]
    if form_of(known) is None:
        yield Row(0, None, f"found the columns {names_of(names)}")
        return
    for number, row in read_rows(path, known):
        given = {name: value for name, value in row.items() if value is not None}
        yield Row(number, given, kind="empty" if form_of(given) is None else "record")


def _lines_of_json(blocks: Iterable[str]) -> Iterator[Row]:
    # Not splitlines: JSON strings may hold U+2028 and other line ends of Unicode as they are.
    for number, (line, _) in enumerate(split_at("\n", blocks), start=1):
        if line.strip():
            try:
                yield Row(number, load_json(line))
            except ValueError as error:
                yield Row(number, None, str(error))


class _BrokenError(ValueError):
    """JSON that cannot be read on from this line."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


class _Buffer:
    """The part of a text that is not read yet; the line is that of its first character."""

    def __init__(self, blocks: Iterable[str]) -> None:
        self._blocks = iter(blocks)
        self._text, self._at = "", 0
        self.line = 1

    def skip_blanks(self) -> str:
        """Go to the next character that is no blank, and return it; "" at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in _DECODER_BLANKS:
                end += 1
            self._go_to(end)
            if end < len(self._text):
                return self._text[end]
            if not self._grow():
                return ""

    def skip(self, character: str) -> None:
        """Go past a character, and the blanks after it."""
        assert self._text[self._at] == character
        self._at += 1
        self.skip_blanks()

    def value(self) -> Any:
        """Read a value and go past it. Raises _BrokenError."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise _BrokenError("brackets nested too deep to read", self.line) from error
            except json.JSONDecodeError as error:
                line = self.line + self._text.count("\n", self._at, error.pos)
                if self._may_go_on(error) and self._grow():
                    continue
                raise _BrokenError(error.msg, line) from error
            except ValueError as error:
                raise _BrokenError(str(error).partition(";")[0], self.line) from error
            if end == len(self._text) and self._grow():
                continue  # a number may go on
            self._go_to(end)
            return value

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        is_near = error.pos >= len(self._text) - _NEAR_THE_END
        return is_near or error.msg.startswith("Unterminated string")

    def _go_to(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _grow(self) -> bool:
        """Drop what is read, and append as much again as there is, or False at the end."""
        parts, size = [self._text[self._at :]], 0
        for block in self._blocks:
            parts.append(block)
            size += len(block)
            if size > len(parts[0]):
                break
        self._text, self._at = "".join(parts), 0
        return size > 0


def _values(buffer: _Buffer) -> Iterator[Row]:
    """Yield the elements of an array, or values that follow each other without one."""
    first = buffer.skip_blanks()
    if first == "[":
        yield from _array(buffer)
    elif first:
        line, value = buffer.line, buffer.value()
        is_all = not buffer.skip_blanks() and isinstance(value, dict) and form_of(value) is None
        yield Row(line, value, kind="object" if is_all else "record")
    while buffer.skip_blanks():
        yield Row(buffer.line, buffer.value())


def _array(buffer: _Buffer) -> Iterator[Row]:
    buffer.skip("[")
    while buffer.skip_blanks() != "]":
        line = buffer.line
        yield Row(line, buffer.value())
        if (found := buffer.skip_blanks()) == ",":
            buffer.skip(",")
        elif found != "]":
            raise _BrokenError("expected , or ] after a record", buffer.line)
    buffer.skip("]")


def _table(blocks: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Yield the rows below the header; empty lines are none."""
    with _long_cells():
        reader = csv.reader(_lines(blocks), delimiter=delimiter, strict=True)
        names = next(reader, [])
        if names and form_of(names) is None:
            yield Row(1, None, f"found the columns {names_of(names)}")
            return
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


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yield lines with their ends: LF, CR or both, as in tables; no others of Unicode."""
    rest = ""
    for block in blocks:
        lines = list(io.StringIO(rest + block, newline=""))
        rest = lines.pop() if lines else ""  # an LF may follow its CR
        yield from lines
    yield from io.StringIO(rest, newline="")


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)
