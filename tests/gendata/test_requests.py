"""What a recipe decides of a request: the form of the answer, and how long a server may take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ys_llm.data.records import Record
from ys_llm.errors import UserError
from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest
from ys_llm.gendata.command import _deadlines
from ys_llm.gendata.generation.attempts import attempt
from ys_llm.gendata.generation.journal import ItemJournal
from ys_llm.gendata.recipes.items import item_at
from ys_llm.gendata.recipes.load import load_recipe
from ys_llm.gendata.recipes.recipe import Deadlines, Recipe
from ys_llm.gendata.verifiers.verify import verifier

KIND = """\
description: facts as JSON
slots: {topic: [tea, rain]}
ask:
  - {name: fact, prompts: ["Name a fact about {topic}."]}
  - {prompts: ["Write this as JSON: {fact}"]}
output: {prompts: ["A fact about {topic}, as JSON."]}
rules: []
"""
WITH_KEYS = KIND + "verifiers: {json: {keys: [topic, fact]}}\n"


def recipe(folder: Path, text: str) -> Recipe:
    path = folder / "facts.yaml"
    path.write_text(text, "utf-8")
    return load_recipe(path)


def requests_of(made: Recipe, answer: str) -> tuple[list[ChatRequest], Record | None]:
    sent: list[ChatRequest] = []

    def ask(_key: str, request: ChatRequest) -> ChatAnswer:
        sent.append(request)
        return ChatAnswer(answer, "stop", "d" * 64, 9, 0.1, server="ollama 9.9")

    state = attempt(made, item_at(made, 0, seed=1), 0, ask)
    assert state.server == "ollama 9.9"
    return sent, state.record


def test_json_is_asked_for_where_it_is_verified(tmp_path: Path) -> None:
    sent, record = requests_of(recipe(tmp_path, WITH_KEYS), '{"topic": "tea", "fact": "hot"}')
    schema = {"type": "object", "properties": {"topic": {}, "fact": {}}}
    assert [request.format for request in sent] == ["", {**schema, "required": ["topic", "fact"]}]
    assert record is not None
    sent, _ = requests_of(recipe(tmp_path, KIND), "no JSON")
    assert [request.format for request in sent] == ["", ""]


def test_a_step_may_ask_for_its_own_form(tmp_path: Path) -> None:
    own = WITH_KEYS.replace('about {topic}."]}', 'about {topic}."], format: json}')
    sent, _ = requests_of(recipe(tmp_path, own), "{}")
    assert sent[0].format == "json"
    with pytest.raises(UserError, match=r"ask\.0\.format must be json"):
        recipe(tmp_path, own.replace("format: json", "format: yaml"))


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ('{"a": 1, "b": [2]}', ""),
        ('{"a": 1}', "the keys b are missing"),
        ("[1, 2]", "not an object of JSON"),
        ('{"a": 1, "b": ', "not JSON: "),
    ],
)
def test_an_object_of_json_has_its_keys(response: str, reason: str) -> None:
    found = verifier("json", {"keys": ["a", "b"]})(Record("?", response), {})
    assert found == reason or (reason and found.startswith(reason))


def test_deadlines_change_no_record_and_the_longest_hold_for_a_server(tmp_path: Path) -> None:
    usual = recipe(tmp_path, KIND)
    slow = recipe(tmp_path, KIND + "deadlines: {first: 900, total: 3600}\n")
    assert slow.digest == usual.digest
    assert _deadlines([usual, slow]) == Deadlines(first=900, total=3600)
    assert "900 s for the first token" in str(slow.spec.deadlines)
    with pytest.raises(UserError, match=r"deadlines\.stall"):
        recipe(tmp_path, KIND + "deadlines: {stall: 0}\n")


def test_a_journal_from_before_servers_were_recorded_is_read(tmp_path: Path) -> None:
    request, answer = ChatRequest("m", "Why?"), ChatAnswer("So.", "stop", "d", 2, 0.5)
    journal = ItemJournal(tmp_path)
    journal.add_answer("k", request, answer)
    journal.close()
    path = next(tmp_path.glob("*.jsonl"))
    line: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    before = {name: value for name, value in line.items() if name != "server"}
    path.write_text(json.dumps(before) + "\n", "utf-8")
    assert ItemJournal(tmp_path).answer_to("k", request) == answer
