"""The back end of OpenAI's protocol against a small server of it, and requests at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support.ollama_faults import closed_port

from ys_llm.errors import EXIT_BACKEND_DOWN, UserError
from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest
from ys_llm.gendata.backends.failures import (
    BackendDownError,
    DidNotFitError,
    EmptyAnswerError,
    ModelMissingError,
    RefusedError,
    StoppedError,
    TransientError,
)
from ys_llm.gendata.backends.openai import OpenAI
from ys_llm.gendata.generation.concurrency import Concurrency

QUESTION = ChatRequest("tiny", "Tell me of a fox.", system="Be short.", options={"seed": 7})
WORDS = ["A fox", " came", " home."]


class Server(ThreadingHTTPServer):
    """Answers with each of `script` in turn, then well; keeps the bodies."""

    script: list[str]
    bodies: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        fault = self.server.script.pop(0) if self.server.script else "good"
        if fault[:3].isdigit():
            error = {"error": {"message": fault[4:] or "busy"}}
            return self.reply(int(fault[:3]), json.dumps(error))
        words = [] if fault == "empty" else WORDS
        parts = [{"choices": [{"delta": {"content": word}}]} for word in words]
        if fault != "truncated":
            parts.append({"choices": [{"delta": {}, "finish_reason": fault_reason(fault)}]})
        parts.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
        lines = [f"data: {json.dumps(part)}\n\n" for part in parts]
        if fault == "bad line":
            lines.insert(1, "data: {oops\n\n")
        self.reply(200, "".join([*lines, "data: [DONE]\n\n"]))

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def fault_reason(fault: str) -> str:
    return "length" if fault == "length" else "stop"


@pytest.fixture
def server() -> Iterator[Server]:
    http = Server(("127.0.0.1", 0), Handler)
    http.script, http.bodies = [], []
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def ask(server: Server, *script: str, request: ChatRequest = QUESTION) -> ChatAnswer:
    server.script[:] = script
    host = f"openai:127.0.0.1:{server.server_port}"
    return OpenAI(host, pauses=(0.01, 0.01)).ask(request)


def test_a_good_answer_is_whole_and_every_option_arrives(server: Server) -> None:
    answer = ask(server)
    assert (answer.text, answer.done_reason) == ("A fox came home.", "stop")
    assert (answer.eval_count, answer.prompt_eval_count, answer.tries) == (3, 9, 1)
    body = server.bodies[0]
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert body["seed"] == 7 and body["max_tokens"] > 0
    assert {"temperature", "top_p", "presence_penalty", "frequency_penalty"} <= body.keys()


def test_an_option_that_the_server_does_not_know_is_sent_once(server: Server) -> None:
    host = OpenAI(f"openai:127.0.0.1:{server.server_port}")
    server.script[:] = ["400 unrecognized arguments: top_k, min_p", "400 no repeat_penalty here"]
    assert host.ask(QUESTION).tries == host.ask(QUESTION).tries == 1
    first, second, third, fourth = (body.keys() for body in server.bodies)
    assert {"top_k", "min_p", "repetition_penalty", "repeat_penalty"} <= first
    assert first - second == {"top_k", "min_p"} and second - third == {"repeat_penalty"}
    assert third == fourth


def test_a_check_says_where_and_of_what_and_a_path_is_corrected_with_its_prefix(
    server: Server,
) -> None:
    address = f"127.0.0.1:{server.server_port}"
    said = str(OpenAI(f"openai:{address}").check("tiny"))
    assert f"server  http://{address}, OpenAI's protocol" in said and "model   tiny" in said
    with pytest.raises(UserError) as raised:
        OpenAI(f"openai:{address}/v1")
    assert raised.value.fix.endswith(f"--host openai:http://{address}")


def test_a_schema_is_sent(server: Server) -> None:
    ask(server, request=ChatRequest("tiny", "A sum?", format={"type": "object"}))
    ask(server, request=ChatRequest("tiny", "A sum?", format="json"))
    kinds = [body["response_format"]["type"] for body in server.bodies]
    assert kinds == ["json_schema", "json_object"]


def test_what_may_pass_is_tried_again(server: Server) -> None:
    answer = ask(server, "503", "truncated")
    assert (answer.text, answer.tries) == ("A fox came home.", 3)
    assert ask(server, "length").done_reason == "length"


@pytest.mark.parametrize(
    ("fault", "reason"), [("503", "busy"), ("500", "failed"), ("bad line", "bad-line")]
)
def test_what_does_not_pass_is_named(server: Server, fault: str, reason: str) -> None:
    with pytest.raises(TransientError) as raised:
        ask(server, *[fault] * 3)
    assert (raised.value.reason, raised.value.exit_code) == (reason, EXIT_BACKEND_DOWN)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("400 maximum context length is 4096 tokens", DidNotFitError),
        ("401 no key", RefusedError),
        ("404 the model does not exist", ModelMissingError),
        ("404 page not found", BackendDownError),
        ("empty", EmptyAnswerError),
    ],
)
def test_a_lasting_failure_is_not_retried(server: Server, fault: str, kind: type) -> None:
    with pytest.raises(UserError) as raised:
        ask(server, fault)
    assert type(raised.value) is kind and raised.value.fix
    assert len(server.bodies) == 1


def test_a_closed_port_and_a_stop_are_told_apart(server: Server) -> None:
    with closed_port() as port, pytest.raises(BackendDownError) as raised:
        OpenAI(f"openai:127.0.0.1:{port}").ask(QUESTION)
    assert "no server answers" in raised.value.problem and "openai:http" in raised.value.fix
    with pytest.raises(StoppedError):
        OpenAI(f"openai:127.0.0.1:{server.server_port}").ask(QUESTION, lambda: True)
    assert not server.bodies


def run(gate: Concurrency, clock: list[float], rate: float, windows: int, tries: int = 1) -> int:
    """Feed answers at `rate` tokens a second; the limit after that."""
    for _ in range(windows):
        for _ in range(2 * gate.limit):
            clock[0] += 10 / rate
            gate.note(ChatAnswer("x", "stop", "", 10, 1.0, tries=tries))
    return gate.limit


def test_requests_at_once_grow_while_it_helps_and_shrink_when_it_fails() -> None:
    clock = [0.0]
    gate = Concurrency(6, now=lambda: clock[0])
    assert gate.limit == 2
    assert [run(gate, clock, rate, 1) for rate in (10, 15, 20)] == [3, 4, 5]
    assert run(gate, clock, 20, 3) == 5, "no faster, so no more"
    gate.note(ChatAnswer("x", "stop", "", 10, 1.0, tries=2))
    assert gate.limit == 2
    assert run(gate, clock, 20, 1) == 3
    assert run(gate, clock, 5, 1) == 2
    assert Concurrency(1).limit == 1


def test_no_more_requests_run_than_the_limit_allows() -> None:
    gate, most, now = Concurrency(2), [0], [0]

    def work() -> None:
        with gate.slot(lambda: False):
            now[0] += 1
            most[0] = max(most[0], now[0])
            threading.Event().wait(0.02)
            now[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2
