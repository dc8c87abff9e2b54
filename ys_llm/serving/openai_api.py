"""OpenAI's API: /v1/completions, /v1/chat/completions and /v1/models."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.inference.generate import prompt_ids
from ys_llm.inference.generation import Finished, GenerationRequest, PromptRead
from ys_llm.serving.answering import Answering, Services
from ys_llm.serving.bodies import SEEDS, parse, sampling_of
from ys_llm.serving.chat import ChatMessage, Ids, chat_ids, check_messages, pieces_of
from ys_llm.serving.exchange import SSE, Exchange, server_sent
from ys_llm.serving.limits import ApiError, Limits
from ys_llm.serving.models import ServedModel
from ys_llm.serving.openai_bodies import AnswerBody, ChatBody, CompletionBody
from ys_llm.serving.openai_choices import (
    ChatChoice,
    Choice,
    CompletionChoice,
    Partial,
    Prompt,
    joined,
)

_DEFAULT_TOKENS = 16  # of a completion, in OpenAI's reference
_DONE = b"data: [DONE]\n\n"
_TYPES = {401: "authentication_error", 404: "not_found_error"}


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as OpenAI tells it."""
    default = "server_error" if error.status >= 500 else "invalid_request_error"
    described = {"message": error.message, "type": _TYPES.get(error.status, default)}
    code = "model_not_found" if error.status == 404 else None
    return {"error": described | {"param": error.param, "code": code}}


@dataclass
class _Job:
    """One request: what is generated, and the choices that are made of it."""

    body: AnswerBody
    model: ServedModel
    object: str
    requests: Sequence[GenerationRequest]
    choices: Sequence[Choice]

    def head(self) -> dict[str, Any]:
        """What every object of the answer begins with."""
        return {
            "id": f"ys-{secrets.token_hex(12)}",
            "object": self.object,
            "created": int(time.time()),
            "model": self.body.model,
        }


class _Usage:
    """Counts the tokens of all choices; those of a prompt once for its `n` choices."""

    def __init__(self, n: int) -> None:
        self._n, self._prompt, self._cached, self._answer = n, 0, 0, 0

    def note(self, number: int, event: object) -> None:
        """Add what has happened to a choice."""
        if isinstance(event, PromptRead) and number % self._n == 0:
            self._prompt += event.n_tokens
            self._cached += event.n_cached
        elif isinstance(event, Finished):
            self._answer += event.n_tokens

    def to_json(self) -> dict[str, Any]:
        """The object `usage`."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._answer,
            "total_tokens": self._prompt + self._answer,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


class OpenAIApi:
    """Handlers of OpenAI's requests."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        listed = [_listed(model) for model in self._services.models]
        await exchange.send_json({"object": "list", "data": listed})

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/NAME."""
        name = exchange.scope["path_params"]["name"]
        await exchange.send_json(_listed(self._services.models.find(name)))

    async def completions(self, exchange: Exchange) -> None:
        """POST /v1/completions: texts that go on, each after an `<end>` that is not shown."""
        body = parse(CompletionBody, exchange.body)
        model = self._services.models.find(body.model)
        loaded = (await self._services.models.ready(model)).loaded
        limits, is_scored = self._services.limits, bool(body.echo and body.logprobs is not None)
        prompts = _prompts(body)
        _check_choices(len(prompts) * (body.n or 1), limits)
        max_tokens = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        changes = body.sampling()
        default = loaded.config.generate
        sampling = sampling_of(default, changes, max_tokens=max_tokens, limits=limits)
        requests, choices = [], list[Choice]()
        for prompt in prompts:
            ids, shown = _read(prompt, loaded.tokenizer)
            if is_scored:
                ids = _short_enough(ids, limits)
            for one in _seeded(sampling, body.n or 1):
                requests.append(
                    GenerationRequest(
                        ids,
                        one,
                        stop=body.stops(),
                        n_candidates=body.logprobs or 0,
                        score_prompt=is_scored,
                    )
                )
                choices.append(CompletionChoice(body, loaded.tokenizer, shown))
        await self._answer(exchange, _Job(body, model, "text_completion", requests, choices))

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        body = parse(ChatBody, exchange.body)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
        messages = [
            ChatMessage("system" if one.role == "developer" else one.role, one.text())
            for one in body.messages
        ]
        check_messages(messages)
        model, n = self._services.models.find(body.model), body.n or 1
        _check_choices(n, self._services.limits)
        loaded = (await self._services.models.ready(model)).loaded
        sampling = sampling_of(
            loaded.config.generate,
            body.sampling(),
            max_tokens=body.most_tokens,
            limits=self._services.limits,
        )
        ids = Ids(partial(chat_ids, loaded, messages))
        requests = [
            GenerationRequest(ids, one, stop=body.stops(), n_candidates=body.top_logprobs or 0)
            for one in _seeded(sampling, n)
        ]
        choices = [ChatChoice(body, loaded.tokenizer) for _ in requests]
        await self._answer(exchange, _Job(body, model, "chat.completion", requests, choices))

    async def _answer(self, exchange: Exchange, job: _Job) -> None:
        answering, head, usage = (
            Answering(self._services, job.model, job.requests),
            job.head(),
            _Usage(job.body.n or 1),
        )
        if job.body.stream:
            await self._stream(exchange, job, answering)
            return
        parts: list[list[Partial]] = [[] for _ in job.choices]
        async with aclosing(answering.groups()) as groups:
            async for group in groups:
                for number, event in group:
                    usage.note(number, event)
                    if (part := job.choices[number].part(event)) is not None:
                        parts[number].append(part)
        choices = [
            {"index": i, **choice.whole(joined(parts[i]))} for i, choice in enumerate(job.choices)
        ]
        await exchange.send_json(head | {"choices": choices, "usage": usage.to_json()})

    async def _stream(self, exchange: Exchange, job: _Job, answering: Answering) -> None:
        head, usage, is_started = job.head(), _Usage(job.body.n or 1), False
        if job.object == "chat.completion":
            head["object"] += ".chunk"
        async with aclosing(answering.groups()) as groups:
            async for group in groups:
                if not is_started:
                    await exchange.start_stream(SSE)
                    is_started = True
                pieces = []
                for number, event in group:
                    usage.note(number, event)
                    if (part := job.choices[number].part(event)) is not None:
                        chunk = {"index": number, **job.choices[number].chunk(part)}
                        pieces.append(server_sent(head | {"choices": [chunk]}))
                if pieces:
                    await exchange.send(b"".join(pieces))
        if job.body.tells_usage:
            last = head | {"choices": [], "usage": usage.to_json()}
            await exchange.send(server_sent(last))
        await exchange.send(_DONE)
        await exchange.end_stream()


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    """The prompts: one, or a list of texts or of ids."""
    prompt: Any = body.prompt
    is_list = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return list(prompt) if is_list else [prompt]


def _read(prompt: str | list[int], tokenizer: Tokenizer) -> tuple[Ids, Prompt]:
    """What is read for a prompt, which begins with `<end>`, and what is shown of it."""
    if isinstance(prompt, str):
        ids = Ids(lambda: prompt_ids(tokenizer, pieces_of(prompt), raw=True))
        return ids, Prompt(prompt, n_hidden=1)
    if max(prompt) >= tokenizer.vocab_size:
        problem = f"prompt: an id is at least {tokenizer.vocab_size}, the size of the vocabulary"
        raise ApiError(400, problem, param="prompt")
    is_begun = prompt[0] == tokenizer.end_id
    whole = prompt if is_begun else [tokenizer.end_id, *prompt]
    return Ids(lambda: iter(whole)), Prompt(tokenizer.decode(prompt), n_hidden=not is_begun)


def _short_enough(ids: Ids, limits: Limits) -> Ids:
    """The ids, counted as they are read; each will have a score, and all are sent together."""

    def counted() -> Iterator[int]:
        """The ids up to the limit."""
        for number, id in enumerate(ids):
            if number > limits.scored_tokens:
                most = f"at most {limits.scored_tokens:,} tokens of a prompt are scored"
                raise ApiError(400, most, param="prompt")
            yield id

    return Ids(counted)


def _check_choices(n: int, limits: Limits) -> None:
    if n > limits.choices:
        raise ApiError(400, f"n: at most {limits.choices} answers to one request", param="n")


def _seeded(sampling: GenerateConfig, n: int) -> list[GenerateConfig]:
    """The settings of each of n answers, which differ in their seeds."""
    if sampling.seed is None:
        return [sampling] * n
    return [replace(sampling, seed=(sampling.seed + i) % SEEDS) for i in range(n)]


def _listed(model: ServedModel) -> dict[str, Any]:
    created = int(model.weights.stat().st_mtime)
    return {"id": model.name, "object": "model", "created": created, "owned_by": "ys"}
