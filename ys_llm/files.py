"""Writing files so that neither a reader nor a crash ever meets half of one."""

import os
import secrets
from pathlib import Path

from ys_llm.errors import UserError


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` (text as UTF-8) in one step; its folder is made where missing.

    The bytes go to a temporary name in the same folder, reach the disk, and are renamed; then the
    folder itself is synced, because a rename outlives a power cut only when its folder does.
    Raises UserError where the file cannot be written; the old content is then still there.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_and_rename(path, content)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}",
            "Free some space, or choose a folder that you may write to.",
        ) from error


def _write_and_rename(path: Path, content: bytes) -> None:
    # Opened by name, not with tempfile: mkstemp's files are readable by their owner alone.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make what was renamed in this folder outlive a power cut."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
