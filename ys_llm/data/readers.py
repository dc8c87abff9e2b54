"""Documents read from text files and tables: strictly for training, leniently for curation.

A record file holds `PROMPT<start>RESPONSE<end>`, many times. Under `data.format: auto` a `.txt` or
`.md` is one where its first `<start>` comes before its first `<end>`; any other is one plain
document. A line of `.jsonl` holds `{"text": ...}` or `{"prompt": ..., "response": ...}`, and a
`.parquet` table has these columns.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ys_llm.config.schema import DataFormat
from ys_llm.data.containers import (
    TABLE,
    DamagedFileError,
    column_names,
    is_compressed,
    read_rows,
    shown,
    text_suffix,
)
from ys_llm.data.records import END, START, Document, Record
from ys_llm.data.remote import RemoteFile, name_of, opened, remove_copies
from ys_llm.data.spool import InMemory, Spool
from ys_llm.data.text_files import (
    SUFFIXES,
    find_files,
    passed_over_line,
    read_blocks,
    split_at,
)
from ys_llm.errors import UserError, command_line

ADVICE = command_line("train", data="PATH")  # where a path of text is wrong
SPOOL_BYTES = 4_000_000  # a corpus from this size on is not kept in memory
_COMPRESSED_GROWTH = 8  # how much longer the text of a compressed file may be than the file
LONGEST_PIECE = 16_000_000  # characters between two ends of a file to curate; more is no record

OnBadShard = Literal["stop", "skip"]

_TAG = re.compile(f"{START}|{END}")
_BLANK_LINES = re.compile(r"\A(?:[ \t]*\r?\n)+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELDS = {"text", "prompt", "response"}
_SHAPES = (["text"], ["prompt", "response"])
_SHOWN_FIELDS = 5  # of an object with unknown ones, inside a message


@dataclass(frozen=True)
class Corpus:
    """The documents of a path, and how many files of other kinds are among them.

    Those of a large corpus are a table of `spool`. `skipped` says of each damaged file that was
    left out what is wrong with it.
    """

    documents: Sequence[Document]
    passed_over: Counter[str]
    spool: Spool | None = None
    skipped: tuple[str, ...] = ()


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


def read_documents(
    path: Path,
    *,
    data_format: DataFormat = "auto",
    command: str = ADVICE,
    scratch: Path | None = None,
) -> Sequence[Document]:
    """Return the documents of `read_corpus`."""
    return read_corpus(path, data_format=data_format, command=command, scratch=scratch).documents


def read_corpus(
    path: Path | str,
    *,
    data_format: DataFormat = "auto",
    command: str = ADVICE,
    scratch: Path | None = None,
    on_bad_shard: OnBadShard = "stop",
) -> Corpus:
    """Read a file, or a folder and all folders below it; a path may be an address (`remote.py`).

    The documents are sorted by content, so that names of files do not matter; empty texts are left
    out. Under the format `text` every `.txt` and `.md` is one plain document, tags and all; under
    `records` each must hold records. Raises UserError, with file and line, for anything that
    cannot be read in full, or leaves out a damaged file where that is chosen; `command` is what it
    advises to type where the path itself is wrong.

    Texts of SPOOL_BYTES or more go to a temporary file in the folder `scratch`, if one is given:
    memory then holds no more than a few times the longest record, whatever the number of documents.
    """
    files = find_files(path, command=command)
    size = _size(files.every)
    sink = Spool(scratch, size) if scratch and size >= SPOOL_BYTES else InMemory()
    skipped = []
    if scratch and files.remote:
        remove_copies(scratch)
    for file in files.every:
        name = name_of(file)
        try:
            with opened(file, scratch) as local:
                _read_file(local, name, data_format, sink)
        except DamagedFileError as error:
            if on_bad_shard == "stop":
                raise
            sink.drop(name)
            skipped.append(error.problem)
    documents = sink.documents()
    if not documents:
        raise _no_text(path, files.passed_over, command)
    spool = sink if isinstance(sink, Spool) else None
    return Corpus(documents, files.passed_over, spool, tuple(skipped))


def read_items(path: Path) -> Iterator[Item]:
    """Yield every record of a record file in order; broken ones as items with a problem.

    Reads in bounded memory: of a piece longer than LONGEST_PIECE only the first part is given.
    Bytes that are not UTF-8 become U+FFFD.
    """
    if _is_table(path):
        return (_row_item(*numbered) for numbered in _table_rows(path))
    blocks = read_blocks(path, errors="replace")
    if _is_jsonl(path):
        return (_json_item(*numbered) for numbered in _json_lines(blocks, longest=LONGEST_PIECE))
    return _record_items(blocks, longest=LONGEST_PIECE)


def is_record_file(path: Path) -> bool:
    """Return whether a file holds records; if not, it is one plain text."""
    if _is_jsonl(path) or _is_table(path):
        return True
    return _begins_with_record(read_blocks(path, errors="replace"))


def _size(files: Iterable[Path | RemoteFile]) -> int:
    """Add up the sizes of files; a problem with one is reported when it is read."""
    total = 0
    for file in files:
        growth = _COMPRESSED_GROWTH if is_compressed(Path(name_of(file))) else 1
        with suppress(OSError):
            total += growth * (file.stat().st_size if isinstance(file, Path) else file.size or 0)
    return total


def _no_text(path: Path | str, passed_over: Counter[str], command: str) -> UserError:
    found = f"; it holds {passed_over_line(passed_over)}" if passed_over else ""
    return UserError(
        f"{shown(path)} holds no text: no {', '.join(SUFFIXES)} file that is not empty{found}",
        f"{'Convert those to text' if passed_over else 'Add some'}, or type: {command}",
    )


def _is_jsonl(path: Path) -> bool:
    return text_suffix(path) == ".jsonl"


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == TABLE


def _read_file(path: Path, name: str, data_format: DataFormat, sink: Spool | InMemory) -> None:
    if _is_table(path):
        documents = _documents_of_fields(_table_rows(path), name)
    elif _is_jsonl(path):
        documents = _documents_of_jsonl(read_blocks(path), name)
    elif data_format == "records" or (
        data_format == "auto" and _begins_with_record(read_blocks(path))
    ):
        documents = _documents_of_records(_record_items(read_blocks(path)), name, data_format)
    else:
        sink.add_text(read_blocks(path), name)
        return
    for document in documents:
        sink.add(document)


def _is_blank(text: str) -> bool:
    return not text or text.isspace()  # strip() would copy the text


def _begins_with_record(blocks: Iterable[str]) -> bool:
    """Read on to the first tag and return whether it is `<start>`."""
    tail = ""
    for block in blocks:
        if found := _TAG.search(tail + block):
            return found[0] == START
        tail = (tail + block)[1 - len(START) :]  # a tag may span two blocks
    return False


def _documents_of_records(
    items: Iterator[Item], name: str, data_format: DataFormat
) -> Iterator[Document]:
    for item in items:
        if item.record is None:
            raise _malformed(f"{name}:{item.line}", item.problem, data_format)
        yield Document(item.record.response, item.record.prompt, f"{name}:{item.line}")


def _malformed(where: str, problem: str, data_format: DataFormat) -> UserError:
    if data_format == "records":
        fix = "Correct the record, or leave out --set data.format=records"
    else:
        fix = (
            "Correct the record. Where the .txt and .md files are plain text that mentions the "
            "tags, add --set data.format=text"
        )
    return UserError(f"{where}: {problem}; expected PROMPT{START}RESPONSE{END}", fix)


def _documents_of_jsonl(blocks: Iterable[str], name: str) -> Iterator[Document]:
    for number, line in _json_lines(blocks):
        try:
            fields = _json_fields(line)
        except ValueError as error:
            raise UserError(
                f"{name}:{number}: {error}",
                'Each line is {"text": "..."} or {"prompt": "...", "response": "..."}. For '
                f"conversations, type: {command_line('sft', 'BASE', name)}",
            ) from error
        yield from _document_of_fields(fields, f"{name}:{number}")


def _documents_of_fields(
    rows: Iterable[tuple[int, Mapping[str, Any]]], name: str
) -> Iterator[Document]:
    """Yield the documents of a table; rows that lack a value, and empty texts, are left out."""
    for number, row in rows:
        if None in row.values():
            continue
        try:
            fields = _text_fields(row)
        except ValueError as error:
            raise UserError(
                f"{name}:{number}: {error}",
                "A table has the column text, or the columns prompt and response.",
            ) from error
        yield from _document_of_fields(fields, f"{name}:{number}")


def _document_of_fields(fields: Mapping[str, str], source: str) -> Iterator[Document]:
    text = fields["text"] if "text" in fields else fields["response"]
    if not _is_blank(text):
        yield Document(text, fields.get("prompt"), source)


def _table_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the numbered rows of a table with the columns of a document; UserError without any."""
    names = column_names(path)
    known = [name for name in names if name in _FIELDS]
    if sorted(known) not in _SHAPES:
        raise UserError(
            f"{shown(path)} has the columns {_names(names)}",
            "A table has the column text, or the columns prompt and response.",
        )
    return read_rows(path, known)


def _record_items(blocks: Iterable[str], *, longest: int | None = None) -> Iterator[Item]:
    line = 1
    for number, (piece, ended) in enumerate(split_at(END, blocks, longest), start=1):
        if ended or piece.strip():
            yield _record_item(number, piece, ended, line)
        line += piece.count("\n")


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


def _json_lines(blocks: Iterable[str], *, longest: int | None = None) -> Iterator[tuple[int, str]]:
    # Not splitlines: JSON strings may hold U+2028 and other line ends of Unicode as they are.
    for number, (line, _) in enumerate(split_at("\n", blocks, longest), start=1):
        if line.strip():
            yield number, line


def _json_item(number: int, line: str) -> Item:
    try:
        fields = _json_fields(line)
    except ValueError as error:
        return Item(number, None, str(error), line, number)
    if "text" in fields:
        return Item(number, None, "", line, number)
    return Item(number, Record(fields["prompt"], fields["response"]), line=number)


def _row_item(number: int, row: Mapping[str, Any]) -> Item:
    try:
        fields = _text_fields(row)
    except ValueError as error:
        return Item(number, None, str(error), repr(dict(row)), number)
    if "text" in fields:
        return Item(number, None, "", fields["text"], number)
    return Item(number, Record(fields["prompt"], fields["response"]), line=number)


def _json_fields(line: str) -> dict[str, str]:
    """Return `text`, or `prompt` and `response`; raise ValueError with the problem otherwise."""
    try:
        fields = json.loads(line, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("brackets nested too deep to read") from error
    except ValueError as error:
        problem = str(error).partition(";")[0]  # the rest is advice on the settings of Python
        raise ValueError(f"not JSON ({problem})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"found {type(fields).__name__}, not an object")
    return _text_fields(fields)


def _text_fields(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return `text`, or `prompt` and `response`; raise ValueError with the problem otherwise."""
    known = sorted(fields.keys() & _FIELDS)
    if known not in _SHAPES:
        raise ValueError(f"found the fields {_names(list(fields))}")
    for name in known:
        if not isinstance(fields[name], str):
            raise ValueError(f"{name!r} is {type(fields[name]).__name__}, not a string")
        if _LONE_SURROGATE.search(fields[name]):
            raise ValueError(f"{name!r} holds half of a character (a lone surrogate)")
    return {name: fields[name] for name in known}


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build the object; of a field given twice, the JSON reader would silently drop the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name = next(name for name, _ in pairs if counts[name] > 1)
        raise ValueError(f"the field {name[:40]!r} is given twice")
    return fields


def _names(fields: Sequence[str]) -> str:
    listed = ", ".join(repr(name[:40]) for name in fields[:_SHOWN_FIELDS])
    more = len(fields) - _SHOWN_FIELDS
    return (listed or "none") + (f" and {more:,} more" if more > 0 else "")
