"""ollama's protocol: /api/generate and /api/chat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ys_llm.data.tokenizer import Tokenizer
from ys_llm.inference.generate import prompt_ids
from ys_llm.inference.generation import Drawn, Finished, GenerationRequest, PromptRead
from ys_llm.inference.kept import Kept, ids_after
from ys_llm.inference.scheduler import Scheduler
from ys_llm.serving.answering import Answering, Services, Whole
from ys_llm.serving.bodies import parse, sampling_of
from ys_llm.serving.chat import ChatMessage, chat_ids, check_messages, pieces_of
from ys_llm.serving.exchange import NDJSON, Exchange, line
from ys_llm.serving.limits import ApiError
from ys_llm.serving.models import KEEP_ALIVE_SECONDS, ServedModel
from ys_llm.serving.ollama_bodies import AnswerBody, ChatBody, GenerateBody, Options, seconds_of
from ys_llm.serving.openai_logprobs import token_logprob
from ys_llm.serving.states import text_of, words_of

_NANOSECONDS = 1e9
Wrap = Callable[[str], dict[str, Any]]


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as ollama tells it."""
    return {"error": error.message}


def now() -> str:
    """The time as ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class _Job:
    """One request: what to generate, and how its answer is wrapped."""

    body: AnswerBody
    model: ServedModel
    wrap: Wrap
    tokenizer: Tokenizer
    began: float
    load_seconds: float


class OllamaApi:
    """Handlers of the two requests that generate."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def generate(self, exchange: Exchange) -> None:
        """POST /api/generate."""
        body = parse(GenerateBody, exchange.body)
        if body.raw and body.system:
            raise ApiError(400, "raw mode does not support system", param="system")
        job, scheduler = await self._job(body, _response)
        if not body.prompt and body.context is None:
            await self._load_or_unload(exchange, job)
            return
        kept = None
        if body.context is not None:
            kept = self._services.states.find(job.model.identity, text_of(body.context))
        prompt = "\n\n".join(text for text in (body.system, body.prompt) if text)
        ids = _prompt_after(scheduler, kept, prompt, raw=bool(body.raw))
        await self._answer(exchange, job, self._request(body, scheduler, ids, kept))

    async def chat(self, exchange: Exchange) -> None:
        """POST /api/chat."""
        body = parse(ChatBody, exchange.body)
        job, scheduler = await self._job(body, _message)
        if not body.messages:
            await self._load_or_unload(exchange, job)
            return
        messages = [ChatMessage(message.role, message.content) for message in body.messages]
        check_messages(messages)
        ids = chat_ids(scheduler.loaded, messages)
        await self._answer(exchange, job, self._request(body, scheduler, ids, None))

    async def _job(self, body: AnswerBody, wrap: Wrap) -> tuple[_Job, Scheduler]:
        began, models = time.perf_counter(), self._services.models
        model = models.find(body.model)
        if body.keep_alive is not None:
            seconds_of(body.keep_alive)  # a wrong one is refused before anything is loaded
        scheduler = await models.ready(model)
        load_seconds = time.perf_counter() - began
        return _Job(body, model, wrap, scheduler.loaded.tokenizer, began, load_seconds), scheduler

    def _request(
        self,
        body: AnswerBody,
        scheduler: Scheduler,
        ids: Iterator[int],
        kept: Kept | None,
    ) -> GenerationRequest:
        options = body.options or Options()
        return GenerationRequest(
            ids,
            sampling_of(
                scheduler.loaded.config.generate,
                options.sampling(),
                max_tokens=options.num_predict,
                limits=self._services.limits,
            ),
            after=kept,
            stop=options.stops(),
            n_candidates=body.n_candidates(),
            keep="last" if isinstance(body, GenerateBody) else "none",
        )

    async def _answer(self, exchange: Exchange, job: _Job, request: GenerationRequest) -> None:
        answering = Answering(self._services, job.model, [request])
        try:
            if job.body.stream:
                await self._stream(exchange, job, answering)
            else:
                (whole,) = await answering.wholes()
                logprobs = [entry for one in whole.drawn for entry in _logprobs(job, one)]
                await exchange.send_json(self._last(job, whole, whole.text, logprobs))
        finally:
            await self._keep_alive(job)

    async def _stream(self, exchange: Exchange, job: _Job, answering: Answering) -> None:
        whole = Whole()
        async with aclosing(answering.groups()) as groups:
            async for group in groups:
                lines, head = [], _head(job)  # one time for tokens that come together
                for _, event in group:
                    if isinstance(event, PromptRead):
                        whole.read = event
                        await exchange.start_stream(NDJSON)
                    elif isinstance(event, Drawn):
                        lines.append(self._piece(job, head, event))
                    elif isinstance(event, Finished):
                        whole.finished = event
                        lines.append(line(self._last(job, whole, event.text, [])))
                if lines:
                    await exchange.send(b"".join(lines))
        await exchange.end_stream()

    def _piece(self, job: _Job, head: dict[str, Any], drawn: Drawn) -> bytes:
        """A line with a piece of the text; none where a token has no text, as `<end>`."""
        logprobs = _logprobs(job, drawn)
        if not drawn.text and not logprobs:
            return b""
        more = {"logprobs": logprobs} if logprobs else {}
        return line(head | job.wrap(drawn.text) | {"done": False} | more)

    def _last(
        self, job: _Job, whole: Whole, text: str, logprobs: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """The object that ends an answer."""
        assert whole.read is not None and whole.finished is not None
        read, finished = whole.read, whole.finished
        described = _head(job) | job.wrap(text) | {"done": True, "done_reason": finished.reason}
        if finished.kept is not None:
            handle = self._services.states.add(job.model.identity, finished.kept)
            described["context"] = words_of(handle)
        if logprobs:
            described["logprobs"] = list(logprobs)
        return described | {
            "total_duration": _nanoseconds(time.perf_counter() - job.began),
            "load_duration": _nanoseconds(job.load_seconds),
            "prompt_eval_count": read.n_tokens,
            "prompt_eval_duration": _nanoseconds(finished.prompt_seconds),
            "eval_count": finished.n_tokens,
            "eval_duration": _nanoseconds(finished.answer_seconds),
        }

    async def _load_or_unload(self, exchange: Exchange, job: _Job) -> None:
        """What an empty prompt means: load the model, or with `keep_alive: 0` unload it."""
        is_unloaded = await self._keep_alive(job)
        reason = "unload" if is_unloaded else "load"
        answer = _head(job) | job.wrap("") | {"done": True, "done_reason": reason}
        if job.body.stream:
            await exchange.start_stream(NDJSON)
            await exchange.send(line(answer))
            await exchange.end_stream()
        else:
            await exchange.send_json(answer)

    async def _keep_alive(self, job: _Job) -> bool:
        """Set how long the model stays; whether it was unloaded at once."""
        models, wanted = self._services.models, job.body.keep_alive
        seconds = KEEP_ALIVE_SECONDS if wanted is None else seconds_of(wanted)
        models.keep_alive(job.model, seconds)
        scheduler = job.model.scheduler
        if seconds == 0 and scheduler is not None and scheduler.is_idle:
            await models.unload(job.model)
            return True
        return False


def _response(text: str) -> dict[str, Any]:
    return {"response": text}


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _prompt_after(
    scheduler: Scheduler, kept: Kept | None, prompt: str, *, raw: bool
) -> Iterator[int]:
    loaded = scheduler.loaded
    raw, pieces = raw or not loaded.has_records, pieces_of(prompt)
    if kept is None:
        return prompt_ids(loaded.tokenizer, pieces, raw=raw, chats=loaded.chats)
    text = pieces if prompt else None
    return ids_after(kept, loaded.tokenizer, text, raw=raw, chats=loaded.chats)


def _head(job: _Job) -> dict[str, Any]:
    return {"model": job.body.model, "created_at": now()}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)


def _logprobs(job: _Job, drawn: Drawn) -> list[dict[str, Any]]:
    """The token with its log-probability, where that was asked for."""
    if not job.body.logprobs:
        return []
    token = drawn.token
    entry = token_logprob(job.tokenizer, token.id, token.logprob)
    if job.body.top_logprobs:
        top = token.candidates
        entry["top_logprobs"] = [token_logprob(job.tokenizer, c.id, c.logprob) for c in top]
    return [entry]
