"""The journal: a partial line at its end is cut off, any other damage is reported."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ys_llm.data.records import Record
from ys_llm.errors import UserError
from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest
from ys_llm.gendata.generation.journal import (
    NAME,
    ItemJournal,
    JournalEntry,
    Origin,
    Rejection,
    SentRequest,
    read_journal,
)

ASKED = SentRequest("Tell me of “Zürich”.", "Be short.", {"seed": 7, "temperature": 0.5})
ORIGIN = Origin(
    "d1",
    3,
    "2026-01-02T03:04:05+00:00",
    1.5,
    model="tiny",
    model_digest="m1",
    requests=(ASKED,),
    fixed=("preamble",),
    verified=("words",),
)
TOO_SHORT = Rejection("words", "1 words, expected at least 5")
FIRST = JournalEntry(
    "k0",
    "tale",
    0,
    "accepted",
    Record("A\u2028b\u0085c?", "One.\n\nTwo “three” 🦊\r\n"),
    tries=2,
    provenance=ORIGIN,
    rejections=(TOO_SHORT,),
)
DROPPED = replace(FIRST, key="k1", index=1, status="dropped", record=None, reason="words: 1 words")
ENTRIES = [FIRST, DROPPED, replace(FIRST, key="k2", index=2, rejections=(), tries=1)]


@pytest.fixture(autouse=True, scope="module")
def no_power_is_cut() -> Iterator[None]:
    """Skip fsync, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def write(folder: Path, entries: list[JournalEntry] = ENTRIES) -> bytes:
    """The bytes of a journal with these entries."""
    journal = ItemJournal(folder)
    for entry in entries:
        journal.append(entry)
    journal.close()
    return (folder / NAME).read_bytes()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    data = write(tmp_path)
    assert list(read_journal(tmp_path).values()) == ENTRIES
    assert data.count(b"\n") == len(ENTRIES)


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert read_journal(tmp_path) == {}
    assert not (tmp_path / NAME).exists()


def test_a_journal_cut_at_any_byte_continues_without_loss(tmp_path: Path) -> None:
    data = write(tmp_path / "whole")
    ends = [place for place, byte in enumerate(data) if byte == ord("\n")]
    near = {place + step for place in (0, *ends) for step in (-1, 0, 1, 2)} & {
        *range(len(data) + 1)
    }
    folder = tmp_path / "cut"
    folder.mkdir()
    for cut in {*near, *range(0, len(data), 37)}:
        (folder / NAME).write_bytes(data[:cut])
        whole_lines = data[:cut].count(b"\n")
        assert list(read_journal(folder).values()) == ENTRIES[:whole_lines]
        assert (folder / NAME).read_bytes() == data[:cut], "reading changes nothing"
        assert write(folder, ENTRIES[whole_lines:]) == data


def test_a_half_line_may_be_anything(tmp_path: Path) -> None:
    data = write(tmp_path)
    for half in (b"\0" * 100, b"\xff\xfe", b'{"key"', data.splitlines()[0]):
        (tmp_path / NAME).write_bytes(data + half)
        assert write(tmp_path, []) == data


def test_a_line_is_on_the_disk_before_the_next_one_is_made(tmp_path: Path) -> None:
    journal = ItemJournal(tmp_path)
    journal.append(FIRST)
    assert list(read_journal(tmp_path).values()) == [FIRST]
    journal.close()


def test_answers_are_kept_until_their_item_is_decided(tmp_path: Path) -> None:
    request = ChatRequest("tiny", "Tell me.", options={"seed": 7})
    answer = ChatAnswer("Once \ud83e", "stop", "m1", eval_count=2, seconds=0.5)
    journal = ItemJournal(tmp_path)
    journal.add_answer("k1", request, answer)
    journal.add_answer("k0", replace(request, prompt="And?"), answer)
    journal.close()
    journal = ItemJournal(tmp_path)
    assert journal.answer_to("k1", request) == answer
    assert journal.answer_to("k1", replace(request, prompt="And?")) is None
    assert journal.answer_to("k2", request) is None
    journal.append(DROPPED)
    journal.close()
    assert ItemJournal(tmp_path).answer_to("k1", request) is None


def test_a_dropped_item_may_be_decided_again(tmp_path: Path) -> None:
    again = replace(FIRST, key="k1", index=1)
    write(tmp_path, [DROPPED, again])
    assert read_journal(tmp_path) == {"k1": again}


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = write(tmp_path).replace(b'"requests"', b'"asked"').replace(b'"fixed"', b'"mended"')
    (tmp_path / NAME).write_bytes(old)
    assert list(read_journal(tmp_path).values()) == ENTRIES


def test_half_a_character_of_a_model_is_kept(tmp_path: Path) -> None:
    odd = replace(DROPPED, reason="unusable: \ud83e", record=Record("a", "b\ud83e"))
    write(tmp_path, [odd])
    assert read_journal(tmp_path) == {"k1": odd}


def _without(line: dict[str, Any]) -> None:
    del line["tries"]


def _more(line: dict[str, Any]) -> None:
    line["note"] = "mine"


def _number(line: dict[str, Any]) -> None:
    line["index"] = "2"


def _flag(line: dict[str, Any]) -> None:
    line["tries"] = True


def _status(line: dict[str, Any]) -> None:
    line["status"] = "maybe"


def _recordless(line: dict[str, Any]) -> None:
    line["record"] = None


def _half_record(line: dict[str, Any]) -> None:
    del line["record"]["response"]


def _origin(line: dict[str, Any]) -> None:
    line["provenance"]["seed"] = None


def _asked(line: dict[str, Any]) -> None:
    line["provenance"]["requests"] = ["Hello?"]


def _again(line: dict[str, Any]) -> None:
    line["key"] = "k0"


DAMAGES = [_without, _more, _number, _flag, _status, _recordless, _half_record, _origin, _asked]


@pytest.mark.parametrize("damage", [*DAMAGES, _again], ids=lambda damage: damage.__name__)
def test_a_wrong_line_is_named_with_its_number(damage: Any, tmp_path: Path) -> None:
    lines = write(tmp_path).decode().split("\n")
    wrong = json.loads(lines[2])
    damage(wrong)
    text = "\n".join([*lines[:2], json.dumps(wrong), ""])
    refused(tmp_path, text.encode(), f"{tmp_path / NAME}:3: ")


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 10_000], ids=lambda line: repr(line[:9])
)
def test_damage_in_the_middle_is_never_passed_over(line: bytes, tmp_path: Path) -> None:
    first, *rest = write(tmp_path).split(b"\n")
    refused(tmp_path, b"\n".join([first, line, *rest]), f"{tmp_path / NAME}:2: ")


def refused(folder: Path, data: bytes, where: str) -> None:
    (folder / NAME).write_bytes(data)
    for read in (read_journal, ItemJournal):
        with pytest.raises(UserError) as raised:
            read(folder)
        assert raised.value.problem.startswith(where) and "\n" not in str(raised.value)
        assert raised.value.fix
    assert (folder / NAME).read_bytes() == data, "a damaged journal is left as it is"


def test_an_item_is_decided_once(tmp_path: Path) -> None:
    journal = ItemJournal(tmp_path)
    journal.append(FIRST)
    with pytest.raises(AssertionError):
        journal.append(FIRST)
    journal.close()
