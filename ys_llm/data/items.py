"""The records of a file one by one, broken ones among them: as curation and traces read them.

A record file holds `PROMPT<start>RESPONSE<end>`, many times. A line of `.jsonl` holds
`{"text": ...}` or `{"prompt": ..., "response": ...}`, and a `.parquet` table has these columns.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ys_llm.data.containers import TABLE, column_names, read_rows, shown, text_suffix
from ys_llm.data.formats import LONE_SURROGATE, names_of
from ys_llm.data.records import END, START, Record
from ys_llm.data.tables import load_json
from ys_llm.data.text_files import read_blocks, split_at
from ys_llm.errors import UserError

LONGEST_PIECE = 16_000_000  # characters between two ends of a file to curate; more is no record

_TAG = re.compile(f"{START}|{END}")
_BLANK_LINES = re.compile(r"\A(?:[ \t]*\r?\n)+")
_FIELDS = {"text", "prompt", "response"}
_SHAPES = (["text"], ["prompt", "response"])


@dataclass(frozen=True)
class Item:
    """One record of a file, counted from 1; or the text in its place and the problem with it.

    A line `{"text": ...}` is an item with its text, without a record and without a problem. `line`
    is where the record begins, or where the problem is.
    """

    number: int
    record: Record | None
    problem: str = ""
    text: str = ""
    line: int = field(default=0, compare=False)


def read_items(path: Path) -> Iterator[Item]:
    """Yield every record of a record file in order; broken ones as items with a problem.

    Reads in bounded memory: of a piece longer than LONGEST_PIECE only the first part is given.
    Bytes that are not UTF-8 become U+FFFD.
    """
    if _is_parquet(path):
        return (_row_item(*numbered) for numbered in _rows_of_parquet(path))
    blocks = read_blocks(path, errors="replace")
    if _is_jsonl(path):
        return (
            _json_item(number, line)
            for number, (line, _) in enumerate(split_at("\n", blocks, LONGEST_PIECE), start=1)
            if line.strip()
        )
    return record_items(blocks, longest=LONGEST_PIECE)


def is_record_file(path: Path) -> bool:
    """Return whether a file holds records; if not, it is one plain text."""
    if _is_jsonl(path) or _is_parquet(path):
        return True
    return begins_with_record(read_blocks(path, errors="replace"))


def begins_with_record(blocks: Iterable[str]) -> bool:
    """Read on to the first tag and return whether it is `<start>`."""
    tail = ""
    for block in blocks:
        if found := _TAG.search(tail + block):
            return found[0] == START
        tail = (tail + block)[1 - len(START) :]  # a tag may span two blocks
    return False


def record_items(blocks: Iterable[str], *, longest: int | None = None) -> Iterator[Item]:
    """Yield what is between the ends of a text, each as a record or with its problem."""
    line = 1
    for number, (piece, ended) in enumerate(split_at(END, blocks, longest), start=1):
        if ended or piece.strip():
            yield _record_item(number, piece, ended, line)
        line += piece.count("\n")


def _is_jsonl(path: Path) -> bool:
    return text_suffix(path) == ".jsonl"


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == TABLE


def _record_item(number: int, piece: str, ended: bool, line: int) -> Item:
    prompt, *responses = piece.split(START)
    without_blank_lines = _BLANK_LINES.sub("", prompt)
    begin = line + prompt.count("\n") - without_blank_lines.count("\n")
    if ended and len(responses) == 1 and responses[0].strip():
        return Item(number, Record(without_blank_lines, responses[0]), line=begin)
    if responses:
        line += prompt.count("\n")
        alone = ended and len(responses) == 1
        problem = (
            f"nothing between {START} and {END}" if alone else f"{START} has no {END} after it"
        )
    elif ended:
        line += prompt.count("\n")
        problem = f"{END} has no {START} before it"
    else:
        line = begin
        problem = f"text after the last {END}" if number > 1 else f"there is no {START}"
    return Item(number, None, problem, piece, line)


def _rows_of_parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the numbered rows of a table with the columns of a document; UserError without any."""
    names = column_names(path)
    known = [name for name in names if name in _FIELDS]
    if sorted(known) not in _SHAPES:
        raise UserError(
            f"{shown(path)} has the columns {names_of(names)}",
            "A table has the column text, or the columns prompt and response.",
        )
    return read_rows(path, known)


def _json_item(number: int, line: str) -> Item:
    try:
        fields = load_json(line)
        if not isinstance(fields, dict):
            raise ValueError(f"found {type(fields).__name__}, not an object")
        fields = _text_fields(fields)
    except ValueError as error:
        return Item(number, None, str(error), line, number)
    return _item_of(number, fields, line)


def _row_item(number: int, row: Mapping[str, Any]) -> Item:
    try:
        fields = _text_fields(row)
    except ValueError as error:
        return Item(number, None, str(error), repr(dict(row)), number)
    return _item_of(number, fields, fields.get("text", ""))


def _item_of(number: int, fields: Mapping[str, str], text: str) -> Item:
    if "text" in fields:
        return Item(number, None, "", text, number)
    return Item(number, Record(fields["prompt"], fields["response"]), line=number)


def _text_fields(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return `text`, or `prompt` and `response`; raise ValueError with the problem otherwise."""
    known = sorted(fields.keys() & _FIELDS)
    if known not in _SHAPES:
        raise ValueError(f"found the fields {names_of(list(fields))}")
    for name in known:
        if not isinstance(fields[name], str):
            raise ValueError(f"{name!r} is {type(fields[name]).__name__}, not a string")
        if LONE_SURROGATE.search(fields[name]):
            raise ValueError(f"{name!r} holds half of a character (a lone surrogate)")
    return {name: fields[name] for name in known}
