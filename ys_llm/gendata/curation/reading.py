"""The records of any folder, one after the other, however large its files are.

A reader of its own, and a forgiving one: `ys train` refuses a file that is half broken, and what is
here for is to make of such a file one that can be trained on. What cannot be read becomes an item
with a problem.
"""

import codecs
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ys_llm.errors import UserError
from ys_llm.gendata.record import END, START, Record

SUFFIXES = (".txt", ".md", ".jsonl")
LONGEST_PIECE = 16_000_000  # characters between two ends; more is no record
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Item:
    """One record of a file, counted from 1; or what stands in its place and why it is none."""

    number: int
    record: Record | None
    problem: str = ""
    text: str = ""


def corpus_files(root: Path) -> list[Path]:
    """The files that training would read, sorted by name, numbers in them by value."""
    if not root.exists():
        raise UserError(f"{root} does not exist; expected a file or folder of records", "")
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise UserError(f"{root} is none of {', '.join(SUFFIXES)}", "Rename it if it is text.")
        return [root]
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in names if _is_corpus_file(Path(folder, name))]
    if not found:
        raise UserError(f"{root} holds no {', '.join(SUFFIXES)} file", "Name another folder.")
    return sorted(found, key=_by_number)


def _is_corpus_file(path: Path) -> bool:
    name = path.name.lower()
    skipped = name == "readme.md" or name.startswith((".", "manifest"))
    return not skipped and name.endswith(SUFFIXES) and path.is_file()


def _by_number(path: Path) -> tuple[str, int, str]:
    head = path.stem.rstrip("0123456789")
    digits = path.stem[len(head) :]
    return (str(path.parent / head), int(digits[:18] or 0), path.name)


def kind_of(name: str) -> str:
    """The kind that a file's name begins with: `stories` of `stories-07.md`."""
    stem = Path(name).stem
    head = stem.rstrip("0123456789").rstrip("-_. ")
    return head or stem


def is_record_file(path: Path) -> bool:
    """Whether the file holds records; else it is one plain text, which has no rules."""
    if path.suffix.lower() == ".jsonl":
        return True
    text, _ = next(_pieces(path, END), ("", False))
    return START in text


def read_items(path: Path) -> Iterator[Item]:
    """Every record of a record file, in order; broken ones with their problem."""
    if path.suffix.lower() == ".jsonl":
        yield from _json_items(path)
        return
    for number, (text, ended) in enumerate(_pieces(path, END), start=1):
        if text.strip() or ended:
            yield _record_item(number, text, ended)


def _record_item(number: int, text: str, ended: bool) -> Item:
    prompt, *responses = text.split(START)
    problem = ""
    if not ended:
        problem = "no <end>" if responses else "text after the last <end>"
    elif len(responses) != 1:
        problem = f"{len(responses)} <start> before the <end>"
    if problem or not ended:
        return Item(number, None, problem, text)
    return Item(number, Record(_without_blank_lines(prompt), responses[0]))


def _without_blank_lines(prompt: str) -> str:
    """The prompt without the empty lines between it and the record before."""
    while (line_end := prompt.find("\n")) >= 0 and not prompt[:line_end].strip():
        prompt = prompt[line_end + 1 :]
    return prompt if prompt.strip() else ""


def _json_items(path: Path) -> Iterator[Item]:
    for number, (line, _) in enumerate(_pieces(path, "\n"), start=1):
        if line.strip():
            yield _json_item(number, line)


def _json_item(number: int, line: str) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return Item(number, None, "not JSON", line)
    if isinstance(fields, dict) and fields.keys() == {"text"} and _are_texts(fields):
        return Item(number, None, "", line)
    if not isinstance(fields, dict) or fields.keys() != {"prompt", "response"}:
        return Item(number, None, 'not {"prompt": ..., "response": ...}', line)
    if not _are_texts(fields):
        return Item(number, None, "prompt or response is no text", line)
    return Item(number, Record(fields["prompt"], fields["response"]))


def _are_texts(fields: dict[str, object]) -> bool:
    """All strings, and none with half of a character, which UTF-8 cannot hold."""
    try:
        return all(
            isinstance(value, str) and value.encode() is not None for value in fields.values()
        )
    except UnicodeEncodeError:
        return False


def _pieces(path: Path, end: str) -> Iterator[tuple[str, bool]]:
    """The text between the ends; whether one stood behind it. Bad bytes become U+FFFD.

    Of a piece over LONGEST_PIECE the first block is given, as one without an end.
    """
    rest, too_long = "", False
    for block in _blocks(path):
        *whole, rest = (rest + block).split(end)
        for piece in whole:
            yield piece, not too_long
            too_long = False
        if len(rest) > LONGEST_PIECE:
            rest, too_long = rest[-len(end) :], True
    if rest:
        yield rest, False


def _blocks(path: Path) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
    try:
        with path.open("rb") as file:
            while data := file.read(_BLOCK_BYTES):
                yield decode(data)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "Make it readable.") from error
    yield decode(b"", final=True)
