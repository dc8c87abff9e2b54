"""The back end `ollama`: one request, one complete answer or one named failure, within deadlines.

It drives the `ollama` client, always streaming, inside an event loop per request: a task can be
cancelled at any moment, which closes its connection. A thread that reads a socket could not be
interrupted before its own timeout.
"""

import asyncio
import contextlib
import re
import ssl
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import ollama

from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.gendata.backends.chat import ChatAnswer, ChatRequest
from ys_llm.gendata.backends.failures import (
    PORT,
    EmptyAnswerError,
    StoppedError,
    TransientError,
    failure_of,
    model_missing,
    shorten,
)

DEFAULT_HOST = f"127.0.0.1:{PORT}"
# Sent with every request. The server's own defaults differ between versions and models: no limit on
# the answer, a context of 2048 or 4096 tokens that cuts prompts silently.
DEFAULT_SEED, DEFAULT_NUM_PREDICT, DEFAULT_NUM_CTX = 0, 512, 4096
# Every other sampling option too: ollama changed its repeat penalty between two versions.
DEFAULT_SAMPLING = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_SEEDS = 2**31  # the runner keeps 32 bits; all ones mean "choose one"
_API_PATH = re.compile(r"/(?:v1|api)(?:/.*)?/?\Z")
_POLL_SECONDS = 0.05  # between two checks of `should_stop`
_SERVER_WORDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # addresses for listening, not for connecting
T = TypeVar("T")


@dataclass(frozen=True)
class ServerCheck:
    """The result of `ys gen-data --check`, up to `failure` if there is one."""

    address: str
    model: str
    version: str = ""
    digest: str = ""
    size_bytes: int = 0
    models: tuple[str, ...] = ()
    sample: ChatAnswer | None = None
    failure: UserError | None = None
    protocol: str = ""  # where it is not ollama's

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.version:
            yield f"server  ollama {self.version} at {self.address}"
        elif self.protocol and self.sample:
            yield f"server  {self.address}, {self.protocol}"
            yield f"model   {self.model}, of which the server reports no digest"
        if self.digest:
            size = f"{self.size_bytes / 1e9:.2f} GB, " if self.size_bytes else ""
            yield f"model   {self.model}, {size}digest {self.digest[:12]}"
        if self.sample:
            rate = self.sample.eval_count / max(self.sample.seconds, 1e-9)
            took = f"{self.sample.eval_count} tokens in {self.sample.seconds:.1f} s"
            yield f"sample  {took}, {rate:.1f} tokens/s: {shorten(self.sample.text)}"
        if self.failure:
            yield f"failed  {self.failure}"


def never() -> bool:
    """A `should_stop` that never stops."""
    return False


class Ollama:
    """An ollama server; `ask` may be called from several threads at once."""

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        *,
        connect_seconds: float = 5.0,
        first_seconds: float = 300.0,
        stall_seconds: float = 60.0,
        total_seconds: float = 900.0,
        pauses: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    ) -> None:
        """Timeouts in seconds: to connect, for the first part, between parts, for all of `ask`.

        The first part may have to wait until the model is loaded. A transient failure is retried
        after each of `pauses`. Raises UserError for an invalid host.
        """
        self.address = address_of(host)
        self._connect_seconds, self._first_seconds = connect_seconds, first_seconds
        self._stall_seconds, self._total_seconds = stall_seconds, total_seconds
        self._pauses = tuple(pauses)
        self._listed: dict[str, ollama.ListResponse.Model] = {}
        self._server = ""  # name and version, once asked for
        read_seconds = max(first_seconds, stall_seconds)  # for any bytes; parts have their own
        self._timeout = httpx.Timeout(
            connect=connect_seconds, read=read_seconds, write=stall_seconds, pool=connect_seconds
        )
        # Building a TLS context takes longer than a local request; http:// does not need one.
        secure = self.address.startswith("https:")
        self._tls: ssl.SSLContext | bool = ssl.create_default_context() if secure else False

    def ask(self, request: ChatRequest, should_stop: Callable[[], bool] = never) -> ChatAnswer:
        """The complete answer, or an exception; never a partial answer.

        `should_stop` is called many times per second. Raises StoppedError, or a UserError:
        BackendDownError, ModelMissingError, RefusedError, EmptyAnswerError, or TransientError after
        the last retry.
        """
        if not request.model:
            raise UserError("no model is given", "Add --model NAME.", exit_code=EXIT_USAGE)
        if not request.prompt.strip():
            # The server would only load the model and report success.
            raise UserError("the prompt is empty", "Correct the template or slots of the kind.")
        return self._run(lambda: self._ask(request), should_stop)

    def check(self, model: str, should_stop: Callable[[], bool] = never) -> ServerCheck:
        """Query server and model and time one sample; a failure is part of the result."""
        found = ServerCheck(self.address, model)
        try:
            version = self._run(self._version, should_stop)
            names = tuple(entry.model or "" for entry in self._listed.values())
            found = replace(found, version=version, models=names)
            entry = self._listed.get(full_name(model))
            if entry is None:
                raise model_missing(self.address, model, names)
            found = replace(found, digest=entry.digest or "", size_bytes=int(entry.size or 0))
            return replace(found, sample=self.ask(sample_request(model), should_stop))
        except UserError as failure:
            return replace(found, failure=failure)

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], stop: Callable[[], bool]) -> T:
        """Run `work` until it ends, the total timeout passes or `stop` is true."""

        async def watched() -> T:
            """The result of `work`; raises when stopped or out of time."""
            asyncio.get_running_loop().set_default_executor(_Abandonable())
            task = asyncio.create_task(work())
            ends = time.monotonic() + self._total_seconds
            while not task.done():
                if stop():
                    raise StoppedError("stopped by the caller")
                if time.monotonic() > ends:
                    happened = f"no complete answer in {self._total_seconds:g} s"
                    raise TransientError(self.address, "deadline", happened=happened)
                await asyncio.wait({task}, timeout=_POLL_SECONDS)
            return task.result()

        # `run` cancels what is left and waits until its connection is closed.
        return asyncio.run(watched())

    async def _ask(self, request: ChatRequest) -> ChatAnswer:
        """Retry transient failures, with pauses."""
        async with ollama.AsyncClient(self.address, **self._settings()) as client:
            for tries, pause in enumerate((*self._pauses, None), 1):
                try:
                    with self._failures(request.model):
                        answer = await self._try(client, request)
                    return replace(answer, tries=tries)
                except TransientError as failure:
                    if pause is None:
                        raise failure.after(tries) from failure
                    await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _try(self, client: ollama.AsyncClient, request: ChatRequest) -> ChatAnswer:
        if full_name(request.model) not in self._listed:
            await self._list(client)
        began, texts = time.monotonic(), []
        async with contextlib.aclosing(self._parts(client, request)) as parts:
            async for part in parts:
                texts.append(part.message.content or "")
                last = part
        text = "".join(texts)
        if not text.strip():
            raise self._empty(request.model, last)
        entry = self._listed.get(full_name(request.model))
        return ChatAnswer(
            text,
            last.done_reason or "",
            model_digest=(entry.digest or "") if entry else "",
            eval_count=last.eval_count or 0,
            seconds=time.monotonic() - began,
            prompt_eval_count=last.prompt_eval_count or 0,
            server=self._server,
        )

    async def _parts(
        self, client: ollama.AsyncClient, request: ChatRequest
    ) -> AsyncGenerator[ollama.ChatResponse, None]:
        """The parts of an answer up to the final one; without that one, it was truncated."""
        stream = await client.chat(**_message(request))
        wait_seconds = self._connect_seconds + self._first_seconds
        parts = cast("AsyncGenerator[ollama.ChatResponse, None]", stream)
        async with contextlib.aclosing(parts):
            while True:
                with self._stall(wait_seconds):
                    async with asyncio.timeout(wait_seconds):
                        part = await anext(parts, None)
                if part is None:
                    happened = "the answer ended early"
                    raise TransientError(self.address, "truncated", happened=happened)
                yield part
                if part.done:
                    return
                wait_seconds = self._stall_seconds

    async def _list(self, client: ollama.AsyncClient) -> None:
        """Store the server's list of models, by full name."""
        wait_seconds = self._connect_seconds + self._stall_seconds
        with self._stall(wait_seconds):
            async with asyncio.timeout(wait_seconds):
                listed = await client.list()
        self._listed = {full_name(entry.model or ""): entry for entry in listed.models}
        if not self._server:
            self._server = await self._named_version()

    async def _named_version(self) -> str:
        """`ollama 0.12.3`; "" where the server does not tell: records do without."""
        try:
            async with httpx.AsyncClient(**self._settings()) as plain:
                answer = await plain.get(f"{self.address}/api/version")
                return f"ollama {answer.json()['version']}" if answer.is_success else ""
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return ""

    async def _version(self) -> str:
        """The server's version, for which the client has no call. Lists the models as well."""
        with self._failures(""):
            async with ollama.AsyncClient(self.address, **self._settings()) as client:
                await self._list(client)
            async with httpx.AsyncClient(**self._settings()) as plain:
                answer = await plain.get(f"{self.address}/api/version")
            return str(answer.json().get("version")) if answer.is_success else "of unknown version"

    def _settings(self) -> dict[str, Any]:
        # trust_env: a proxy from the environment would be used for 127.0.0.1 as well.
        # follow_redirects: a redirected POST arrives as a GET.
        return {
            "timeout": self._timeout,
            "verify": self._tls,
            "trust_env": False,
            "follow_redirects": False,
        }

    @contextlib.contextmanager
    def _failures(self, model: str) -> Iterator[None]:
        """Translate what the client raises into our exceptions."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            failure = failure_of(error, self.address, model)
            if failure is None:
                raise
            raise failure from error

    @contextlib.contextmanager
    def _stall(self, seconds: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            happened = f"it sent nothing for {seconds:g} s"
            raise TransientError(self.address, "stall", happened=happened) from None

    def _empty(self, model: str, last: ollama.ChatResponse) -> EmptyAnswerError:
        spent = f"{last.eval_count or 0} tokens, done_reason {last.done_reason!r}"
        return EmptyAnswerError(
            f"{model} gave an empty answer ({spent})",
            "Try another seed; for a reasoning model, a larger num_predict.",
        )


def address_of(host: str, prefix: str = "") -> str:
    """The URL of a host, by ollama's own rules. Raises UserError for an invalid one.

    `prefix` is what stood before the host, for the command in the message.

    Without a scheme the port is 11434; `http://NAME` means port 80, `https://NAME` 443.
    """
    typed = host.strip() or DEFAULT_HOST
    scheme, _, rest = typed.rpartition("://")
    problem = f"{shorten(typed)!r} is not an address of an ollama server"
    try:
        parts = urlsplit(f"{scheme or 'http'}://{rest}")
        name, port = parts.hostname or "127.0.0.1", parts.port
        httpx.URL(f"http://[{name}]" if ":" in name else f"http://{name}")
    except (ValueError, httpx.InvalidURL):
        name, port, scheme = "", None, "?"
    if scheme not in ("", "http", "https") or "@" in rest or len(rest.split()) != 1:
        raise UserError(problem, f"Write NAME, NAME:{PORT} or a URL.", exit_code=EXIT_USAGE)
    name = _SERVER_WORDS.get(name, name)
    shown = f"[{name}]" if ":" in name else name
    port = port or {"http": 80, "https": 443}.get(scheme, PORT)
    if found := _API_PATH.search(parts.path):
        address = f"{scheme or 'http'}://{shown}:{port}{parts.path[: found.start()]}"
        raise UserError(
            f"{prefix}{shorten(typed)} is the address of an API, not of a server",
            f"Leave {found[0]} out: --host {prefix}{address}",
            exit_code=EXIT_USAGE,
        )
    return f"{scheme or 'http'}://{shown}:{port}{parts.path.rstrip('/')}"


def full_name(model: str) -> str:
    """Ollama's full name of a model: with its tag, `latest` if none is given."""
    name = model.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def options_sent(request: ChatRequest) -> dict[str, Any]:
    """The options to send: all of them, since a server's defaults change."""
    defaults = {"num_predict": DEFAULT_NUM_PREDICT, "num_ctx": DEFAULT_NUM_CTX}
    seed = int(request.options.get("seed", DEFAULT_SEED)) % _SEEDS
    return {**DEFAULT_SAMPLING, **defaults, **request.options, "seed": seed}


def sample_request(model: str) -> ChatRequest:
    """A short question, to time a model by."""
    return ChatRequest(model, "What is rain? Answer in one sentence.", options=_SAMPLE)


_SAMPLE = {"seed": 1, "num_predict": 48, "temperature": 0.0}


def _message(request: ChatRequest) -> dict[str, Any]:
    """Arguments of the client's chat call.

    `think` is false because only answers enter the corpus: a model that reasons by default would
    spend all of num_predict on it and return an empty answer.
    """
    system = [{"role": "system", "content": request.system}] if request.system else []
    return {
        "model": request.model,
        "messages": [*system, {"role": "user", "content": request.prompt}],
        "stream": True,
        "think": False,
        "format": request.format or None,
        "options": options_sent(request),
    }


class _Abandonable(ThreadPoolExecutor):
    """Daemon threads: a silent name server delays neither `ask` nor exit.

    The event loop resolves names here, and would otherwise wait for the threads when it closes.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in a new daemon thread."""
        future: Future[T] = Future()

        def run() -> None:
            """Call `fn` and pass on its result or exception."""
            future.set_running_or_notify_cancel()
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future
