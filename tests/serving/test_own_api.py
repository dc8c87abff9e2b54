"""What the page asks: tokens with all that can be seen of them, forks, and muted tiers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.engine import Engine
from ys_llm.inference.memories import memories_called
from ys_llm.inference.session import Session

PROMPT = "Who sat on the mat in story 7?"


def lines_of(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    asked = {"model": "small", "temperature": 0, "max_tokens": 20, **body}
    answer = client.post("/ys/generate", json=asked)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(line["text"] for line in lines[1:])


def test_every_token_is_explained(client: httpx.Client, engine: Engine) -> None:
    lines = lines_of(client, prompt=PROMPT, candidates=4, explain=True)
    expected = engine.answer(PROMPT, GenerateConfig(temperature=0, max_tokens=20))
    assert [line["type"] for line in lines] == ["read", *["token"] * (len(lines) - 2), "done"]
    assert text_of(lines) == expected.text
    tokens = lines[1:-1]
    assert [token["id"] for token in tokens] == list(expected.ids)
    for token in tokens:
        assert token["candidates"][0]["id"] == token["id"]  # greedy
        assert token["entropy"] > 0
        assert set(token["memory"]) == {
            f"{layer}.{part}"
            for layer in (1, 2)
            for part in ("main", "local_summary", "global_summary")
        }
    assert all(0 <= token["copied"] <= 1 for token in tokens[1:])


def test_a_text_forks_before_any_token(client: httpx.Client) -> None:
    lines = lines_of(client, prompt=PROMPT, contexts=True, candidates=2)
    tokens = lines[1:-1]
    fork = tokens[5]
    same = lines_of(client, context=fork["context"], ids=[fork["id"]], raw=True)
    assert [one["id"] for one in same[1:15]] == [one["id"] for one in tokens[6:20]]
    other = lines_of(client, context=fork["context"], ids=[fork["candidates"][1]["id"]], raw=True)
    assert text_of(other) != text_of(same)
    again = lines_of(client, context=lines[-1]["context"], max_tokens=5)
    longer = lines_of(client, prompt=PROMPT, max_tokens=25)
    assert text_of(lines) + text_of(again) == text_of(longer)


def test_a_system_text_comes_before_the_first_prompt(client: httpx.Client, engine: Engine) -> None:
    expected = engine.answer(f"Be brief.\n\n{PROMPT}", GenerateConfig(temperature=0, max_tokens=20))
    assert text_of(lines_of(client, prompt=PROMPT, system="Be brief.")) == expected.text


def test_a_muted_tier_changes_the_text(client: httpx.Client) -> None:
    muted = lines_of(client, prompt=PROMPT, muted=["main", "1.local"], explain=True)
    assert text_of(muted) != text_of(lines_of(client, prompt=PROMPT))
    answer = client.post("/ys/generate", json={"model": "small", "muted": ["nothing"]})
    assert answer.status_code == 400
    assert "global_summary" in answer.json()["error"]


@pytest.mark.parametrize("name", ["copy", "1.local"])
def test_a_muted_memory_is_muted_as_in_ys_run(
    client: httpx.Client, engine: Engine, name: str
) -> None:
    session, generate = Session(engine), engine.loaded.config.generate
    session.muted = memories_called(engine.loaded.model, name)
    session.read([PROMPT], is_prompt=True)
    drawn = session.generate(replace(generate, temperature=0, max_tokens=20))
    ids = [token.id for token in drawn]
    lines = lines_of(client, prompt=PROMPT, muted=[name])
    assert [line["id"] for line in lines[1:-1]] == ids


def test_the_models_are_described(client: httpx.Client) -> None:
    (first, second) = client.get("/ys/models").json()["models"]
    assert (first["name"], second["name"]) == ("small", "second")
    assert first["answers"] and first["copies"]
    assert first["memories"] == ["1", "2", "main", "local_summary", "global_summary", "copy"]
    assert first["defaults"]["max_tokens"] == 24


@pytest.mark.parametrize(
    ("body", "named"),
    [({"ids": [10**6]}, "ids"), ({"context": "0" * 32}, "context"), ({"system": "S"}, "system")],
)
def test_wrong_ids_and_contexts_are_refused(
    client: httpx.Client, body: dict[str, Any], named: str
) -> None:
    answer = client.post("/ys/generate", json={"model": "small", **body})
    assert answer.status_code == 400
    assert named in answer.json()["error"]


def test_the_page_may_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<!doctype html>" in page.text
