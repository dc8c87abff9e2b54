"""Files as they lie on a disk: plain, compressed (`.gz`, `.zst`) or a table (`.parquet`).

A compressed file is read as the bytes it holds, a table row by row, both in bounded memory. A file
that is cut off or damaged is an error that names it, never a shorter text.
"""

import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ys_llm.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
TABLE = ".parquet"

_BLOCK_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 14  # decompressed at a time: a block of zeros grows several thousandfold
_ROWS_AT_ONCE = 256
_GZIP_FORMAT = 31  # of zlib: the largest window, with the header of gzip
_AGAIN = "Copy or download it again, or leave it out."
_MAKE_READABLE = "Make it readable, or move it out of the folder."
_SPECIAL = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISDIR, "folder"))


class DamagedFileError(UserError):
    """A file that is missing, cut off or corrupt: a corpus may be read without it."""


class _Frame(Protocol):
    """One member of a compressed file: several may follow each other."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def shown(path: Path | str) -> str:
    """Return a path as one printable line, even where it is not UTF-8 or holds line breaks."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def text_suffix(path: Path) -> str:
    """Return the ending of what a file holds: `.jsonl` of `a.JSONL.gz`."""
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return plain.suffix.lower()


def is_compressed(path: Path) -> bool:
    """Return whether a file may hold much more text than it has bytes."""
    return path.suffix.lower() in (*COMPRESSIONS, TABLE)


def read_bytes(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in blocks; of a compressed one, what it holds.

    A pipe or device is refused, not opened. Raises UserError where the file cannot be read, changes
    meanwhile, is cut off or corrupt, or needs a package that is not installed.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return stored_bytes(path)
    new_frame = _gzip_frame if compression == "gzip" else _zstd_frame(path)
    return _decompressed(path, new_frame)


def column_names(path: Path) -> list[str]:
    """Return the columns of a table. Raises UserError as `read_rows` does."""
    with _table_errors(path):
        return list(_table(path).schema_arrow.names)


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, values by column) of each row of a table, as Python values.

    Checksums of pages are compared where the file has them. Raises UserError, with the last whole
    row, where the file is cut off or corrupt, and where pyarrow is not installed.
    """
    number = 0
    with _table_errors(path, lambda: number):
        table = _table(path)
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns)):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _decompressed(path: Path, new_frame: Callable[[], _Frame]) -> Iterator[bytes]:
    """Yield what all frames of the file hold; UserError where one of them does not end."""
    frame: _Frame | None = None
    n_bytes = 0
    for block in stored_bytes(path, _COMPRESSED_BYTES):
        while block:
            if frame is None:
                block = block.lstrip(b"\0")  # zeros may fill up the last block of a tape
                if not block:
                    break
                frame = new_frame()
            try:
                held = frame.decompress(block)
            except Exception as error:  # each library has a class of its own
                raise _damaged(path, f"is corrupt after {n_bytes:,} bytes", error) from error
            n_bytes += len(held)
            if held:
                yield held
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise _damaged(path, f"is cut off: it ends after {n_bytes:,} bytes, inside a frame")


def _gzip_frame() -> _Frame:
    return zlib.decompressobj(_GZIP_FORMAT)


def _zstd_frame(path: Path) -> Callable[[], _Frame]:
    try:
        import zstandard
    except ImportError as error:
        raise needs("zstandard", path) from error
    new_frame: Callable[[], _Frame] = zstandard.ZstdDecompressor().decompressobj
    return new_frame


def _table(path: Path) -> Any:
    """Open a table with pyarrow, which has no types."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise needs("pyarrow", path) from error
    _refuse_special(shown(path), path.stat().st_mode)
    return parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)


@contextmanager
def _table_errors(path: Path, n_rows: Callable[[], int] = lambda: 0) -> Iterator[None]:
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except OSError as error:  # pyarrow raises it for what it cannot decode, too
        if error.errno is not None:
            raise cannot_read(path, error) from error
        raise _damaged(path, f"is corrupt after {n_rows():,} rows", error) from error
    except ValueError as error:  # ArrowInvalid
        raise _damaged(path, "is no whole Parquet table", error) from error


def needs(package: str, path: Path) -> UserError:
    """Return what to say where a file needs a package that is not installed."""
    return UserError(
        f"{shown(path)} needs {package}, which is not installed",
        'Type: pip install "ys_llm[data]"',
    )


def _damaged(path: Path, problem: str, error: Exception | None = None) -> DamagedFileError:
    detail = f" ({str(error).splitlines()[0]})" if error and str(error) else ""
    return DamagedFileError(f"{shown(path)} {problem}{detail}", _AGAIN)


def stored_bytes(path: Path, size: int = 0) -> Iterator[bytes]:
    """Yield a regular file in blocks; a pipe would never end, so anything else is refused."""
    name = shown(path)
    try:
        _refuse_special(name, path.stat().st_mode)
        with path.open("rb") as file:
            before, n_bytes = os.fstat(file.fileno()), 0
            while block := file.read(size or _BLOCK_BYTES):
                yield block
                n_bytes += len(block)
                # A program may write faster than this reads. Some virtual files have no size.
                if n_bytes > before.st_size > 0:
                    break
            after = os.fstat(file.fileno())
    except OSError as error:
        raise cannot_read(path, error) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(
            f"{name} changed while it was read",
            "Wait until the program that writes it is done, then type the command again.",
        )


def _refuse_special(name: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((kind for is_kind, kind in _SPECIAL if is_kind(mode)), "device")
    raise UserError(
        f"{name} is a {kind}; expected a file of text",
        "Copy its content into a file, or move it out of the folder.",
    )


def cannot_read(path: Path | str, error: OSError) -> UserError:
    """Return what to say where a file of a corpus cannot be read."""
    name = shown(path)
    if os.path.islink(path) and not os.path.exists(path):
        return DamagedFileError(f"{name} is a link to nothing", "Correct or remove the link.")
    if isinstance(error, FileNotFoundError):
        return DamagedFileError(
            f"{name} was removed after the folder was listed",
            "Wait until the program that moves it is done, then type the command again.",
        )
    return DamagedFileError(f"{name} cannot be read: {error.strerror}", _MAKE_READABLE)
