"""Documents: reading `.txt`, `.md` and `.jsonl`, the record format, the split by content.

A record file holds `PROMPT<start>RESPONSE<end>`, many times; what is in it is told by its content:
the first `<start>` comes before the first `<end>`. Any other `.txt` or `.md` is one plain document,
in which `<end>` is text. A line of `.jsonl` holds `{"text": ...}` or
`{"prompt": ..., "response": ...}`.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ys_llm.data.records import document_id
from ys_llm.errors import UserError
from ys_llm.system.lock import is_run

SUFFIXES = (".txt", ".md", ".jsonl")
LONG_DOCUMENT_CHARS = 200_000  # a novel: longer plain documents give their end to validation
START, END = "<start>", "<end>"

_TAG = re.compile(f"{START}|{END}")
_BLANK_LINES = re.compile(r"\A(?:[ \t]*\r?\n)+")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_MAKE_READABLE = "Make it readable, or take it away."
_SHOWN_FIELDS = 5  # of an object with others than ours, inside a message
_SPECIAL = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISDIR, "folder"))


@dataclass(frozen=True)
class Document:
    """One text; `prompt` is None where it is plain, else `text` is the response to it."""

    text: str
    prompt: str | None = None
    source: str = ""

    @cached_property
    def key(self) -> str:
        """Hash of prompt and text, never of the source."""
        return document_id(self.text, self.prompt)

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of prompt and text as UTF-8."""
        return _utf8_bytes(self.prompt or "") + _utf8_bytes(self.text)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@dataclass(frozen=True)
class Split:
    """The two sides, and one line that says what was found when they were compared."""

    training: list[Document]
    validation: list[Document]
    leak_check: str


def read_documents(path: Path, *, retype: str = "ys train --data PATH") -> list[Document]:
    """Read a file, or a folder with all below it; sorted by content, so that names do not matter.

    In folders `README.md`, `manifest*` and names that begin with a dot are skipped; so are empty
    texts, and the folders of runs. Raises UserError, with file and line, on anything that cannot be
    read as it should be; `retype` is what it tells to type where the path itself is wrong.
    """
    name = _shown(path)
    if not os.path.exists(path):
        found = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise UserError(f"{name} {found}; expected a file or folder of text", f"Type: {retype}")
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{name} is none of {', '.join(SUFFIXES)}",
            f"Rename it if it is text, then type: {retype}",
        )
    documents = [document for file in _files(path) for document in _read_file(file)]
    if not documents:
        raise UserError(
            f"{name} holds no text: no {', '.join(SUFFIXES)} file that is not empty",
            f"Put some there, or type: {retype}",
        )
    return sorted(documents, key=lambda document: (document.key, document.source))


def split_documents(documents: Iterable[Document], *, validation_fraction: float) -> Split:
    """Send each document to one side by its own content alone, whatever else there is.

    A plain document over LONG_DOCUMENT_CHARS is cut: its last `validation_fraction` of characters
    is validation. Raises UserError where nothing is left to train on.
    """
    training: list[Document] = []
    validation: list[Document] = []
    for document in documents:
        if document.prompt is None and len(document.text) > LONG_DOCUMENT_CHARS:
            cut = int(len(document.text) * (1 - validation_fraction))
            _add(training, document, document.text[:cut])
            _add(validation, document, document.text[cut:])
        else:
            side = validation if _place(document) < validation_fraction else training
            side.append(document)
    if validation and not training:
        whole = (
            "the only document" if len(validation) == 1 else f"all {len(validation):,} documents"
        )
        raise UserError(
            f"{whole} fell to validation, none to training",
            "Add text, or type: ys train --set data.validation_fraction=0",
        )
    return Split(training, validation, _leak_check(training, validation))


def _add(side: list[Document], whole: Document, text: str) -> None:
    if text:
        side.append(Document(text, source=whole.source))


def _place(document: Document) -> float:
    """Return the document's place in [0, 1), as good as random and always the same."""
    return int(document.key[:13], 16) / 16**13  # 52 bits: exact in a float


def _leak_check(training: Sequence[Document], validation: Sequence[Document]) -> str:
    counts = Counter(document.key for document in (*training, *validation))
    shared = {document.key for document in training} & {document.key for document in validation}
    copies = sum(counts.values()) - len(counts)
    leaked = sum(document.key in shared for document in validation)
    return (
        f"{leaked:,} of {len(validation):,} validation documents are also among the "
        f"{len(training):,} for training; {copies:,} exact duplicates"
        + ("" if leaked else ", each on the side of its original" if copies else "")
    )


def _files(root: Path) -> Iterator[Path]:
    """Walk in a fixed order; what links lead to is read once, so that a loop of links ends."""
    if not root.is_dir():
        yield root
        return
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        if real in seen or is_run(Path(folder)):  # with --data . the runs lie among the texts
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(filter(_is_corpus_file, names)):
            file = Path(folder, name)
            real = os.path.realpath(file)
            if real not in seen:
                seen.add(real)
                yield file


def _is_corpus_file(name: str) -> bool:
    name = name.lower()
    skipped = name == "readme.md" or name.startswith((".", "manifest"))
    return not skipped and name.endswith(SUFFIXES)


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"{_shown(error.filename)} cannot be read: {error.strerror}", _MAKE_READABLE
    ) from error


def _shown(path: Path | str) -> str:
    """The name on one line; it may be no UTF-8, and hold line breaks."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _read_file(path: Path) -> Iterator[Document]:
    text, name = _read_text(path), _shown(path)
    if path.suffix.lower() == ".jsonl":
        yield from _json_lines(text, name)
    elif START in text and END not in text[: text.index(START)]:
        yield from _records(text, name)
    elif text.strip():
        yield Document(text, source=name)


def _read_text(path: Path) -> str:
    """Decode UTF-8 without its byte-order mark; line ends stay as they are."""
    data, name = _read_bytes(path), _shown(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(data, name, error.start, "is not UTF-8") from error
    if "\0" in text:
        raise _not_text(data, name, data.index(b"\0"), "is no character of a text")
    return text.removeprefix("\ufeff")


def _not_text(data: bytes, name: str, offset: int, problem: str) -> UserError:
    line = data.count(b"\n", 0, offset) + 1
    encoding = "LATIN1"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "UTF-16"
    elif data[offset] == 0:  # UTF-16 writes every second byte of English as 0
        encoding = "UTF-16LE" if offset % 2 else "UTF-16BE"
    return UserError(
        f"{name}:{line}: byte 0x{data[offset]:02x} at offset {offset} {problem}",
        f"If the file is {encoding}, type: iconv -f {encoding} -t UTF-8 OLD > NEW; "
        "if it is no text, take it away.",
    )


def _read_bytes(path: Path) -> bytes:
    """All of a regular file. What is none is named before it is opened: a pipe would never end."""
    name = _shown(path)
    try:
        _refuse_special(name, path.stat().st_mode)
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            data = file.read()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise _cannot_read(path, error) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(
            f"{name} changed while it was read",
            "Wait until whatever writes it has done, then type the command again.",
        )
    return data


def _refuse_special(name: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((kind for is_kind, kind in _SPECIAL if is_kind(mode)), "device")
    raise UserError(
        f"{name} is a {kind}; expected a file of text",
        "Copy what it holds into a file, or take it away.",
    )


def _cannot_read(path: Path, error: OSError) -> UserError:
    name = _shown(path)
    if path.is_symlink() and not os.path.exists(path):
        return UserError(f"{name} is a link to nothing", "Mend it, or take it away.")
    if isinstance(error, FileNotFoundError):
        return UserError(
            f"{name} was there when the folder was listed and is gone now",
            "Wait until whatever moves it has done, then type the command again.",
        )
    return UserError(f"{name} cannot be read: {error.strerror}", _MAKE_READABLE)


def _records(text: str, name: str) -> Iterator[Document]:
    position, line, counted = 0, 1, 0
    tags = _TAG.finditer(text)
    for start in tags:
        end = next(tags, None)
        if start[0] == END:
            raise _malformed(text, name, start.start(), "<end> has no <start> before it")
        if end is None or end[0] == START:
            raise _malformed(text, name, start.start(), "<start> has no <end> after it")
        response = text[start.end() : end.start()]
        if not response.strip():
            raise _malformed(text, name, start.start(), "nothing between <start> and <end>")
        prompt = _BLANK_LINES.sub("", text[position : start.start()])
        begin = start.start() - len(prompt)
        line += text.count("\n", counted, begin)
        counted, position = begin, end.end()
        yield Document(response, prompt, f"{name}:{line}")
    rest = _BLANK_LINES.sub("", text[position:])
    if rest.strip():
        raise _malformed(text, name, len(text) - len(rest), "text after the last <end>")


def _malformed(text: str, name: str, offset: int, problem: str) -> UserError:
    line = text.count("\n", 0, offset) + 1
    return UserError(
        f"{name}:{line}: {problem}; expected PROMPT<start>RESPONSE<end>",
        'Mend the record; or, if the file is plain text, save it as .jsonl: {"text": "..."}',
    )


def _json_lines(text: str, name: str) -> Iterator[Document]:
    # Not splitlines: JSON strings may hold U+2028 and other line ends of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        document = _json_document(line, f"{name}:{number}")
        if document.text.strip():
            yield document


def _json_document(line: str, source: str) -> Document:
    try:
        fields = json.loads(line, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise _bad_json(source, "brackets within brackets, too deep to read") from error
    except ValueError as error:
        problem = str(error).partition(";")[0]  # behind it is advice on the settings of Python
        raise _bad_json(source, f"not JSON ({problem})") from error
    if not isinstance(fields, dict):
        raise _bad_json(source, f"found {type(fields).__name__}, not an object")
    known = sorted(fields.keys() & {"text", "prompt", "response"})
    if known not in (["text"], ["prompt", "response"]):
        raise _bad_json(source, f"found the fields {_names(list(fields))}")
    for field in known:
        if not isinstance(fields[field], str):
            raise _bad_json(source, f"{field!r} is {type(fields[field]).__name__}, not a string")
        if _HALF_CHARACTER.search(fields[field]):
            raise _bad_json(source, f"{field!r} holds half of a character (a lone surrogate)")
    if known == ["text"]:
        return Document(fields["text"], source=source)
    return Document(fields["response"], fields["prompt"], source)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object; of a field given twice, JSON's reader would silently drop the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name = next(name for name, _ in pairs if counts[name] > 1)
        raise ValueError(f"the field {name[:40]!r} is given twice")
    return fields


def _names(fields: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in fields[:_SHOWN_FIELDS])
    more = len(fields) - _SHOWN_FIELDS
    return (shown or "none") + (f" and {more:,} more" if more > 0 else "")


def _bad_json(source: str, problem: str) -> UserError:
    return UserError(
        f"{source}: {problem}",
        'Each line is {"text": "..."} or {"prompt": "...", "response": "..."}.',
    )
