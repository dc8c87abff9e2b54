"""The files of a corpus: which ones are read, and their text, a megabyte at a time.

Only `.txt`, `.md` and files of records are read, compressed or not, and `.parquet`; source code and
web pages where they are asked for. In folders,
`README.md`, `manifest*`, names that begin with a dot and the folders of runs are skipped; all other
files are counted by their ending, so that a header can list what was skipped.
"""

import codecs
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ys_llm.config.schema import Included
from ys_llm.data.containers import (
    COMPRESSIONS,
    TABLE,
    DamagedFileError,
    read_bytes,
    shown,
    stored_bytes,
    text_suffix,
)
from ys_llm.data.encodings import SIGNATURE_BYTES, encoding_advice, file_format
from ys_llm.data.remote import RemoteFile, is_remote, list_files
from ys_llm.errors import UserError
from ys_llm.system.lock import is_run

RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (".txt", ".md", *RECORD_SUFFIXES)
INCLUDED: Mapping[Included, tuple[str, ...]] = {  # read only where it is asked for
    "html": (".html", ".htm", ".xhtml"),
    "code": (
        *(".asm", ".bash", ".c", ".cc", ".clj", ".cpp", ".cs", ".css", ".cu", ".cuh", ".cxx"),
        *(".dart", ".el", ".erl", ".ex", ".f90", ".fs", ".go", ".h", ".hpp", ".hs", ".java"),
        *(".jl", ".js", ".jsx", ".kt", ".lean", ".lisp", ".lua", ".m", ".ml", ".mjs", ".nim"),
        *(".php", ".pl", ".proto", ".ps1", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".scm"),
        *(".scss", ".sh", ".sql", ".swift", ".tcl", ".tex", ".ts", ".tsx", ".v", ".vhdl", ".zig"),
    ),
}

_SAMPLE_BYTES = 1 << 16  # from the first bad byte on, to tell the encoding by
_COMPRESSED = (*COMPRESSIONS, ".bz2", ".xz")
_MAKE_READABLE = "Make it readable, or move it out of the folder."


@dataclass(frozen=True)
class CorpusFiles:
    """The files to read, in a fixed order, and how many others there are of each ending."""

    paths: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    remote: list[RemoteFile] = field(default_factory=list)

    @property
    def every(self) -> list[Path | RemoteFile]:
        """Return the files on this disk and on other machines."""
        return [*self.paths, *self.remote]


def find_files(root: Path | str, *, command: str, include: Sequence[Included] = ()) -> CorpusFiles:
    """List the text files of a folder and all folders below it; a file is a list of itself.

    Source code and web pages are text where they are included.

    Links are followed, and each file is listed once. Raises UserError where `root` does not exist
    or is a file of another kind; `command` is what it then advises to type.
    """
    if is_remote(root):
        return _find_remote(str(root), command, include)
    root, name = Path(root), shown(root)
    if not os.path.exists(root):
        found = "is a link to nothing" if root.is_symlink() else "does not exist"
        raise UserError(f"{name} {found}; expected a file or folder of text", f"Type: {command}")
    if root.is_dir():
        return _walk(root, include)
    if not is_text(root, include):
        raise _wrong_suffix(root, command)
    return CorpusFiles([root])


def _find_remote(url: str, command: str, include: Sequence[Included]) -> CorpusFiles:
    files, root = CorpusFiles(), PurePosixPath(url)
    for file in list_files(url, command=command):
        below, name = PurePosixPath(file.url).parts[len(root.parts) :], Path(file.url).name
        if any(part.startswith(".") for part in below) or (below and _is_about_the_corpus(name)):
            continue
        if is_text(Path(name), include):
            files.remote.append(file)
        else:
            files.passed_over[_ending(Path(name))] += 1
    return files


def is_text(path: Path, include: Sequence[Included] = ()) -> bool:
    """Return whether a file of this name is read."""
    is_read = text_suffix(path) in SUFFIXES or path.suffix.lower() == TABLE
    return is_read or included_as(path) in include


def included_as(path: Path) -> Included | None:
    """Return what a file of this name is that is read only where it is asked for."""
    suffix = text_suffix(path)
    return next((kind for kind, suffixes in INCLUDED.items() if suffix in suffixes), None)


def read_blocks(path: Path, *, errors: str = "strict") -> Iterator[str]:
    """Yield the text of a UTF-8 file in order, without its byte-order mark; line ends stay.

    A compressed file is read as what it holds.

    With `errors="replace"` bad bytes become U+FFFD. Otherwise raises UserError at the first byte
    that is not text, before the rest is read; see `read_bytes` for other errors.
    """
    blocks = read_bytes(path)
    if errors == "replace":
        yield from codecs.iterdecode(blocks, "utf-8-sig", errors)
        return
    decoder = _StrictDecoder(path)
    for block in blocks:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def split_at(
    separator: str, blocks: Iterable[str], longest: int | None = None
) -> Iterator[tuple[str, bool]]:
    """Yield the text between separators, and whether a separator ended it.

    Of a piece longer than `longest` a first part is yielded, as one that was not ended.
    """
    parts: list[str] = []  # of the piece that has not ended yet
    carry, size, cut = "", 0, False
    for block in blocks:
        *ended, rest = (carry + block).split(separator)
        for piece in ended:
            yield "".join(parts if cut else (*parts, piece)), not cut
            parts, size, cut = [], 0, False
        border = max(0, len(rest) - len(separator) + 1)  # a separator may span two blocks
        size += border
        if longest is None or size <= longest:
            parts.append(rest[:border])
        else:
            cut = True
        carry = rest[border:]
    if parts or carry:
        yield "".join((*parts, carry)), False


class _StrictDecoder:
    """Decodes UTF-8 block by block and remembers what an error message needs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._head = b""
        self._n_bytes = 0  # in the blocks before this one
        self._n_lines = 0

    def decode(self, block: bytes, *, final: bool = False) -> str:
        """Decode the next block; UserError at a byte that is not text."""
        self._head = self._head or block[:SIGNATURE_BYTES]
        try:
            text = self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            pending = len(error.object) - len(block)
            raise self._refusal(error.object, error.start, pending, "is not UTF-8") from error
        if "\0" in text:
            raise self._refusal(block, block.index(b"\0"), 0, "is not a character of a text")
        if self._n_bytes == 0:
            text = text.removeprefix("\ufeff")
        self._n_bytes += len(block)
        self._n_lines += block.count(b"\n")
        return text

    def _refusal(self, data: bytes, start: int, pending: int, problem: str) -> UserError:
        """Say what is wrong at `data[start]`; `pending` bytes of data were in an earlier block."""
        name = shown(self._path)
        if known := file_format(self._head):
            what, advice = known
            return DamagedFileError(f"{name} is {what}; expected text in UTF-8", advice)
        line = self._n_lines + data.count(b"\n", 0, start) + 1
        offset = self._n_bytes - pending + start
        line_start = data.rfind(b"\n", 0, start) + 1
        advice = encoding_advice(
            self._head,
            data[line_start : start + _SAMPLE_BYTES],
            name=shlex.quote(name),
        )
        return DamagedFileError(
            f"{name}:{line}: byte 0x{data[start]:02x} at offset {offset} {problem}", advice
        )


def _wrong_suffix(path: Path, command: str) -> UserError:
    expected = ", ".join(SUFFIXES)
    head = next(stored_bytes(path), b"")[:SIGNATURE_BYTES]
    if known := file_format(head):
        what, advice = known
        return UserError(f"{shown(path)} is {what}; expected one of {expected}", advice)
    if kind := included_as(path):
        what = "source code" if kind == "code" else "a web page"
        return UserError(
            f"{shown(path)} is {what}; expected one of {expected}",
            f"To read it all the same, add --set data.include=[{kind}]",
        )
    return UserError(
        f"{shown(path)} is none of {expected}", f"Rename it if it is text, then type: {command}"
    )


def _walk(root: Path, include: Sequence[Included]) -> CorpusFiles:
    """List in a fixed order; the target of links is listed once, so that a loop of links ends."""
    files = CorpusFiles()
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        if real in seen or is_run(Path(folder)):  # with --data . the runs are among the texts
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not _is_about_the_corpus(name)):
            path = Path(folder, name)
            if not is_text(path, include):
                files.passed_over[_ending(path)] += 1
            elif (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                files.paths.append(path)
    return files


def _is_about_the_corpus(name: str) -> bool:
    name = name.lower()
    return name == "readme.md" or name.startswith((".", "manifest"))


def _ending(path: Path) -> str:
    """Return the file-name extension: `.pdf`, `.jsonl.gz`."""
    suffixes = path.suffixes[-2:] if path.suffix.lower() in _COMPRESSED else path.suffixes[-1:]
    ending = shown("".join(suffixes).lower())
    return ending if 1 < len(ending) <= 20 else "without an ending"


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"{shown(error.filename)} cannot be read: {error.strerror}", _MAKE_READABLE
    ) from error
