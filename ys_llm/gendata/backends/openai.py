"""The back end for servers that speak OpenAI's protocol: llama.cpp, vLLM, LM Studio, `ys serve`.

One request, one complete answer or one of the same named failures as ollama's, through httpx.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest
from ys_llm.gendata.backends.failures import (
    BackendDownError,
    EmptyAnswerError,
    ModelMissingError,
    RefusedError,
    StoppedError,
    TransientError,
    failure_of,
    of_status,
)
from ys_llm.gendata.backends.ollama import (
    ServerCheck,
    address_of,
    never,
    options_sent,
    sample_request,
)

PREFIX = "openai:"  # before a host
_DATA = "data:"
_DONE = "[DONE]"
_SAME_NAMES = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
_EXTRAS = {  # what OpenAI's own protocol lacks: names of vLLM and of llama.cpp, ollama's option
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
}
_NEXT_PAUSE = 0.05  # seconds between two checks of `should_stop` while waiting


class OpenAI:
    """A server of OpenAI's protocol; `ask` may be called from several threads at once.

    `should_stop` is looked at between two parts of an answer and while waiting for another try.
    An option outside OpenAI's protocol that the server refuses by its name is not sent again.
    """

    def __init__(
        self,
        host: str,
        *,
        key: str = "",
        connect_seconds: float = 5.0,
        stall_seconds: float = 300.0,
        total_seconds: float = 900.0,
        pauses: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    ) -> None:
        """Timeouts in seconds: to connect, between parts, for all of `ask`.

        A transient failure is retried after each of `pauses`. Raises UserError for an invalid host.
        """
        self.address = address_of(host.removeprefix(PREFIX), PREFIX)
        self._refused: frozenset[str] = frozenset()
        self._total_seconds, self._pauses = total_seconds, tuple(pauses)
        self._client = httpx.Client(
            base_url=self.address,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(stall_seconds, connect=connect_seconds),
            trust_env=False,  # a proxy from the environment would be used for 127.0.0.1 as well
        )

    def ask(self, request: ChatRequest, should_stop: Callable[[], bool] = never) -> ChatAnswer:
        """The complete answer, or an exception; never a partial answer.

        Raises StoppedError, or a UserError: BackendDownError, ModelMissingError, RefusedError,
        EmptyAnswerError, or TransientError after the last retry.
        """
        if not request.model:
            raise UserError("no model is given", "Add --model NAME.", exit_code=EXIT_USAGE)
        ends = time.monotonic() + self._total_seconds
        for tries, pause in enumerate((*self._pauses, None), 1):
            try:
                with self._failures(request.model):
                    return replace(self._try_known(request, should_stop, ends), tries=tries)
            except TransientError as failure:
                if pause is None or time.monotonic() + pause > ends:
                    raise failure.after(tries) from failure
                _wait(pause, should_stop)
        raise AssertionError("the last try returns or raises")

    def _try_known(
        self, request: ChatRequest, should_stop: Callable[[], bool], ends: float
    ) -> ChatAnswer:
        """One try, without the options that the server turns out not to know."""
        while True:
            body = {
                name: value for name, value in _body(request).items() if name not in self._refused
            }
            try:
                return self._try(body, should_stop, ends)
            except RefusedError as failure:
                names = re.findall(r"\w+", failure.problem)
                refused = _EXTRAS.keys() & body.keys() & set(names)
                if not refused:
                    raise
                self._refused |= refused

    def _try(
        self, body: Mapping[str, Any], should_stop: Callable[[], bool], ends: float
    ) -> ChatAnswer:
        if should_stop():
            raise StoppedError("stopped by the caller")
        began, texts, reason, usage = time.monotonic(), list[str](), "", dict[str, Any]()
        server = ""
        with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            self._check(response, body["model"])
            for part in _parts(response.iter_lines()):
                if should_stop():
                    raise StoppedError("stopped by the caller")
                if time.monotonic() > ends:
                    raise self._transient("deadline", f"no answer in {self._total_seconds:g} s")
                usage = part.get("usage") or usage
                server = str(part.get("system_fingerprint") or server)
                for choice in part.get("choices", ()):
                    texts.append((choice.get("delta") or {}).get("content") or "")
                    reason = choice.get("finish_reason") or reason
        if not reason:
            raise self._transient("truncated", "the answer ended early")
        text = "".join(texts)
        if not text.strip():
            raise EmptyAnswerError(
                f"{body['model']} gave an empty answer (finish_reason {reason!r})",
                "Try another seed; for a reasoning model, a larger num_predict.",
            )
        return ChatAnswer(
            text,
            reason,
            model_digest="",
            eval_count=int(usage.get("completion_tokens") or len(texts)),
            seconds=time.monotonic() - began,
            prompt_eval_count=int(usage.get("prompt_tokens") or 0),
            server=server,
        )

    def _check(self, response: httpx.Response, model: str) -> None:
        """Raise the failure behind an HTTP status that is not 200."""
        if response.status_code == 200:
            return
        response.read()
        said = _message(response)
        failure = of_status(response.status_code, said, address=self.address, model=model)
        raise _reworded(failure, self.address)

    def _transient(self, reason: str, happened: str) -> TransientError:
        return TransientError(self.address, reason, happened=happened)

    @contextmanager
    def _failures(self, model: str) -> Iterator[None]:
        try:
            yield
        except (UserError, StoppedError):
            raise
        except Exception as error:
            failure = failure_of(error, self.address, model)
            if failure is None:
                raise
            raise _reworded(failure, self.address) from error

    def check(self, model: str, should_stop: Callable[[], bool] = never) -> ServerCheck:
        """Time one sample of a model; a failure is part of the result."""
        found = ServerCheck(self.address, model, protocol="OpenAI's protocol")
        try:
            return replace(found, sample=self.ask(sample_request(model), should_stop))
        except UserError as failure:
            return replace(found, failure=failure)


def _reworded(failure: UserError, address: str) -> UserError:
    """The failure of a server that is not ollama, with what helps there."""
    if isinstance(failure, BackendDownError):
        why = failure.problem.rpartition(": ")[2]
        fix = f"Start the server, or correct --host {PREFIX}{address}."
        return BackendDownError(f"no server answers at {address}: {why}", fix)
    if isinstance(failure, ModelMissingError):
        fix = f"Type one of the names that {address}/v1/models lists as --model."
        return ModelMissingError(failure.problem.replace("ollama", "the server"), fix)
    return failure


def _wait(seconds: float, should_stop: Callable[[], bool]) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if should_stop():
            raise StoppedError("stopped by the caller")
        time.sleep(min(_NEXT_PAUSE, seconds))


def _body(request: ChatRequest) -> dict[str, Any]:
    """The request in OpenAI's words, and the options it has no words for in those of servers."""
    options = options_sent(request)
    system = [{"role": "system", "content": request.system}] if request.system else []
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [*system, {"role": "user", "content": request.prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options["num_predict"],
        **{name: options[name] for name in _SAME_NAMES},
        **{name: options[option] for name, option in _EXTRAS.items()},
    }
    if isinstance(request.format, Mapping):
        schema = {"name": "answer", "schema": dict(request.format)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.format:
        body["response_format"] = {"type": "json_object"}
    return body


def _parts(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    """The events of a stream up to its end; an error inside it raises ValueError."""
    for line in lines:
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            return
        part = json.loads(data)
        if not isinstance(part, dict) or "error" in part:
            raise ValueError(f"error in the stream: {data}")
        yield part


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return response.text
