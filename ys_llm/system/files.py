"""Atomic, durable writes: no reader and no power cut ever finds half of a file or folder.

Content is written and synced under a temporary name, then renamed; then the parent folder is
synced, because a rename survives a power cut only when its folder has reached the disk.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ys_llm.errors import UserError

_HASH_CHUNK_BYTES = 1 << 20


Content = bytes | str | Iterable[bytes]  # as text, UTF-8; or in blocks


def write_atomically(path: Path, data: Content, *, create_folder: bool = True) -> None:
    """Replace the content of `path` by `data` in one step.

    `create_folder` False refuses where its folder does not exist, as that of a run that was moved.
    Raises UserError where the file cannot be written; the old content is then still there.
    """
    with readable_os_errors(path):
        if create_folder:
            make_folder(path.parent)
        temporary = _temp_path(path)
        try:
            _write_synced(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_synced(path: Path, data: Content) -> None:
    """Write a new file into a folder under a temporary name; see `replace_folder`."""
    with readable_os_errors(path):
        _write_synced(path, data)


def _write_synced(path: Path, data: Content) -> None:
    # 0o666 under the umask: files made by `tempfile` are readable by their owner only.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: Content) -> None:
    blocks = [data.encode("utf-8")] if isinstance(data, str) else data
    for block in [blocks] if isinstance(blocks, bytes) else blocks:
        rest = memoryview(block)
        while rest:  # one call writes 2 GiB at most, and less when it is interrupted
            rest = rest[os.write(descriptor, rest) :]


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a folder of synced files to `final`; a folder of that name is removed first."""
    with readable_os_errors(final):
        sync_folder(temporary)
        if os.path.lexists(final):
            remove_folder(final)
        os.replace(temporary, final)
        sync_folder(final.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder and its content; a partial folder never has the final name."""
    hidden = hide_folder(folder)
    with readable_os_errors(folder):
        shutil.rmtree(hidden)


def hide_folder(folder: Path) -> Path:
    """Rename a folder to `.NAME.XXXXXXXX.tmp`, to be removed later; returns that path."""
    with readable_os_errors(folder):
        temporary = _temp_path(folder)
        os.replace(folder, temporary)
        sync_folder(folder.parent)
    return temporary


def move_into(folder: Path, path: Path) -> Path:
    """Move a file or folder into `folder`, under a free name; returns its new path."""
    with readable_os_errors(path):
        make_subfolder(folder)
        target = _free_name(folder / path.name)
        os.replace(path, target)
        sync_folder(folder)
        sync_folder(path.parent)
    return target


def _free_name(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3` ... that does not exist."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each of which survives a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
        sync_folder(folder.parent)


def make_subfolder(folder: Path) -> None:
    """Create a folder in one that exists: in a run that was moved meanwhile, nothing is created."""
    with suppress(FileExistsError):
        os.mkdir(folder)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """An append-only file of lines; each line is passed to the operating system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable_os_errors(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, line: str) -> None:
        """Append one line; `line` holds no line break."""
        with readable_os_errors(self.path):
            _write_all(self._descriptor, line + "\n")

    def sync(self) -> None:
        """Make all lines survive a power cut."""
        with readable_os_errors(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; no more lines can be written."""
        os.close(self._descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_HASH_CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def readable_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError from writing `path` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}",
            "Free some space, or choose a folder that you may write to.",
        ) from error


def _temp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
