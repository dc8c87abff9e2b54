"""Locks: of a folder that one process owns (a run, a corpus being generated), or for a while.

The operating system releases a lock when its process ends, however it ends. `filelock` brings the
system call of each platform.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, lock_descriptor

from ys_llm.errors import UserError
from ys_llm.system.files import make_folder, readable_os_errors

RUN_LOCK = ".ys-lock"  # in a run's folder: marks it as one, and is locked while it is trained
_MOST_BYTES = 1000  # of a lock file


@dataclass(frozen=True)
class HeldLock:
    """A lock while it is held, on the open file `descriptor`, which was at `path`."""

    path: Path
    descriptor: int

    def is_at_path(self) -> bool:
        """Whether its file is still there: not moved, deleted or replaced with its folder."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False


@contextmanager
def wait_for_lock(path: Path, *, seconds: float) -> Iterator[None]:
    """Hold the lock on this file, waiting for it as long; OSError where it cannot be created.

    After that time, and on a file system without locks, the context runs without it.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except (TimeoutError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hold_lock(folder: Path, *, file: str = "", activity: str, fix: str) -> Iterator[HeldLock]:
    """Own `folder`, created if missing, until the context ends.

    The lock is on `file` in the folder, which records the owner and the time and is left in place,
    or on the folder itself where `file` is "". Raises UserError "FOLDER is `activity` ..."
    with `fix` where another process owns it. On a file system without locks it warns on stderr and
    continues.
    """
    path = folder / file if file else folder
    with readable_os_errors(path):
        make_folder(folder)
        flags = os.O_RDWR | os.O_CREAT if file else os.O_RDONLY
        descriptor = os.open(path, flags, 0o666)
    try:
        _acquire(folder, descriptor, activity=activity, fix=fix)
        if file:
            with readable_os_errors(path):
                _write_owner(descriptor)
        yield HeldLock(path, descriptor)
    finally:
        os.close(descriptor)


def _acquire(folder: Path, descriptor: int, *, activity: str, fix: str) -> None:
    try:
        acquired = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        reason = error.strerror or error
        with suppress(OSError, ValueError):
            print(
                f"{folder} is on a file system without locks ({reason}): "
                "make sure that no other process writes it",
                file=sys.stderr,
            )
        return
    if not acquired:
        raise UserError(f"{folder} is {activity} by {_owner(descriptor)}", fix)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


def _write_owner(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode() + b"\n", 0)


def is_run(folder: Path) -> bool:
    """Whether `ys` made this folder: by its lock file, or by a config.json of this model type."""
    try:
        return (folder / RUN_LOCK).is_file() or _describes_run(folder / "config.json")
    except OSError:  # a name of a thousand letters, a folder that may not be entered
        return False


def _describes_run(path: Path) -> bool:
    """Whether a config.json is that of a run of ys, and not of some other program."""
    try:
        described: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(described, dict) and described.get("model_type") == "ys"
