"""Text on other machines, through fsspec: `s3://`, `gs://`, `https://`, `memory://` and others.

Its files are fetched one at a time, read, and removed: the disk holds one of them besides what the
text becomes. A file that comes short is fetched again, and is never read.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ys_llm.data.containers import DamagedFileError, shown
from ys_llm.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PREFIX = ".remote-"
_ATTEMPTS, _PAUSE_SECONDS = 3, 0.5
# What file systems say of a version of a file, under the names that theirs have.
_VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched; `version` is what changes with its content, None if unknown."""

    url: str
    size: int | None
    version: str | None
    system: Any = field(compare=False)  # of fsspec, which has no types


def is_remote(path: str | Path) -> bool:
    """Return whether a path of text is an address."""
    return isinstance(path, str) and _URL.match(path) is not None


def name_of(file: Path | RemoteFile) -> str:
    """Return the path or address of a file as one printable line."""
    return shown(file if isinstance(file, Path) else file.url)


def list_files(url: str, *, command: str) -> list[RemoteFile]:
    """List a file, or all files of a folder and below it, by name.

    Raises UserError where there is nothing, the address cannot be reached, or a package is missing;
    `command` is what it then advises to type.
    """
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(
            f"{shown(url)} needs a package that is not installed: {error}",
            "Install it with pip, then type the command again.",
        ) from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: {error}", f"Type: {command}") from error
    try:
        found = system.find(path, detail=True) or {path: system.info(path)}
    except Exception as error:  # each file system has classes of its own
        problem = f"{shown(url)} cannot be listed: {_reason(error)}"
        raise UserError(problem, f"Type: {command}") from error
    return [_described(system, name, found[name]) for name in sorted(found)]


@contextmanager
def opened(file: Path | RemoteFile, folder: Path | None) -> Iterator[Path]:
    """Give a file as it lies on this disk; messages about a copy name its address."""
    if isinstance(file, Path):
        yield file
        return
    with fetched(file, folder) as path:
        try:
            yield path
        except UserError as error:
            error.problem = error.problem.replace(shown(path), shown(file.url))
            error.fix = error.fix.replace(shown(path), shown(file.url))
            raise


@contextmanager
def fetched(file: RemoteFile, folder: Path | None) -> Iterator[Path]:
    """Give a copy of a file in a temporary folder inside `folder`, under its own name.

    Raises DamagedFileError where it does not come whole.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as place:
        path = Path(place, PurePosixPath(file.url).name)
        _fetch(file, path)
        yield path


def remove_copies(folder: Path) -> None:
    """Remove what a program that was killed has left of its copies."""
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def _described(system: Any, name: str, info: Mapping[str, Any]) -> RemoteFile:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), None)
    size = info.get("size")
    return RemoteFile(
        system.unstrip_protocol(name), size if isinstance(size, int) else None, version, system
    )


def _fetch(file: RemoteFile, path: Path) -> None:
    problem = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt * _PAUSE_SECONDS)
        try:
            file.system.get_file(file.url, str(path))
        except FileNotFoundError:
            problem = "it is not there"
            break
        except Exception as error:  # each file system has classes of its own
            problem = _reason(error)
            continue
        size = path.stat().st_size
        if file.size is None or size == file.size:
            return
        problem = f"{size:,} of its {file.size:,} bytes came"
    raise DamagedFileError(
        f"{shown(file.url)} cannot be fetched: {problem}",
        "Try again, or leave it out: --set data.on_bad_shard=skip",
    )


def _reason(error: Exception) -> str:
    return shown(str(error).strip().partition("\n")[0] or type(error).__name__)
