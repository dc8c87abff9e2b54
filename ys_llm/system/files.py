"""Writing files and folders so that neither a reader nor a power cut ever meets half of one.

What is written reaches the disk under another name, and is renamed; then the folder that holds the
name is synced too, because a rename outlives a power cut only when its folder does.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ys_llm.errors import UserError

_HASHED_AT_ONCE = 1 << 20


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` (text as UTF-8) in one step; its folder is made where missing.

    Raises UserError where the file cannot be written; the old content is then still there.
    """
    with readable_os_errors(path):
        make_folder(path.parent)
        temporary = _hidden(path)
        try:
            _write_synced(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_synced(path: Path, data: bytes | str) -> None:
    """A new file in a folder that has not got its name yet; see `replace_folder`."""
    with readable_os_errors(path):
        _write_synced(path, data)


def _write_synced(path: Path, data: bytes | str) -> None:
    # 0o666 under the umask: the files of `tempfile` would be readable by their owner alone.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | str) -> None:
    rest = memoryview(data.encode("utf-8") if isinstance(data, str) else data)
    while rest:  # the kernel takes 2 GiB at most, and less where it is interrupted
        rest = rest[os.write(descriptor, rest) :]


def replace_folder(aside: Path, final: Path) -> None:
    """Give a folder full of synced files its name; what had the name before goes."""
    with readable_os_errors(final):
        sync_folder(aside)
        if os.path.lexists(final):
            remove_folder(final)
        os.replace(aside, final)
        sync_folder(final.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all it holds; half of one is never seen under its own name."""
    with readable_os_errors(folder):
        hidden = _hidden(folder)
        os.replace(folder, hidden)
        sync_folder(folder.parent)
        shutil.rmtree(hidden)


def move_into(folder: Path, path: Path) -> Path:
    """Move a file or folder into `folder`, under a free name; returns where it is now."""
    with readable_os_errors(path):
        make_folder(folder)
        names = (f"{path.name}{ending}" for ending in _endings())
        there = next(folder / name for name in names if not os.path.lexists(folder / name))
        os.replace(path, there)
        sync_folder(folder)
        sync_folder(path.parent)
    return there


def _endings() -> Iterator[str]:
    yield ""
    number = 2
    while True:
        yield f"-{number}"
        number += 1


def make_folder(folder: Path) -> None:
    """The folder with all above it, so that a power cut takes none of them away again."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in this folder outlive a power cut."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """A file that only grows, line by line; each line reaches the system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable_os_errors(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, line: str) -> None:
        """Append one line; `line` holds no line break."""
        with readable_os_errors(self.path):
            _write_all(self._descriptor, line + "\n")

    def sync(self) -> None:
        """Make all lines outlive a power cut."""
        with readable_os_errors(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """No more lines."""
        os.close(self._descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_HASHED_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def readable_os_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into one line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}",
            "Free some space, or choose a folder that you may write to.",
        ) from error


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
