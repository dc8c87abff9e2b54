"""The journal of a corpus: one line for each item that has been decided, only ever appended to.

A kill loses at most the line that was being written: its rest has no line end, is cut off before
anything is appended, and its item is done again. Any other damage is an error.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from ys_llm.config.strict_reader import to_plain
from ys_llm.data.records import Record
from ys_llm.errors import UserError
from ys_llm.system.files import (
    Journal,
    make_folder,
    readable_os_errors,
    sync_folder,
    write_atomically,
)

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None  # type: ignore[assignment]

# Training passes over names that begin with `manifest`; `journal.jsonl` may be somebody's diary.
NAME = "manifest-journal.jsonl"
_SYNC_SECONDS = 1.0  # what a power cut may take back; a kill takes nothing


@dataclass(frozen=True)
class Rejection:
    """Why a try made no record: a name to count by, and the reason in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Question:
    """What a model was asked, with all that it was told about sampling."""

    prompt: str
    system: str
    options: Mapping[str, int | float]


@dataclass(frozen=True)
class Provenance:
    """Where a record came from. `time` is UTC; `seconds` are those of all tries together."""

    digest: str  # of the kind file with its topics
    seed: int  # of the plan; those of the questions are among their options
    time: str
    seconds: float
    model: str = ""
    model_digest: str = ""
    asked: tuple[Question, ...] = ()
    mended: tuple[str, ...] = ()  # by these rules of curation
    verified: tuple[str, ...] = ()  # by these verifiers


@dataclass(frozen=True)
class Entry:
    """A decided item. `rejections` are those of its tries; the last one is why it was dropped."""

    key: str
    kind: str
    index: int
    status: Literal["accepted", "dropped"]
    record: Record | None
    tries: int
    provenance: Provenance
    reason: str = ""
    rejections: tuple[Rejection, ...] = ()


class ItemJournal:
    """The journal of a folder, open for appending; `entries` are all decided items by key."""

    def __init__(self, folder: Path) -> None:
        """Read what is there and cut off a half line at its end. Raises UserError for damage."""
        make_folder(folder)
        path = folder / NAME
        self.entries, sound_bytes = _read(path)
        if path.exists() and path.stat().st_size > sound_bytes:
            write_atomically(path, path.read_bytes()[:sound_bytes])
        self._folder = folder
        self._file: Journal | None = None  # there is none until something is to be written
        self._synced = time.monotonic()

    def append(self, entry: Entry) -> None:
        """Note a decision; it outlives a kill at once, and a power cut a second later."""
        assert entry.key not in self.entries, entry.key
        if self._file is None:
            self._file = Journal(self._folder / NAME)
            sync_folder(self._folder)
        self._file.write(_line(entry))
        self.entries[entry.key] = entry
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._file.sync()
            self._synced = time.monotonic()

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            self._file.sync()
            self._file.close()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a corpus folder, made where missing; the system frees it if we are killed.

    Raises UserError where another process owns it.
    """
    with readable_os_errors(folder):
        make_folder(folder)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself: a file for it would stay behind
    try:
        _lock(folder, descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process is filling {folder}",
            "Wait until it is done, stop it with Ctrl-C, or choose another --out.",
        ) from error
    except OSError:  # a file system without locks
        return


def read_journal(folder: Path) -> dict[str, Entry]:
    """All decided items of a folder by key; none where there is no journal."""
    return _read(folder / NAME)[0]


def _read(path: Path) -> tuple[dict[str, Entry], int]:
    """The entries by key, and how many bytes of the file hold them."""
    data = path.read_bytes() if path.exists() else b""
    sound_bytes = data.rfind(b"\n") + 1
    entries: dict[str, Entry] = {}
    for number, line in enumerate(data[:sound_bytes].split(b"\n")[:-1], start=1):
        try:
            entry = _entry(json.loads(line))
            if entry.key in entries:
                raise ValueError(f"item {entry.key} has been decided in a line above")
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{path}:{number}", error) from error
        entries[entry.key] = entry
    return entries, sound_bytes


def _damaged(where: str, error: Exception) -> UserError:
    found = " ".join(str(error).split())[:160]
    return UserError(
        f"{where}: no line of a journal: {found}",
        "Put a good copy of the file back, or take the line out: its item is done again.",
    )


def _line(entry: Entry) -> str:
    plain = to_plain(entry)
    try:
        line = json.dumps(plain, ensure_ascii=False)
        line.encode()
    except UnicodeEncodeError:  # half of a character, out of what a model said
        line = json.dumps(plain)
    return line


_Types = Mapping[str, type | tuple[type, ...]]
_ENTRY: _Types = {
    **{"key": str, "kind": str, "index": int, "status": str, "record": (dict, NoneType)},
    **{"tries": int, "provenance": dict, "reason": str, "rejections": list},
}
_PROVENANCE: _Types = {
    **{"digest": str, "seed": int, "time": str, "seconds": (int, float), "model": str},
    **{"model_digest": str, "asked": list, "mended": list, "verified": list},
}
_QUESTION: _Types = {"prompt": str, "system": str, "options": dict}
_PAIRS: Mapping[type, _Types] = {
    Record: {"prompt": str, "response": str},
    Rejection: {"name": str, "reason": str},
}


def _entry(found: Any) -> Entry:
    """The entry that a line holds. Not the strict reader of settings, which is 50 times slower."""
    fields = _checked(found, _ENTRY, "it")
    origin = _checked(fields["provenance"], _PROVENANCE, "provenance")
    record, status = fields["record"], fields["status"]
    if status not in ("accepted", "dropped") or (status == "accepted" and record is None):
        raise ValueError(f"status is {status!r}, record is {'there' if record else 'missing'}")
    asked = [Question(**_checked(one, _QUESTION, "asked")) for one in origin["asked"]]
    names = {name: tuple(map(str, origin[name])) for name in ("mended", "verified")}
    provenance = Provenance(**{**origin, "asked": tuple(asked), **names})
    rejections = tuple(_pair(Rejection, one, "rejections") for one in fields["rejections"])
    made = None if record is None else _pair(Record, record, "record")
    return Entry(**{**fields, "record": made, "provenance": provenance, "rejections": rejections})


def _pair(cls: type, found: Any, name: str) -> Any:
    return cls(**_checked(found, _PAIRS[cls], name))


def _checked(found: Any, types: _Types, name: str) -> dict[str, Any]:
    if not isinstance(found, dict) or found.keys() != types.keys():
        raise ValueError(f"{name} is not an object with {', '.join(types)}")
    for field_name, kinds in types.items():
        if not isinstance(found[field_name], kinds) or isinstance(found[field_name], bool):
            raise ValueError(f"{field_name} is {type(found[field_name]).__name__}")
    return found
