"""A corpus read from files of text and of records: the documents to train on, or a refusal.

`.txt` and `.md` are plain documents or record files, which hold `PROMPT<start>RESPONSE<end>` many
times. Under `data.format: auto` a file is one of those where its first `<start>` comes before its
first `<end>`. `.jsonl`, `.json`, `.csv`, `.tsv` and `.parquet` hold records of the forms of
`formats.py`. Source code and web pages are plain documents, where they are asked for. All but
`.parquet` may be compressed, and a folder may mix them.

Training takes texts, and prompts with their responses; `conversations.py` takes all forms.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ys_llm.config.schema import DataConfig, DataFormat
from ys_llm.data.chat import Conversation
from ys_llm.data.containers import DamagedFileError, is_compressed, shown, text_suffix
from ys_llm.data.formats import FORMS, Parsed, RecordForm, parse_record
from ys_llm.data.html_text import text_of_page
from ys_llm.data.items import begins_with_record, record_items
from ys_llm.data.records import END, START, Document, Record
from ys_llm.data.remote import RemoteFile, name_of, opened, remove_copies
from ys_llm.data.spool import InMemory, Spool
from ys_llm.data.tables import Row, holds_records, record_rows
from ys_llm.data.tally import Tally, passed_over_line
from ys_llm.data.text_files import SUFFIXES, CorpusFiles, find_files, included_as, read_blocks
from ys_llm.errors import UserError, command_line

ADVICE = command_line("train", data="PATH")  # where a path of text is wrong
SPOOL_BYTES = 4_000_000  # a corpus from this size on is not kept in memory
_COMPRESSED_GROWTH = 8  # how much longer the text of a compressed file may be than the file
_LEAVE_OUT = "To leave such records out, add --set data.on_bad_record=skip"


@dataclass(frozen=True)
class Corpus:
    """The documents of a path; those of a large one are a table of `spool`."""

    documents: Sequence[Document]
    tally: Tally
    spool: Spool | None = None


@dataclass(frozen=True)
class Reading:
    """How files are read, and what takes up what is in them.

    `add_record` takes a record with its source, and raises ValueError for one of a form that it
    has no use for; `advice` says what to type after a bad record of a file.
    """

    config: DataConfig
    texts: Spool | InMemory
    add_record: Callable[[RecordForm, Parsed, str], None]
    advice: Callable[[str], str]
    drop: Callable[[str], None]


def read_documents(
    path: Path,
    *,
    data_format: DataFormat = "auto",
    command: str = ADVICE,
    scratch: Path | None = None,
) -> Sequence[Document]:
    """Return the documents of `read_corpus`."""
    config = DataConfig(format=data_format)
    return read_corpus(path, config, command=command, scratch=scratch).documents


def read_corpus(
    path: Path | str,
    config: DataConfig | None = None,
    *,
    command: str = ADVICE,
    scratch: Path | None = None,
) -> Corpus:
    """Read a file, or a folder and all folders below it; a path may be an address (`remote.py`).

    The documents are sorted by content, so that names of files do not matter; empty texts are left
    out. Of the configuration, `format`, `include`, `on_bad_record` and `on_bad_shard` count. Raises
    UserError, with file and line, for anything that cannot be read in full, or leaves out a bad
    record or a damaged file where that is chosen; `command` is what it advises to type where the
    path itself is wrong.

    Texts of SPOOL_BYTES or more go to a temporary file in the folder `scratch`, if one is given:
    memory then holds no more than a few times the longest record, whatever the number of documents.
    """
    config = config or DataConfig()
    files = find_files(path, command=command, include=config.include)
    texts = place_for(files, scratch)

    def add_record(form: RecordForm, parsed: Parsed, source: str) -> None:
        texts.add(_document_to_train(form, parsed, source))

    reading = Reading(config, texts, add_record, _advice, texts.drop)
    tally = read_files(files, reading, scratch)
    documents = texts.documents()
    if not documents:
        raise no_text(path, tally, command)
    return Corpus(documents, tally, texts if isinstance(texts, Spool) else None)


def place_for(files: CorpusFiles, scratch: Path | None) -> Spool | InMemory:
    """Return what takes up the documents of files, by their size."""
    size = _size(files.every)
    return Spool(scratch, size) if scratch and size >= SPOOL_BYTES else InMemory()


def read_files(files: CorpusFiles, reading: Reading, scratch: Path | None) -> Tally:
    """Read all files; UserError for what is wrong with one, unless that is to be left out."""
    tally = Tally(passed_over=files.passed_over.copy())
    if scratch and files.remote:
        remove_copies(scratch)
    for file in files.every:
        name = name_of(file)
        try:
            with opened(file, scratch) as local:
                tally.add(_read_file(local, name, reading, is_alone=len(files.every) == 1))
        except DamagedFileError as error:
            if reading.config.on_bad_shard == "stop":
                raise
            reading.drop(name)
            tally.skipped.add(error.problem)
    return tally


def is_blank(text: str) -> bool:
    """Return whether a text is white space alone, without a copy of it."""
    return not text or text.isspace()


def no_text(path: Path | str, tally: Tally, command: str) -> UserError:
    """Return what to say where a path holds nothing to train on."""
    passed_over, left_out = tally.passed_over, tally.bad_records.count + tally.skipped.count
    found = f"; it holds {passed_over_line(passed_over)}" if passed_over else ""
    found += f"; {left_out:,} bad records or files were left out" if left_out else ""
    fix = "Convert those to text, or type" if passed_over else "Add some, or type"
    return UserError(
        f"{shown(path)} holds no text: no {', '.join(SUFFIXES)} file that is not empty{found}",
        f"{fix}: {command}",
    )


def _size(files: Iterable[Path | RemoteFile]) -> int:
    """Add up the sizes of files; a problem with one is reported when it is read."""
    total = 0
    for file in files:
        growth = _COMPRESSED_GROWTH if is_compressed(Path(name_of(file))) else 1
        with suppress(OSError):
            total += growth * (file.stat().st_size if isinstance(file, Path) else file.size or 0)
    return total


def _read_file(path: Path, name: str, reading: Reading, *, is_alone: bool) -> Tally:
    tally, data_format = Tally(), reading.config.format
    if holds_records(path):
        for row in record_rows(path):
            if row.kind == "object" and not is_alone:  # settings, or a report
                tally.passed_over[text_suffix(path)] += 1
            elif row.kind == "empty":
                tally.forms["empty"] += 1
            else:
                _take(row, name, reading, tally)
    elif kind := included_as(path):
        blocks = read_blocks(path)
        if kind == "html":
            blocks = iter([text_of_page("".join(blocks), path)])
        tally.forms[kind if reading.texts.add_text(blocks, name) else "empty"] += 1
    elif data_format == "records" or (
        data_format != "text" and begins_with_record(read_blocks(path))
    ):
        for item in record_items(read_blocks(path)):
            where = f"{name}:{item.line}"
            if item.record is None:
                _leave_out(_malformed(where, item.problem, data_format), reading, tally)
                continue
            reading.add_record("prompt", item.record, where)
            tally.forms["prompt"] += 1
    elif reading.texts.add_text(read_blocks(path), name):
        tally.forms["text"] += 1
    return tally


def _take(row: Row, name: str, reading: Reading, tally: Tally) -> None:
    source = f"{name}:{row.line}" if row.line else name
    try:
        if row.problem:
            raise ValueError(row.problem)
        form, parsed = parse_record(row.fields, _forced(reading.config.format, row.fields))
        if isinstance(parsed, str) and is_blank(parsed):
            tally.forms["empty"] += 1
            return
        reading.add_record(form, parsed, source)
        tally.forms[form] += 1
    except ValueError as error:
        fix = f"{reading.advice(name)}. {_LEAVE_OUT}"
        _leave_out(UserError(f"{source}: {error}", fix), reading, tally)


def _forced(data_format: DataFormat, fields: Any) -> RecordForm | None:
    """Return the form in which a record is to be read; of a record without a text, not as one."""
    if data_format == "text" and not (isinstance(fields, dict) and "text" in fields):
        return None
    return next((form for form in FORMS if form == data_format), None)


def _leave_out(error: UserError, reading: Reading, tally: Tally) -> None:
    if reading.config.on_bad_record == "stop":
        raise error
    tally.bad_records.add(error.problem)


def _malformed(where: str, problem: str, data_format: DataFormat) -> UserError:
    if data_format == "records":
        fix = "Correct the record, or leave out --set data.format=records"
    else:
        fix = (
            "Correct the record. Where the .txt and .md files are plain text that mentions the "
            "tags, add --set data.format=text"
        )
    return UserError(f"{where}: {problem}; expected PROMPT{START}RESPONSE{END}", fix)


def document_of(parsed: Parsed, source: str) -> Document | None:
    """Return a text, or a prompt with its response, as a document; None for what has turns."""
    if isinstance(parsed, str):
        return Document(parsed, source=source)
    if isinstance(parsed, Record):
        return Document(parsed.response, parsed.prompt, source)
    return None


def _document_to_train(form: RecordForm, parsed: Parsed, source: str) -> Document:
    """Return a record as a document. Raises ValueError for conversations and pairs."""
    if form == "alpaca" and isinstance(parsed, Conversation) and len(parsed.turns) == 2:
        prompt, reply = parsed.turns
        return Document(reply.text, prompt.text, source)
    document = document_of(parsed, source)
    if document is None:
        what = "a conversation" if isinstance(parsed, Conversation) else "a pair of replies"
        raise ValueError(f"found {what} ({form}), which pretraining does not read")
    return document


def _advice(name: str) -> str:
    return (
        'Expected {"text": "..."} or {"prompt": "...", "response": "..."}. For conversations, '
        f"type: {command_line('sft', 'BASE', name)}"
    )
