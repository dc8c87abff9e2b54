"""Conversations and preference pairs, read from files of the forms in which people keep them.

`.jsonl`, `.json`, `.csv`, `.tsv` and `.parquet` hold records of one of the forms of `formats.py`,
each file any of them; `.txt` and `.md` are read as `readers.py` reads them. All but `.parquet` may
be compressed. A folder may mix all. A record that fits no form is refused with its line, or
skipped, counted and listed.
"""

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ys_llm.config.schema import DataFormat
from ys_llm.data.chat import Conversation, PreferencePair, Turn
from ys_llm.data.containers import shown, text_suffix
from ys_llm.data.formats import FORMS, Parsed, RecordForm, parse_record
from ys_llm.data.readers import ADVICE, read_documents
from ys_llm.data.records import Document
from ys_llm.data.tables import RECORD_SUFFIXES, holds_records, record_rows
from ys_llm.data.text_files import find_files, read_blocks
from ys_llm.errors import UserError
from ys_llm.system.lock import is_run

OnBadRecord = Literal["stop", "skip"]
_SHOWN_BAD = 5
_EXPECTED = (
    'Expected {"messages": [{"role": "user", "content": "..."}, ...]}, or another form that '
    "docs/chat.md lists. To leave such records out, add --set data.on_bad_record=skip"
)

Example = Conversation | PreferencePair | Document


@dataclass
class Examples:
    """What was read, how many records of each form, and what was wrong with those left out."""

    found: list[Example] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    def forms_line(self) -> str:
        """Describe what was read: `1,200 messages, 3 text`."""
        ranked = sorted(self.forms, key=lambda name: (-self.forms[name], name))
        return ", ".join(f"{self.forms[name]:,} {name}" for name in ranked)

    def skipped_line(self) -> str:
        """Describe what was left out; "" where nothing was."""
        if not self.skipped:
            return ""
        more = len(self.skipped) - _SHOWN_BAD
        rest = f"; and {more:,} more" if more > 0 else ""
        return f"{len(self.skipped):,} records: {'; '.join(self.skipped[:_SHOWN_BAD])}{rest}"


def read_examples(
    path: Path,
    *,
    data_format: DataFormat = "auto",
    on_bad_record: OnBadRecord = "stop",
    command: str = ADVICE,
    scratch: Path | None = None,
) -> Examples:
    """Read a file, or a folder and all folders below it; examples are sorted by their content.

    Under a format of `formats.py` every record is read as that form. Where there are conversations,
    a record of a prompt and its response is one of two turns; else it is a document. Raises
    UserError with file, line and fields for a record that does not fit, unless it is to be skipped.
    """
    form = next((form for form in FORMS if form == data_format), None)
    text_format: DataFormat = "auto" if form else data_format
    examples = Examples()
    files = [path] if path.is_file() and holds_records(path) else _files(path, command)
    for file in files:
        if holds_records(file):
            _read_records(file, form, on_bad_record, examples)
        elif not _is_blank(file):
            documents = read_documents(
                file, data_format=text_format, command=command, scratch=scratch
            )
            examples.found += documents[:]  # one by one, they have no text in memory
            kinds = ("prompt" if one.has_prompt else "text" for one in documents)
            examples.forms.update(kinds)
    if not examples.found:
        raise UserError(
            f"{shown(path)} holds no conversations and no text",
            f"Add some, or type: {command}",
        )
    _settle(examples)
    return examples


def _files(path: Path, command: str) -> list[Path]:
    """The files that are read: those of a corpus, and the tables beside them."""
    files = find_files(path, command=command).paths
    for folder, folders, names in os.walk(path):
        if is_run(Path(folder)):  # with the data in . the runs are among the texts
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files.extend(Path(folder, name) for name in sorted(names) if _is_table(Path(name)))
    return files


def _is_table(path: Path) -> bool:
    is_about_the_corpus = path.name.lower().startswith((".", "manifest"))
    return text_suffix(path) in RECORD_SUFFIXES[1:] and not is_about_the_corpus


def _is_blank(path: Path) -> bool:
    return all(not block.strip() for block in read_blocks(path))


def _read_records(
    path: Path, form: RecordForm | None, on_bad_record: OnBadRecord, examples: Examples
) -> None:
    for row in record_rows(path):
        source = f"{shown(path)}:{row.line}" if row.line else shown(path)
        if row.is_empty:
            examples.forms["empty"] += 1
            continue
        try:
            if row.problem:
                raise ValueError(row.problem)
            found, parsed = parse_record(row.fields, form)
        except ValueError as error:
            if on_bad_record == "stop":
                raise UserError(f"{source}: {error}", _EXPECTED) from error
            examples.skipped.append(f"{source}: {error}")
            continue
        examples.forms[found] += 1
        examples.found.append(_located(parsed, found, source))


def _located(parsed: Parsed, form: RecordForm, source: str) -> Example:
    if isinstance(parsed, str):
        return Document(parsed, source=source)
    if form == "prompt" and isinstance(parsed, Conversation) and len(parsed.turns) == 2:
        prompt, reply = parsed.turns
        return Document(reply.text, prompt.text, source)
    return replace(parsed, source=source)


def _settle(examples: Examples) -> None:
    """Make prompts conversations where there are some, drop empty texts, and sort by content."""
    if any(isinstance(one, Conversation) for one in examples.found):
        examples.found = [as_conversation(one) for one in examples.found]
    examples.found = [
        one for one in examples.found if not isinstance(one, Document) or one.text.strip()
    ]
    examples.found.sort(key=lambda one: (one.id, one.source))


def as_conversation(example: Example) -> Example:
    """Return a record of a prompt and its response as a conversation of two turns."""
    if not isinstance(example, Document) or not example.has_prompt:
        return example
    turns = (Turn("user", example.prompt or ""), Turn("assistant", example.text))
    return Conversation(turns, example.source)
