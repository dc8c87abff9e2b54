"""The ollama back end over the real client, against a server that fails on demand."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ollama_faults import DRIP_SECONDS, FAULTS, VERSION, FaultServer, closed_port, digest_of

from ys_llm.errors import EXIT_BACKEND_DOWN, EXIT_FAILED, EXIT_USAGE, UserError
from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest, did_not_fit
from ys_llm.gendata.backends.failures import (
    BackendDownError,
    DidNotFitError,
    EmptyAnswerError,
    ModelMissingError,
    RefusedError,
    StoppedError,
    TransientError,
)
from ys_llm.gendata.backends.ollama import (
    DEFAULT_SAMPLING,
    Ollama,
    address_of,
    full_name,
    never,
    options_sent,
)

ROOT = Path(__file__).resolve().parents[2]
SOON_SECONDS = 1.0  # within which a stop is obeyed
STALL_SECONDS = 0.3
QUESTION = ChatRequest("tiny", "Tell me of a fox.", options={"seed": 7, "num_predict": 200})
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "integer"}},
}
# What happens -> the reason that a TransientError gives, where two pauses did not help.
TRANSIENT = {
    "503": "busy",
    "429": "busy",
    "500": "failed",
    "502": "failed",
    "reset": "reset",
    "reset at once": "reset",
    "cut off": "reset",
    "truncated": "truncated",
    "stall": "stall",
    "silent": "stall",
    "bad json": "bad-line",
    "blank line": "bad-line",
    "not an object": "bad-line",
    "no message": "bad-line",
    "line separator": "bad-line",
    "html": "bad-line",
    "odd error": "bad-line",
    "error line": "error-line",
}
LASTING = {
    "400": (RefusedError, EXIT_FAILED, "invalid options: temperature"),
    "400 context": (DidNotFitError, EXIT_FAILED, "did not fit"),
    "401": (RefusedError, EXIT_FAILED, "OLLAMA_API_KEY"),
    "404": (ModelMissingError, EXIT_FAILED, "ollama pull tiny`"),
    "page not found": (BackendDownError, EXIT_BACKEND_DOWN, "is not ollama"),
    "redirect": (BackendDownError, EXIT_BACKEND_DOWN, "is not ollama"),
    "empty": (EmptyAnswerError, EXIT_FAILED, "empty answer"),
    "blank": (EmptyAnswerError, EXIT_FAILED, "empty answer"),
    "thinking": (EmptyAnswerError, EXIT_FAILED, "larger num_predict"),
}
WHOLE = {"good", "slow", "length", "full context"}


def backend(server: FaultServer | str, **changes: Any) -> Ollama:
    usual = {"connect_seconds": 5.0, "first_seconds": 10.0, "stall_seconds": 10.0}
    host = server if isinstance(server, str) else server.address
    return Ollama(host, **{**usual, "total_seconds": 60.0, "pauses": (0.01, 0.02), **changes})


def deadlines(fault: str) -> dict[str, float]:
    """Short ones only where they have to pass: a busy machine may be slow without a fault."""
    short = TRANSIENT[fault] == "stall"
    return {"first_seconds": STALL_SECONDS, "stall_seconds": STALL_SECONDS} if short else {}


def failure(
    server: FaultServer | str, request: ChatRequest = QUESTION, **changes: Any
) -> UserError:
    with pytest.raises(UserError) as raised:
        backend(server, **changes).ask(request)
    said = str(raised.value)
    assert "\n" not in said and len(said) < 400, said
    assert raised.value.fix, f"it is not said what to do: {said}"
    return raised.value


def good_text(request: ChatRequest = QUESTION) -> str:
    with FaultServer() as server:
        return backend(server).ask(request).text


def test_every_fault_has_its_test() -> None:
    assert set(TRANSIENT) | set(LASTING) | WHOLE | {"drip"} == set(FAULTS)


def test_a_good_answer_is_whole() -> None:
    with FaultServer() as server:
        answer = backend(server).ask(QUESTION)
    body = server.asked[0].body
    assert answer.text == server.answer(body)
    assert answer == ChatAnswer(
        answer.text,
        "stop",
        digest_of("tiny:latest"),
        len(answer.text.split()),
        answer.seconds,
        prompt_eval_count=len(QUESTION.prompt.split()),
        server=f"ollama {VERSION}",
    )
    assert 0 < answer.seconds < 5


def test_what_was_asked_arrives() -> None:
    options = {"seed": 3, "temperature": 0.5, "top_k": 7, "num_ctx": 900, "num_predict": 11}
    request = ChatRequest("tiny:latest", "Äpfel\n“now”", system="Be short.", options=options)
    with FaultServer() as server:
        backend(server).ask(request)
    asked = server.asked[0]
    assert asked.path == "/api/chat"
    assert asked.body == {
        "model": "tiny:latest",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Äpfel\n“now”"},
        ],
        "stream": True,
        "think": False,
        "options": {**DEFAULT_SAMPLING, **options},
        "tools": [],
    }


def test_every_option_is_always_sent() -> None:
    with FaultServer() as server:
        backend(server).ask(ChatRequest("tiny", "Hello?"))
    sent = server.asked[0].body["options"]
    assert sent == options_sent(ChatRequest("tiny", "Hello?"))
    assert set(sent) == {*DEFAULT_SAMPLING, "seed", "num_predict", "num_ctx"}
    assert sent["num_predict"] > 0


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**32 - 1, 2**64 - 1, -1])
def test_a_seed_travels_in_the_bits_that_the_runner_keeps(seed: int) -> None:
    sent = options_sent(ChatRequest("tiny", "x", options={"seed": seed}))["seed"]
    assert 0 <= sent < 2**31 and (sent - seed) % 2**31 == 0


def test_a_format_is_sent_and_obeyed() -> None:
    with FaultServer() as server:
        text = backend(server).ask(ChatRequest("tiny", "A sum?", format=SCHEMA)).text
        loose = backend(server).ask(ChatRequest("tiny", "A sum?", format="json")).text
    assert [asked.body["format"] for asked in server.asked] == [SCHEMA, "json"]
    assert set(json.loads(text)) == {"question", "answer"}
    assert isinstance(json.loads(loose), dict)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another() -> None:
    texts = [
        good_text(ChatRequest("tiny", "A story.", options={"seed": seed})) for seed in (1, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_an_answer_cut_by_num_predict_says_so() -> None:
    with FaultServer("good", "length") as server:
        short = backend(server).ask(ChatRequest("tiny", "A story.", options={"num_predict": 4}))
        cut = backend(server).ask(QUESTION)
    assert (short.done_reason, short.eval_count, len(short.text.split())) == ("length", 4, 4)
    assert cut.done_reason == "length"


@pytest.mark.parametrize(("fault", "reason"), TRANSIENT.items())
def test_what_may_pass_is_tried_again_and_then_named(fault: str, reason: str) -> None:
    with FaultServer(fault, fault, fault) as server:
        raised = failure(server, **deadlines(fault))
    assert isinstance(raised, TransientError)
    assert (raised.reason, raised.tries, raised.exit_code) == (reason, 3, EXIT_BACKEND_DOWN)
    assert len(server.asked) == 3
    assert "failed 3 times" in raised.problem and server.address in raised.problem


@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_passes_leaves_no_trace_in_the_answer(fault: str) -> None:
    with FaultServer(fault, "503", "good") as server:
        answer = backend(server, **deadlines(fault)).ask(QUESTION)
    assert answer.text == good_text()
    assert answer.tries == 3
    assert server.asked[0].body == server.asked[1].body == server.asked[2].body


@pytest.mark.parametrize(("fault", "told"), LASTING.items())
def test_a_lasting_failure_is_not_retried(fault: str, told: tuple[type, int, str]) -> None:
    kind, code, words = told
    with FaultServer(fault) as server:
        raised = failure(server)
    assert type(raised) is kind
    assert raised.exit_code == code
    assert words in str(raised)
    assert len(server.asked) == 1


def test_the_pauses_are_kept() -> None:
    with FaultServer("503", "503", "good") as server:
        began = time.monotonic()
        backend(server, pauses=(0.2, 0.3)).ask(QUESTION)
    assert 0.5 <= time.monotonic() - began < 2.0


def test_without_pauses_nothing_is_tried_twice() -> None:
    with FaultServer("503") as server:
        raised = failure(server, pauses=())
    assert isinstance(raised, TransientError) and raised.tries == 1
    assert "times" not in raised.problem
    assert len(server.asked) == 1


def test_a_refused_connection_is_a_back_end_that_is_down() -> None:
    with closed_port() as port:
        raised = failure(f"127.0.0.1:{port}")
    assert type(raised) is BackendDownError
    assert raised.exit_code == EXIT_BACKEND_DOWN
    assert f"http://127.0.0.1:{port}: the connection was refused" in raised.problem
    assert "`ollama serve`" in raised.fix and "--host" in raised.fix


def test_a_server_that_goes_away_between_two_tries_is_down() -> None:
    with FaultServer("503") as server:
        asking = ThreadPoolExecutor(1)
        future = asking.submit(backend(server, pauses=(0.5,)).ask, QUESTION)
        wait_for(lambda: bool(server.asked))
    with asking, pytest.raises(BackendDownError, match="refused"):
        future.result(timeout=10)


def test_an_unknown_host_name_is_reported() -> None:
    raised = failure("no-such-machine.invalid")
    assert type(raised) is BackendDownError
    assert "http://no-such-machine.invalid:11434" in raised.problem
    assert "OLLAMA_HOST=0.0.0.0" in raised.fix, "a server elsewhere hears its own machine alone"


def test_tls_where_there_is_none_is_a_back_end_that_is_down() -> None:
    with FaultServer() as server:
        raised = failure(f"https://127.0.0.1:{server.port}")
    assert type(raised) is BackendDownError
    assert "https://" in raised.problem


def test_a_url_without_a_port_means_port_80_and_the_error_says_so() -> None:
    with pytest.raises(BackendDownError) as raised:
        raise failure_at("http://127.0.0.1")
    assert "at http://127.0.0.1:80:" in raised.value.problem
    assert "--host http://127.0.0.1:11434" in raised.value.fix


def failure_at(host: str) -> UserError:
    """The failure of a check, where nothing of ours can listen: port 80 takes a privilege."""
    found = backend(host).check("tiny")
    assert found.failure is not None
    return found.failure


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":56789", "http://127.0.0.1:56789"),
        ("example.com:56789/", "http://example.com:56789"),
        ("http://example.com", "http://example.com:80"),
        ("https://example.com/ollama/", "https://example.com:443/ollama"),
        ("[::1]:99", "http://[::1]:99"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("http://[::]:11434", "http://[::1]:11434"),
    ],
)
def test_a_host_is_read_as_ollama_reads_it(typed: str, address: str) -> None:
    import ollama

    assert address_of(typed) == address
    if "0.0.0.0" not in typed and "[::]" not in typed:
        assert str(ollama.Client(typed or None)._client.base_url).rstrip("/") in {
            address,
            address.removesuffix(":80").removesuffix(":443"),
            address.replace(":80", "").replace(":443", ""),
        }


@pytest.mark.parametrize(
    "typed",
    ["host:port", "host:99999", "ftp://host", "two words", "user:secret@host", "http://[::1"],
)
def test_what_is_no_address_is_refused_at_once(typed: str) -> None:
    with pytest.raises(UserError) as raised:
        Ollama(typed)
    assert raised.value.exit_code == EXIT_USAGE
    assert "11434" in raised.value.fix


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/api", "/v1/chat/completions", "/api/chat"])
def test_the_address_of_an_api_is_corrected_in_the_message(path: str) -> None:
    with pytest.raises(UserError) as raised:
        address_of(f"http://far.example:1234{path}")
    assert raised.value.fix.endswith("--host http://far.example:1234")


def test_a_400_that_names_the_context_says_that_the_prompt_did_not_fit() -> None:
    with FaultServer("400 context") as server:
        raised = failure(server)
    assert type(raised) is DidNotFitError
    assert "num_ctx" in raised.fix


def test_a_prompt_that_the_server_cut_in_silence_did_not_fit() -> None:
    prompt = "word " * 4000
    whole = ChatAnswer("x", "stop", "", 10, 1.0, prompt_eval_count=4000)
    assert not did_not_fit(prompt, "", whole)
    assert not did_not_fit(prompt, "", replace(whole, prompt_eval_count=0)), "not reported"
    assert "num_ctx to 8,192" in did_not_fit(prompt, "", replace(whole, prompt_eval_count=1000))


def test_the_environment_does_not_choose_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer() as server, closed_port() as closed:
        for name in ("OLLAMA_HOST", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed}")
        assert backend(server).ask(QUESTION).text


def test_a_slow_first_part_is_no_stall() -> None:
    with FaultServer("slow", slow_seconds=2 * STALL_SECONDS) as server:
        answer = backend(server, stall_seconds=STALL_SECONDS).ask(QUESTION)
    assert answer.tries == 1
    assert answer.text == good_text()


def test_only_the_first_part_may_take_as_long_as_loading_takes() -> None:
    with FaultServer("stall") as server:
        began = time.monotonic()
        raised = failure(server, first_seconds=30.0, stall_seconds=STALL_SECONDS, pauses=())
    assert isinstance(raised, TransientError) and raised.reason == "stall"
    assert f"nothing for {STALL_SECONDS} s" in raised.problem
    assert time.monotonic() - began < 10.0


def test_parts_that_come_one_by_one_are_no_stall_but_end_at_the_total_deadline() -> None:
    assert DRIP_SECONDS < STALL_SECONDS
    with FaultServer("drip") as server:
        began = time.monotonic()
        raised = failure(server, total_seconds=1.0, stall_seconds=STALL_SECONDS)
        took = time.monotonic() - began
        assert server.asked[0].left.wait(SOON_SECONDS)
    assert isinstance(raised, TransientError) and raised.reason == "deadline"
    assert 1.0 <= took < 1.0 + SOON_SECONDS
    assert len(server.asked) == 1


def test_the_total_deadline_holds_over_all_tries() -> None:
    with FaultServer(*["503"] * 100) as server:
        began = time.monotonic()
        raised = failure(server, total_seconds=0.6, pauses=[0.2] * 99)
    assert isinstance(raised, TransientError) and raised.reason == "deadline"
    assert time.monotonic() - began < 0.6 + SOON_SECONDS
    assert 2 <= len(server.asked) <= 4


@pytest.mark.parametrize("fault", ["stall", "silent", "drip", "503"])
def test_a_stop_is_obeyed_within_a_second_and_closes_the_request(fault: str) -> None:
    stop = threading.Event()
    patient = {"first_seconds": 60.0, "stall_seconds": 60.0, "pauses": (60.0,)}
    with FaultServer(fault) as server, ThreadPoolExecutor(1) as asking:
        future = asking.submit(backend(server, **patient).ask, QUESTION, stop.is_set)
        wait_for(lambda: bool(server.asked))
        time.sleep(0.1)
        began = time.monotonic()
        stop.set()
        with pytest.raises(StoppedError):
            future.result(timeout=10)
        assert time.monotonic() - began < SOON_SECONDS
        if fault != "503":
            assert server.asked[0].left.wait(SOON_SECONDS), "the connection stays open"


@pytest.mark.parametrize("stopped", [True, False])
def test_a_silent_name_server_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    release, stop = threading.Event(), threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_args, **_kwargs: release.wait(20) and [])
    began = time.monotonic()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(StoppedError if stopped else BackendDownError):
        backend("far.example", connect_seconds=0.4).ask(QUESTION, stop.is_set if stopped else never)
    took = time.monotonic() - began
    release.set()
    assert took < 0.4 + SOON_SECONDS


def test_a_stop_from_before_asks_nothing() -> None:
    with FaultServer() as server, pytest.raises(StoppedError):
        backend(server).ask(QUESTION, lambda: True)
    assert not server.asked


def test_ctrl_c_ends_a_stalled_request_within_a_second(tmp_path: Path) -> None:
    code = (
        "import sys; from ys_llm.gendata.backends.ollama import ChatRequest, Ollama\n"
        "Ollama(sys.argv[1], stall_seconds=60).ask(ChatRequest('tiny', 'Hello?'))"
    )
    with FaultServer("stall") as server:
        asking = subprocess.Popen(
            [sys.executable, "-c", code, server.address], cwd=ROOT, stderr=subprocess.PIPE
        )
        wait_for(lambda: bool(server.asked))
        time.sleep(0.1)
        began = time.monotonic()
        asking.send_signal(2)
        said = asking.communicate(timeout=10)[1].decode()
        assert time.monotonic() - began < SOON_SECONDS
        assert server.asked[0].left.wait(SOON_SECONDS)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in said


def test_two_requests_at_once_do_not_meet() -> None:
    requests = [ChatRequest("tiny", f"Story {n}.", options={"seed": n}) for n in range(6)]
    with FaultServer(*["slow"] * 6, slow_seconds=0.2) as server:
        shared = backend(server)
        with ThreadPoolExecutor(2) as asking:
            texts = [answer.text for answer in asking.map(shared.ask, requests)]
    assert server.most_at_once == 2
    assert texts == [good_text(request) for request in requests]


def test_both_ways_to_ask_give_the_same_words() -> None:
    """The server is also for those who ask through /api/generate."""
    import ollama

    options = options_sent(QUESTION)
    with FaultServer() as server, ollama.Client(server.address) as client:
        parts = client.generate("tiny", QUESTION.prompt, options=options, stream=True)
        assert "".join(part.response or "" for part in parts) == good_text()
        assert client.show("tiny").details is not None


def test_a_model_is_known_by_its_full_name() -> None:
    assert full_name("tiny") == full_name("Tiny:latest") == "tiny:latest"
    assert full_name("hf.co:99/a/b") == "hf.co:99/a/b:latest"
    assert full_name("registry.ollama.ai/library/tiny:1b") == "tiny:1b"


def test_a_missing_model_is_told_with_what_to_type() -> None:
    with FaultServer() as server:
        raised = failure(server, ChatRequest("llama9", "Hello?"))
    assert type(raised) is ModelMissingError
    assert f"`OLLAMA_HOST={server.address} ollama pull llama9`" in raised.fix
    assert not server.asked


@pytest.mark.parametrize(("model", "prompt"), [("", "Hello?"), ("tiny", " \n")])
def test_a_request_that_asks_nothing_is_not_sent(model: str, prompt: str) -> None:
    with FaultServer() as server:
        failure(server, ChatRequest(model, prompt))
    assert not server.asked and not server.paths


def test_a_check_shows_server_model_and_sample() -> None:
    with FaultServer(models=("other:1b", "tiny:latest")) as server:
        found = backend(server).check("tiny")
    assert found.failure is None and found.sample is not None
    assert (found.version, found.digest) == (VERSION, digest_of("tiny:latest"))
    assert found.models == ("other:1b", "tiny:latest")
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["server", "model", "sample"]
    assert server.address in lines[0] and "0.10 GB" in lines[1] and "tokens/s" in lines[2]


def test_a_check_stops_at_the_first_thing_that_is_wrong() -> None:
    with closed_port() as port:
        down = backend(f":{port}").check("tiny")
    with FaultServer(models=("a:1b", "b:latest")) as server:
        missing = backend(server).check("tiny")
    with FaultServer("empty") as server:
        mute = backend(server).check("tiny")
    failures = [type(found.failure) for found in (down, missing, mute)]
    assert failures == [BackendDownError, ModelMissingError, EmptyAnswerError]
    assert str(down).startswith("failed") and "ollama serve" in str(down)
    assert "--model a:1b or b:latest" in str(missing)
    assert [line.split()[0] for line in str(mute).splitlines()] == ["server", "model", "failed"]


def test_the_client_is_loaded_by_nothing_that_must_start_fast() -> None:
    code = "import sys, ys_llm.cli, ys_llm.gendata; assert 'ollama' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_back_end_needs_no_torch() -> None:
    code = "import sys, ys_llm.gendata.backends.ollama; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "what was waited for never came"
        time.sleep(0.005)
