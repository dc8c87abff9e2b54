"""The tables of fine-tuning are those of benchmarks/replies.json, and its rows are judged so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import replies
from benchmarks.replies import RESULTS, markdown, obedience
from ys_llm.data.chat import Conversation, Turn
from ys_llm.evaluation.replies import Reply

ROOT = Path(__file__).resolve().parents[2]
FOUND: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_page_shows_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["replies", "--table"])
    replies.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines == markdown(FOUND)
    page = (ROOT / "docs/fine-tuning.md").read_text(encoding="utf-8")
    for table in "\n".join(lines).split("\n\n"):
        assert table in page


def test_a_reply_obeys_where_the_system_text_sets_something() -> None:
    system = Turn("system", "You are called Pip. Write in small letters.")
    turns = [system, Turn("user", "What are you called?"), Turn("assistant", "i am pip.")]
    reply = Reply("I am Pip.", is_exact=False, has_ended=True, is_alone=True)
    found = dict(obedience(Conversation(tuple(turns)), [reply]))
    assert found == {"style": False, "name": True}
    assert not list(obedience(Conversation(tuple(turns[1:])), [reply]))
