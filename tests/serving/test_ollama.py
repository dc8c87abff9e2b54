"""The real client of ollama, and what its protocol says, against `ys serve`."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import ollama
import pytest
from support.served import Served

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.engine import Engine
from ys_llm.serving.server import listen

GREEDY = {"temperature": 0, "num_predict": 12}
CONFIG = GenerateConfig(temperature=0, max_tokens=12)
PROMPT = "Who sat on the mat in story 7?"


@pytest.fixture
def asking(server: Served) -> Iterator[ollama.Client]:
    with ollama.Client(server.url, timeout=60) as client:
        yield client


def test_the_client_gets_what_ys_run_answers(asking: ollama.Client, engine: Engine) -> None:
    expected = engine.answer(PROMPT, CONFIG)
    answer = asking.generate("small", PROMPT, options=GREEDY)
    assert answer.response == expected.text
    assert answer.done_reason == expected.finish_reason
    assert answer.prompt_eval_count == expected.prompt_tokens
    assert answer.eval_count == expected.answer_tokens
    assert answer.total_duration >= answer.eval_duration > 0
    parts = list(asking.generate("small:latest", PROMPT, options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == expected.text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_raw_continues_and_system_comes_first(asking: ollama.Client, engine: Engine) -> None:
    raw = asking.generate("small", "The cat", raw=True, options=GREEDY)
    assert raw.response == engine.answer("The cat", CONFIG, raw=True).text
    system = asking.generate("small", PROMPT, system="Be kind.", options=GREEDY)
    assert system.response == engine.answer(f"Be kind.\n\n{PROMPT}", CONFIG).text


def test_a_context_goes_on_where_the_answer_ended(asking: ollama.Client) -> None:
    first = asking.generate("small", PROMPT, options=GREEDY)
    again = [
        asking.generate("small", "And then?", context=first.context, options=GREEDY)
        for _ in range(2)
    ]
    assert again[0].response == again[1].response
    messages = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": first.response},
        {"role": "user", "content": "And then?"},
    ]
    whole = asking.chat("small", messages, options=GREEDY)
    assert whole.message.content == again[0].response
    assert again[0].prompt_eval_count < whole.prompt_eval_count - first.prompt_eval_count


def test_chat_streams(asking: ollama.Client, engine: Engine) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    parts = list(asking.chat("small", messages, options=GREEDY, stream=True))
    expected = engine.answer(PROMPT, CONFIG).text
    assert "".join(part.message.content or "" for part in parts) == expected
    assert {part.message.role for part in parts} == {"assistant"}


def test_options_are_those_of_the_run_until_they_are_given(
    asking: ollama.Client, engine: Engine
) -> None:
    options = {"seed": 3, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.1}
    own = replace(engine.loaded.config.generate, max_tokens=24)
    named = {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}
    expected = engine.answer(PROMPT, replace(own, seed=3, **named))
    neutral = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repeat_last_n": 64}
    found = asking.generate("small", PROMPT, options={**options, **neutral, "num_ctx": 64})
    assert found.response == expected.text
    stopped = asking.generate("small", PROMPT, options={**GREEDY, "stop": [" "]})
    assert stopped.response == engine.answer(PROMPT, CONFIG).text.partition(" ")[0]


def test_logprobs_are_the_models_own(asking: ollama.Client, engine: Engine) -> None:
    expected = engine.answer(PROMPT, CONFIG, logprobs=2).answer_logprobs
    found = asking.generate("small", PROMPT, options=GREEDY, logprobs=True, top_logprobs=2)
    assert expected is not None
    logprobs = [one.logprob for one in expected]  # their prompt was read in another way
    assert [one.logprob for one in found.logprobs] == pytest.approx(logprobs, abs=1e-5)
    assert [one.top_logprobs[1].token for one in found.logprobs] == [
        one.top[1].text for one in expected
    ]


def test_sixteen_clients_at_once_get_what_each_gets_alone(server: Served, engine: Engine) -> None:
    prompts = [f"Who sat on the mat in story {i}?" * (1 + i % 5) for i in range(16)]

    def ask(prompt: str) -> str:
        with ollama.Client(server.url) as client:
            return client.generate("small", prompt, options=GREEDY).response

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(ask, prompts))
    assert found == [engine.answer(prompt, CONFIG).text for prompt in prompts]
    assert len(set(found)) > 3


def test_the_models_are_listed_shown_loaded_and_unloaded(asking: ollama.Client) -> None:
    listed = asking.list().models
    assert [one.model for one in listed] == ["small:latest", "second:latest"]
    shown = asking.show("small")
    assert "<start>" in shown.template
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo["general.architecture"] == "ys"
    assert asking.generate("second", "").done_reason == "load"
    loaded = {one.model: one for one in asking.ps().models}
    assert set(loaded) == {"small:latest", "second:latest"}
    assert loaded["second:latest"].digest == listed[1].digest
    assert asking.generate("second", "", keep_alive=0).done_reason == "unload"
    assert [one.model for one in asking.ps().models] == ["small:latest"]
    assert asking.generate("second", PROMPT, options=GREEDY).response  # it is loaded again
    assert asking.generate("second", "", keep_alive="0s").done_reason == "unload"


def test_errors_are_those_that_the_client_knows(asking: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        asking.generate("none", "hello")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="format") as caught:
        asking.generate("small", "hello", format="json", stream=False)
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="/api/pull is not supported"):
        asking.pull("llama3")
    with pytest.raises(ollama.ResponseError, match="format"):
        list(asking.generate("small", "hello", format="json", stream=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": ["aGk="]}, "images"),
        ({"suffix": "x"}, "suffix"),
        ({"template": "x"}, "template"),
        ({"think": True}, "think"),
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"num_predict": 10**8}}, "at most"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"context": [1, 2, 3, 4]}, "context"),
        ({"raw": True, "system": "x"}, "system"),
        ({"prompt": 5}, "prompt"),
        ({"unheard_of": 5}, "unheard_of"),
    ],
)
def test_what_is_not_supported_is_named(
    client: httpx.Client, change: dict[str, object], named: str
) -> None:
    answer = client.post("/api/generate", json={"model": "small", "prompt": "hi", **change})
    assert answer.status_code == 400
    assert named in answer.json()["error"]


def test_a_stream_is_lines_of_json(client: httpx.Client) -> None:
    body = {"model": "small", "prompt": PROMPT, "options": GREEDY}
    answer = client.post("/api/generate", content=json.dumps(body))  # as `curl -d` sends it
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["done"] and set(lines[0]) == {"model", "created_at", "response", "done"}


def test_a_token_is_sent_before_the_one_before_is_acknowledged() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
