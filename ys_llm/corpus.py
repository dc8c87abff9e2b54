"""Documents: reading `.txt`, `.md` and `.jsonl`, the record format, the split by content.

A record file holds `PROMPT<start>RESPONSE<end>`, many times; what is in it is told by its content:
the first `<start>` comes before the first `<end>`. Any other `.txt` or `.md` is one plain document,
in which `<end>` is text. A line of `.jsonl` holds `{"text": ...}` or
`{"prompt": ..., "response": ...}`.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ys_llm.errors import UserError

SUFFIXES = (".txt", ".md", ".jsonl")
LONG_DOCUMENT_CHARS = 200_000  # a novel: longer plain documents give their end to validation
START, END = "<start>", "<end>"

_TAG = re.compile(f"{START}|{END}")
_BLANK_LINES = re.compile(r"\A(?:[ \t]*\r?\n)+")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_MAKE_READABLE = "Make it readable, or take it away."


@dataclass(frozen=True)
class Document:
    """One text; `prompt` is None where it is plain, else `text` is the response to it."""

    text: str
    prompt: str | None = None
    source: str = ""

    @cached_property
    def key(self) -> str:
        """Hash of prompt and text, never of the source."""
        digest = hashlib.blake2b(digest_size=16)
        if self.prompt is not None:
            prompt = self.prompt.encode()
            digest.update(b"prompt %d " % len(prompt) + prompt)
        digest.update(b"text " + self.text.encode())
        return digest.hexdigest()

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of prompt and text as UTF-8."""
        return len((self.prompt or "").encode()) + len(self.text.encode())


@dataclass(frozen=True)
class Split:
    """The two sides, and one line that says what was found when they were compared."""

    training: list[Document]
    validation: list[Document]
    leak_check: str


def read_documents(path: Path) -> list[Document]:
    """Read a file, or a folder with all below it; sorted by content, so that names do not matter.

    In folders `README.md`, `manifest*` and names that begin with a dot are skipped; so are empty
    texts. Raises UserError, with file and line, on anything that cannot be read as it should be.
    """
    if not os.path.exists(path):
        raise UserError(
            f"{path} does not exist; expected a file or folder of text",
            "Type: ys train --data PATH",
        )
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path} is none of {', '.join(SUFFIXES)}",
            "Rename it if it is text, then type: ys train --data PATH",
        )
    documents = [document for file in _files(path) for document in _read_file(file)]
    if not documents:
        raise UserError(
            f"{path} holds no text: no {', '.join(SUFFIXES)} file that is not empty",
            "Put some there, or type: ys train --data PATH",
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
        raise UserError(
            f"all {len(validation)} documents fell to validation, none to training",
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
    if root.is_file():
        yield root
        return
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        if real in seen:
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
    return str(path).encode("utf-8", "backslashreplace").decode()  # a name may be no UTF-8


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
    if not path.is_file():
        raise UserError(f"{_shown(path)} is a link to nothing, or no file", "Take it away.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{_shown(path)} cannot be read: {error.strerror}", _MAKE_READABLE
        ) from error
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "LATIN1"
        raise UserError(
            f"{_shown(path)}:{line}: byte 0x{data[error.start]:02x} at offset {error.start} "
            "is not UTF-8",
            f"If the file is {encoding}, type: iconv -f {encoding} -t UTF-8 OLD > NEW",
        ) from error


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
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad_json(source, f"not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _bad_json(source, f"found {type(fields).__name__}, not an object")
    known = sorted(fields.keys() & {"text", "prompt", "response"})
    if known not in (["text"], ["prompt", "response"]):
        raise _bad_json(source, f"found the fields {', '.join(map(repr, fields)) or 'none'}")
    for field in known:
        if not isinstance(fields[field], str):
            raise _bad_json(source, f"{field!r} is {type(fields[field]).__name__}, not a string")
        if _HALF_CHARACTER.search(fields[field]):
            raise _bad_json(source, f"{field!r} holds half of a character (a lone surrogate)")
    if known == ["text"]:
        return Document(fields["text"], source=source)
    return Document(fields["response"], fields["prompt"], source)


def _bad_json(source: str, problem: str) -> UserError:
    return UserError(
        f"{source}: {problem}",
        'Each line is {"text": "..."} or {"prompt": "...", "response": "..."}.',
    )
