"""The journal of a corpus: one line per answer of the model, one per decided item, append-only.

An answer is written as soon as it arrives, in whatever order answers come; a decision follows when
all items before it are decided. After a kill, no request has to be repeated. A line
that was being written when the process died has no line end; it is cut off before anything is
appended. Any other damage is an error.
"""

import json
import threading
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
from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest
from ys_llm.system.files import Journal, make_folder, sync_folder, write_atomically
from ys_llm.system.lock import hold_lock

# Training skips names that begin with `manifest`; `journal.jsonl` may be a user's own text.
NAME = "manifest-journal.jsonl"
_SYNC_SECONDS = 1.0  # a power cut loses at most the lines of this time; a kill loses none


@dataclass(frozen=True)
class Rejection:
    """Why a try yielded no record: a name to count by, and the reason in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class SentRequest:
    """A request as it was sent to the model."""

    prompt: str
    system: str
    options: Mapping[str, int | float]


@dataclass(frozen=True)
class Origin:
    """Where a record came from. `time` is UTC; `seconds` is the sum over all tries."""

    digest: str  # of the recipe
    seed: int  # of the plan; the seeds of requests are among their options
    time: str
    seconds: float
    model: str = ""
    model_digest: str = ""
    server: str = ""  # name and version
    requests: tuple[SentRequest, ...] = ()
    fixed: tuple[str, ...] = ()  # by these curation rules
    verified: tuple[str, ...] = ()  # by these verifiers


@dataclass(frozen=True)
class JournalEntry:
    """A decided item. `rejections` are those of its tries; the last one is why it was dropped."""

    key: str
    kind: str
    index: int
    status: Literal["accepted", "dropped"]
    record: Record | None
    tries: int
    provenance: Origin
    reason: str = ""
    rejections: tuple[Rejection, ...] = ()


class ItemJournal:
    """The journal of a corpus folder, open for appending; may be used from several threads.

    Raises UserError, with file and line, for a damaged journal.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        path = folder / NAME
        content = _read(path)
        self.entries, self._answers = content.entries, content.answers
        if path.exists() and path.stat().st_size > content.complete_bytes:
            write_atomically(path, path.read_bytes()[: content.complete_bytes])
        self._folder = folder
        self._file: Journal | None = None  # created when there is something to write
        self._synced = time.monotonic()
        self._lock = threading.Lock()

    def answer_to(self, key: str, request: ChatRequest) -> ChatAnswer | None:
        """The answer to this request that the journal has for an undecided item, if any."""
        return self._answers.get(key, {}).get(request.digest())

    def add_answer(self, key: str, request: ChatRequest, answer: ChatAnswer) -> None:
        """Write an answer for item `key`; from then on it survives a kill."""
        fields = {name: getattr(answer, name) for name in _ANSWER if hasattr(answer, name)}
        with self._lock:
            self._write({"answer_to": key, "request": request.digest(), **fields})
            self._answers.setdefault(key, {})[request.digest()] = answer

    def append(self, entry: JournalEntry) -> None:
        """Write a decision. An item is decided once, unless it was dropped and is tried again."""
        with self._lock:
            decided = self.entries.get(entry.key)
            assert decided is None or decided.status == "dropped", entry.key
            self._write(to_plain(entry))
            self.entries[entry.key] = entry
            self._answers.pop(entry.key, None)

    def _write(self, fields: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = Journal(self._folder / NAME)
            sync_folder(self._folder)
        self._file.write(_line(fields))
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._file.sync()
            self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        if self._file is not None:
            self._file.sync()
            self._file.close()


@contextmanager
def corpus_lock(folder: Path) -> Iterator[None]:
    """Own a corpus folder, created if missing.

    Raises UserError if another process owns it.
    """
    fix = "Wait until it has finished, stop it with Ctrl-C, or choose another --out."
    with hold_lock(folder, activity="being filled", fix=fix):
        yield


def read_journal(folder: Path) -> dict[str, JournalEntry]:
    """All decided items of a folder by key; empty if there is no journal."""
    return _read(folder / NAME).entries


@dataclass(frozen=True)
class _Content:
    entries: dict[str, JournalEntry]
    answers: dict[str, dict[str, ChatAnswer]]  # of undecided items, by key and request
    complete_bytes: int  # of the file, up to its last line end


def _read(path: Path) -> _Content:
    data = path.read_bytes() if path.exists() else b""
    content = _Content({}, {}, data.rfind(b"\n") + 1)
    for number, line in enumerate(data[: content.complete_bytes].split(b"\n")[:-1], start=1):
        try:
            _take(content, json.loads(line))
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{path}:{number}", error) from error
    return content


def _take(content: _Content, found: Any) -> None:
    if isinstance(found, dict) and "answer_to" in found:
        fields = _checked(found, _ANSWER, "answer")
        key, request = fields.pop("answer_to"), fields.pop("request")
        content.answers.setdefault(key, {})[request] = ChatAnswer(**fields)
        return
    entry = _entry(found)
    decided = content.entries.get(entry.key)
    if decided is not None and decided.status == "accepted":
        raise ValueError(f"item {entry.key} has been decided in an earlier line")
    content.entries[entry.key] = entry
    content.answers.pop(entry.key, None)


def _damaged(where: str, error: Exception) -> UserError:
    found = " ".join(str(error).split())[:160]
    return UserError(
        f"{where}: not a line of a journal: {found}",
        "Restore the file from a good copy, or delete the line: its item is generated again.",
    )


def _line(fields: Mapping[str, Any]) -> str:
    try:
        line = json.dumps(fields, ensure_ascii=False)
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair in a model's text
        line = json.dumps(fields)
    return line


_Types = Mapping[str, type | tuple[type, ...]]
_ANSWER: _Types = {
    "answer_to": str,
    "request": str,
    "text": str,
    "done_reason": str,
    "model_digest": str,
    "eval_count": int,
    "prompt_eval_count": int,
    "seconds": (int, float),
    "server": str,
}
_ENTRY: _Types = {
    "key": str,
    "kind": str,
    "index": int,
    "status": str,
    "record": (dict, NoneType),
    "tries": int,
    "provenance": dict,
    "reason": str,
    "rejections": list,
}
_PROVENANCE: _Types = {
    "digest": str,
    "seed": int,
    "time": str,
    "seconds": (int, float),
    "model": str,
    "model_digest": str,
    "server": str,
    "requests": list,
    "fixed": list,
    "verified": list,
}
_SINCE: Mapping[str, str] = {"server": ""}  # fields that journals of earlier versions lack
_OLD_NAMES = {"asked": "requests", "mended": "fixed"}  # journals of earlier versions
_REQUEST: _Types = {"prompt": str, "system": str, "options": dict}
_PAIRS: Mapping[type, _Types] = {
    Record: {"prompt": str, "response": str},
    Rejection: {"name": str, "reason": str},
}


def _entry(found: Any) -> JournalEntry:
    """The entry of a line; the strict reader of settings would look up every type anew."""
    fields = _checked(found, _ENTRY, "it")
    record, status = fields["record"], fields["status"]
    if status not in ("accepted", "dropped") or (status == "accepted" and record is None):
        raise ValueError(f"status is {status!r}, record is {'present' if record else 'missing'}")
    rejections = tuple(_pair(Rejection, one, "rejections") for one in fields["rejections"])
    made = None if record is None else _pair(Record, record, "record")
    replaced = {"record": made, "provenance": _provenance(fields), "rejections": rejections}
    return JournalEntry(**fields | replaced)


def _provenance(fields: Mapping[str, Any]) -> Origin:
    named = {_OLD_NAMES.get(name, name): value for name, value in fields["provenance"].items()}
    origin = _checked(named, _PROVENANCE, "provenance")
    requests = tuple(
        SentRequest(**_checked(one, _REQUEST, "requests")) for one in origin["requests"]
    )
    names = {name: tuple(map(str, origin[name])) for name in ("fixed", "verified")}
    return Origin(**origin | names | {"requests": requests})


def _pair(cls: type, found: Any, name: str) -> Any:
    return cls(**_checked(found, _PAIRS[cls], name))


def _checked(found: Any, types: _Types, name: str) -> dict[str, Any]:
    if isinstance(found, dict):
        found = {key: value for key, value in _SINCE.items() if key in types} | found
    if not isinstance(found, dict) or found.keys() != types.keys():
        raise ValueError(f"{name} is not an object with {', '.join(types)}")
    for field_name, kinds in types.items():
        if not isinstance(found[field_name], kinds) or isinstance(found[field_name], bool):
            raise ValueError(f"{field_name} is {type(found[field_name]).__name__}")
    return found
