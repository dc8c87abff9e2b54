"""The log of sessions: every turn, searchable, in a SQLite file of the user's own.

A turn is what was typed and what the model wrote. `parent` is the turn whose text it went on with;
without one it began a text. Going on from a turn reads that text again (`replayed`), with the same
bits where model and machine are the same. Nothing here knows a state: a log stays small.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ys_llm.errors import UserError, command_line
from ys_llm.system.files import make_folder

LOG_NAME = "sessions.sqlite"
_BUSY_SECONDS = 5.0  # waited for another session that is writing
_TABLES = """
create table if not exists sessions (
    id integer primary key, began text not null, run text not null, path text not null,
    tokenizer text not null
);
create table if not exists turns (
    id integer primary key, session integer not null references sessions,
    parent integer references turns, at text not null, kind text not null, typed text not null,
    answer text not null, ids text not null, n_tokens integer not null, muted text not null,
    sampling text not null, system text not null default ''
);
"""
# A log of an earlier version has no such column; where it is there, this is an error.
_FURTHER = "alter table turns add column system text not null default ''"
_SEARCHED = "create virtual table if not exists words using fts5(typed, answer)"
_COLUMNS = (
    "turns.id, run, path, tokenizer, at, kind, typed, answer, ids, n_tokens, muted, sampling,"
    " parent, system"
)
_FROM = "from turns join sessions on sessions.id = turns.session"


@dataclass(frozen=True)
class LoggedTurn:
    """One turn; `ids` are the tokens that were written, `n_tokens` those of the whole text.

    `system` is the system text that was read before it, of a turn that began a conversation.
    """

    id: int
    run: str
    path: str
    tokenizer: str
    at: str
    kind: str
    typed: str
    answer: str
    ids: tuple[int, ...]
    n_tokens: int
    muted: tuple[str, ...]
    sampling: dict[str, Any]
    parent: int | None
    system: str


@dataclass(frozen=True)
class NewTurn:
    """A turn to be logged."""

    parent: int | None
    kind: str
    typed: str
    answer: str
    ids: Sequence[int]
    n_tokens: int
    muted: Sequence[str]
    sampling: dict[str, Any]
    system: str = ""


class SessionLog:
    """The log in a folder; UserError where its file is no log."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_NAME
        with _readable_errors(self.path):
            make_folder(folder)
            # For its owner alone; SQLite gives its other files the same mode.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS)
            self._connection.executescript(_TABLES)
        with suppress(sqlite3.OperationalError), self._connection:
            self._connection.execute(_FURTHER)
        self.has_index = False
        with suppress(sqlite3.OperationalError), self._connection:  # SQLite without FTS5
            self._connection.execute(_SEARCHED)
            self.has_index = True

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def new_session(self, *, run: str, path: str, tokenizer: str) -> int:
        """The number of a session that begins now; it is seen once it has a turn."""
        values = (_now(), run, path, tokenizer)
        columns = "insert into sessions (began, run, path, tokenizer) values (?, ?, ?, ?)"
        return self._insert(columns, values)

    def add(self, session: int, turn: NewTurn) -> int:
        """Log a turn; its number."""
        encoded = (json.dumps(list(turn.ids)), turn.n_tokens, json.dumps(list(turn.muted)))
        values = (session, turn.parent, _now(), turn.kind, turn.typed, turn.answer, *encoded)
        columns = "session, parent, at, kind, typed, answer, ids, n_tokens, muted, sampling, system"
        marks = ", ".join("?" * len(columns.split(",")))
        number = self._insert(
            f"insert into turns ({columns}) values ({marks})",
            (*values, json.dumps(turn.sampling), turn.system),
        )
        if self.has_index:
            columns = "insert into words (rowid, typed, answer) values (?, ?, ?)"
            self._insert(columns, (number, turn.typed, turn.answer))
        return number

    def latest(self, most: int) -> list[LoggedTurn]:
        """The latest turns, the newest first."""
        return self._turns("order by turns.id desc limit ?", (most,))

    def search(self, words: Sequence[str], most: int) -> list[LoggedTurn]:
        """The turns in which all of these words are, the newest first."""
        if self.has_index:
            # Quoted, so that no word is an operator of the query language.
            query = " ".join('"' + word.replace('"', '""') + '"*' for word in words)
            where = "turns.id in (select rowid from words where words match ?)"
            values: tuple[Any, ...] = (query,)
        else:
            escaped = [word.replace("\\", "\\\\").replace("%", "\\%") for word in words]
            values = tuple(f"%{word.replace('_', chr(92) + '_')}%" for word in escaped)
            where = " and ".join(r"typed || ' ' || answer like ? escape '\'" for _ in words)
        return self._turns(f"where {where} order by turns.id desc limit ?", (*values, most))

    def turn(self, number: int) -> LoggedTurn:
        """One turn; UserError where there is no such number."""
        if not (found := self._turns("where turns.id = ?", (number,))):
            raise UserError(f"the log has no turn {number}", f"Type: {command_line('log')}")
        return found[0]

    def text_of(self, number: int) -> list[LoggedTurn]:
        """The turns of the text that this turn ends, in their order."""
        turns = [self.turn(number)]
        while (parent := turns[0].parent) is not None and parent < turns[0].id:
            turns.insert(0, self.turn(parent))
        return turns

    def _insert(self, statement: str, values: Sequence[Any]) -> int:
        with _readable_errors(self.path), self._connection:
            return int(self._connection.execute(statement, values).lastrowid or 0)

    def _turns(self, rest: str, values: Sequence[Any]) -> list[LoggedTurn]:
        with _readable_errors(self.path):
            rows = self._connection.execute(f"select {_COLUMNS} {_FROM} {rest}", values)
            return [_turn(row) for row in rows]


def _turn(row: Sequence[Any]) -> LoggedTurn:
    """A row of the log; ValueError where it was not written by `SessionLog.add`."""
    ids, muted, sampling = (json.loads(row[column]) for column in (8, 10, 11))
    if not isinstance(sampling, dict) or not all(type(id) is int for id in ids):
        raise ValueError(f"turn {row[0]} is not what was written")
    decoded = tuple(ids), row[9], tuple(map(str, muted)), sampling, row[12], str(row[13])
    return LoggedTurn(*[*row[:8], *decoded])


def _now() -> str:
    return datetime.now(UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError) as error:
        problem = f"{path} cannot be used as the log of sessions: {error}"
        raise UserError(problem, "Move it away, or type: export YS_LOG=0") from error
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror or error}"
        raise UserError(problem, "Set YS_STATE_DIR to a writable folder, or YS_LOG=0.") from error
