"""The real client of OpenAI, and what harnesses read, against `ys serve`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from math import log
from pathlib import Path

import httpx
import openai
import pytest
from support.served import Served

from ys_llm.config.schema import GenerateConfig
from ys_llm.evaluation.bits_per_byte import evaluate_paths
from ys_llm.inference.engine import Engine

GREEDY = GenerateConfig(temperature=0, max_tokens=12)
PROMPT = "Who sat on the mat in story 7?"


@pytest.fixture
def asking(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_client_gets_completions(asking: openai.OpenAI, engine: Engine) -> None:
    expected = engine.answer("The cat", GREEDY, raw=True)
    how = {"model": "small", "prompt": "The cat", "temperature": 0, "max_tokens": 12}
    answer = asking.completions.create(**how)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == expected.answer_tokens
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    usage = {"include_usage": True}
    parts = list(asking.completions.create(**how, stream=True, stream_options=usage))
    assert "".join(part.choices[0].text for part in parts if part.choices) == expected.text
    assert parts[-1].usage.completion_tokens == expected.answer_tokens


def test_the_client_gets_chat(asking: openai.OpenAI, engine: Engine) -> None:
    expected = engine.answer(PROMPT, GREEDY)
    how = {
        "model": "small",
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_completion_tokens": 12,
    }
    answer = asking.chat.completions.create(**how, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content) == expected.answer_tokens
    parts = [part.choices[0].delta for part in asking.chat.completions.create(**how, stream=True)]
    assert parts[0].role == "assistant"
    assert "".join(part.content or "" for part in parts) == expected.text


def test_a_prompt_that_begins_as_one_before_is_not_read_again(asking: openai.OpenAI) -> None:
    story = "Once there was a fox who counted the stars of every night. " * 12
    cached, counts = [], []
    for end in ("It slept.", "It slept.", "It sang."):
        messages = [{"role": "user", "content": story + end}]
        answer = asking.chat.completions.create(model="small", messages=messages, max_tokens=1)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        counts.append(answer.usage.prompt_tokens)
    assert cached[0] < 256 <= cached[2] < counts[2]
    assert cached[1] == counts[1]


def test_a_prompts_logprobs_are_exact(asking: openai.OpenAI, engine: Engine) -> None:
    texts = ["The cat sat on the mat.", "École – 日本"]
    answer = asking.completions.create(
        model="small", prompt=texts, echo=True, logprobs=2, max_tokens=0
    )
    for text, choice in zip(texts, answer.choices, strict=True):
        expected = engine.answer(text, replace(GREEDY, max_tokens=0), raw=True, logprobs=2)
        assert expected.prompt_logprobs is not None
        known = expected.prompt_logprobs[1:]
        assert choice.text == text
        assert choice.logprobs.token_logprobs == [one.logprob for one in known]
        assert choice.logprobs.tokens == [one.text for one in known]
        for top, one in zip(choice.logprobs.top_logprobs, known, strict=True):
            assert one.top[0].text in top and one.text in top
        offsets = choice.logprobs.text_offset
        assert offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] < len(text)


def test_a_harness_adds_up_what_ys_eval_prints(
    asking: openai.OpenAI, engine: Engine, tmp_path: Path
) -> None:
    text = "The cat sat on the mat – École – and slept."  # of one row of an evaluation
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    loaded = engine.loaded
    (expected,) = evaluate_paths(loaded, [tmp_path / "text.txt"])
    document = loaded.tokenizer.encode(text)
    answer = asking.completions.create(
        model="small", prompt=[0, *document, 0], echo=True, logprobs=1, max_tokens=0
    )
    logprobs = answer.choices[0].logprobs.token_logprobs
    assert logprobs[0] is None
    bits_per_byte = -sum(logprobs[1:]) / log(2) / len(text.encode())
    assert bits_per_byte == pytest.approx(expected.result.bits_per_byte, rel=1e-5)


def test_ids_are_prompts_too(asking: openai.OpenAI, engine: Engine) -> None:
    ids = engine.loaded.tokenizer.encode("The cat")
    how = {"model": "small", "echo": True, "logprobs": 0, "max_tokens": 2, "temperature": 0}
    text, plain, begun = (
        asking.completions.create(prompt=prompt, **how).choices[0]
        for prompt in ("The cat", ids, [0, *ids])
    )
    assert plain.text == text.text == begun.text
    assert plain.logprobs.token_logprobs == text.logprobs.token_logprobs
    assert begun.logprobs.token_logprobs == [None, *text.logprobs.token_logprobs]


def test_choices_have_seeds_of_their_own(asking: openai.OpenAI, engine: Engine) -> None:
    how = {"model": "small", "prompt": ["The", "A"], "n": 2, "seed": 4, "max_tokens": 8}
    answer = asking.completions.create(**how)
    own = replace(engine.loaded.config.generate, max_tokens=8)
    expected = [
        engine.answer(prompt, replace(own, seed=seed), raw=True).text
        for prompt in ("The", "A")
        for seed in (4, 5)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens < 2 * 4
    parts = asking.completions.create(**how, stream=True)
    texts = ["", "", "", ""]
    for part in parts:
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == expected


def test_stop_strings_are_not_in_the_text(asking: openai.OpenAI, engine: Engine) -> None:
    expected = engine.answer("The cat", GREEDY, raw=True).text
    how = {"model": "small", "prompt": "The cat", "temperature": 0, "max_tokens": 12}
    answer = asking.completions.create(**how, stop=expected[3:5])
    assert answer.choices[0].text == expected[: expected.find(expected[3:5])]
    assert answer.choices[0].finish_reason == "stop"


def test_models_are_listed(asking: openai.OpenAI) -> None:
    assert [model.id for model in asking.models.list()] == ["small", "second"]
    assert asking.models.retrieve("small").owned_by == "ys"
    with pytest.raises(openai.NotFoundError, match="not supported"):
        asking.models.retrieve("no/such")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 129}, "n"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_is_not_supported_is_named(
    client: httpx.Client, change: dict[str, object], named: str
) -> None:
    answer = client.post("/v1/completions", json={"model": "small", "prompt": "a", **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in (error["param"] or "") and named in error["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"top_logprobs": 2},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ],
)
def test_what_a_chat_cannot_have_is_refused(
    client: httpx.Client, change: dict[str, object]
) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "a"}], **change}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert next(iter(change)) in answer.json()["error"]["message"]


def test_the_client_knows_the_errors(asking: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'none' not found"):
        asking.completions.create(model="none", prompt="a")
    with pytest.raises(openai.BadRequestError, match="best_of"):
        asking.completions.create(model="small", prompt="a", best_of=2)


def test_a_stream_ends_as_clients_expect(client: httpx.Client) -> None:
    body = {"model": "small", "prompt": "a", "stream": True, "max_tokens": 3}
    answer = client.post("/v1/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    events = answer.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-1])
