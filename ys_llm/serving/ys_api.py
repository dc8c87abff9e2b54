"""The server's own API, for its page: what can be seen of each token, and states to fork."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from itertools import chain
from math import exp
from typing import Annotated, Any

from pydantic import Field

from ys_llm.errors import UserError
from ys_llm.inference.explain import Explained
from ys_llm.inference.generate import prompt_ids
from ys_llm.inference.generation import Drawn, Event, Finished, GenerationRequest, PromptRead
from ys_llm.inference.kept import Kept, ids_after
from ys_llm.inference.memories import NOTHING_MUTED, Muted, memories_called, memory_names
from ys_llm.inference.scheduler import Scheduler
from ys_llm.runs.model_files import LoadedRun
from ys_llm.serving.answering import Answering, Services
from ys_llm.serving.bodies import (
    Body,
    Candidates,
    MinP,
    Penalty,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    parse,
    sampling_of,
)
from ys_llm.serving.chat import ChatMessage, chat_ids, pieces_of
from ys_llm.serving.exchange import NDJSON, Exchange, line
from ys_llm.serving.limits import ApiError
from ys_llm.serving.models import ServedModel
from ys_llm.serving.ollama_models import short_count

Name = Annotated[str, Field(max_length=1000)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]


class GenerateBody(Body):
    """POST /ys/generate.

    `prompt` is answered, or with `raw` continued, after the state of `context`; without a prompt
    the text of `context` goes on. `system` comes before the prompt of a new text. `ids` are read
    after that, as the beginning of what is generated. `muted` names memories that are empty for all
    that is read and generated. `contexts` gives a handle before each token.
    """

    model: Name
    prompt: str | None = None
    system: str = ""
    raw: bool = False
    context: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    ids: list[Id] = Field(default_factory=list, max_length=10_000)
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repetition_penalty: Penalty | None = None
    seed: Seed | None = None
    max_tokens: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    stop: Stops = Field(default_factory=list)
    candidates: Candidates = 0
    explain: bool = False
    contexts: bool = False
    muted: list[Name] = Field(default_factory=list, max_length=64)


class YsApi:
    """Handlers of the server's own requests."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def models(self, exchange: Exchange) -> None:
        """GET /ys/models: names and what a page needs to know; loads those that are not loaded."""
        described = []
        for model in self._services.models:
            loaded = (await self._services.models.ready(model)).loaded
            described.append(_described(model, loaded))
        await exchange.send_json({"models": described})

    async def generate(self, exchange: Exchange) -> None:
        """POST /ys/generate: lines of JSON, `read`, then `token` for each, then `done`."""
        body, services = parse(GenerateBody, exchange.body), self._services
        model = services.models.find(body.model)
        scheduler = await services.models.ready(model)
        kept = None if body.context is None else services.states.find(model.identity, body.context)
        _check_ids(body, scheduler)
        _check_system(body)
        changes = body.model_dump(
            include={"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"}
        )
        default = scheduler.loaded.config.generate
        request = GenerationRequest(
            _ids(body, scheduler.loaded, kept),
            sampling_of(default, changes, max_tokens=body.max_tokens, limits=services.limits),
            after=kept,
            stop=tuple(body.stop),
            muted=_muted(body, scheduler.loaded),
            n_candidates=body.candidates,
            explain=body.explain,
            keep="each" if body.contexts else "last",
        )
        await self._stream(exchange, model, scheduler.loaded, request)

    async def _stream(
        self, exchange: Exchange, model: ServedModel, loaded: LoadedRun, request: GenerationRequest
    ) -> None:
        answering, is_started = Answering(self._services, model, [request]), False
        async with aclosing(answering.groups()) as groups:
            async for group in groups:
                if not is_started:
                    await exchange.start_stream(NDJSON)
                    is_started = True
                told = [self._told(event, model, loaded) for _, event in group]
                await exchange.send(b"".join(map(line, told)))
        await exchange.end_stream()

    def _told(self, event: Event, model: ServedModel, loaded: LoadedRun) -> dict[str, Any]:
        """An event as the object of its line."""
        match event:
            case PromptRead():
                counts = {"prompt_tokens": event.n_tokens, "cached_tokens": event.n_cached}
                return {"type": "read", **counts}
            case Drawn():
                return self._token(event, model, loaded)
            case Finished():
                return {
                    "type": "done",
                    "text": event.text,
                    "reason": event.reason,
                    "tokens": event.n_tokens,
                    "prompt_seconds": event.prompt_seconds,
                    "answer_seconds": event.answer_seconds,
                    "context": self._handle(model, event.kept),
                }
        raise event.error

    def _token(self, drawn: Drawn, model: ServedModel, loaded: LoadedRun) -> dict[str, Any]:
        token, text = drawn.token, loaded.tokenizer.token_text
        told = {
            "type": "token",
            "id": token.id,
            "text": drawn.text,
            "token": text(token.id),
            "logprob": token.logprob,
            "candidates": [
                {"id": one.id, "token": text(one.id), "probability": exp(one.logprob)}
                for one in token.candidates
            ],
        }
        if drawn.explained is not None:
            told |= _explained(drawn.explained)
        if drawn.before is not None:
            told["context"] = self._handle(model, drawn.before)
        return told

    def _handle(self, model: ServedModel, kept: Kept | None) -> str | None:
        return None if kept is None else self._services.states.add(model.identity, kept)


def error_body(error: ApiError) -> dict[str, Any]:
    """An error, also as the last line of a stream."""
    return {"type": "error", "error": error.message}


def _check_ids(body: GenerateBody, scheduler: Scheduler) -> None:
    size = scheduler.loaded.tokenizer.vocab_size
    if max(body.ids, default=0) >= size:
        raise ApiError(400, f"ids: one is at least {size}, the size of the vocabulary", param="ids")


def _check_system(body: GenerateBody) -> None:
    if body.system and (body.prompt is None or body.raw or body.context is not None):
        raise ApiError(400, "system: only the prompt of a new text can have one", param="system")


def _muted(body: GenerateBody, loaded: LoadedRun) -> Muted:
    """The memories that are meant; ApiError where there are none of a name, or none of a layer."""
    try:
        named = [memories_called(loaded.model, name) for name in body.muted]
    except UserError as error:
        raise ApiError(400, f"muted: {error}", param="muted") from None
    return NOTHING_MUTED.union(*named)


def _ids(body: GenerateBody, loaded: LoadedRun, kept: Kept | None) -> Iterator[int]:
    raw, chats, pieces = body.raw or not loaded.has_records, loaded.chats, None
    if body.prompt is not None:
        pieces = pieces_of(body.prompt)
    if body.system:
        asked = [ChatMessage("system", body.system), ChatMessage("user", body.prompt or "")]
        return chain(chat_ids(loaded, asked), body.ids)
    if kept is None:
        begin = prompt_ids(loaded.tokenizer, pieces or (), raw=raw, chats=chats)
        return chain(begin, body.ids)
    return chain(ids_after(kept, loaded.tokenizer, pieces, raw=raw, chats=chats), body.ids)


def _explained(explained: Explained) -> dict[str, Any]:
    return {
        "entropy": explained.entropy,
        "copied": explained.copied,
        "memory": {
            name: {"norm": part.norm, "change": part.change}
            for name, part in explained.memory.items()
        },
    }


def _described(model: ServedModel, loaded: LoadedRun) -> dict[str, Any]:
    generate, described = loaded.config.generate, model.described()
    return {
        "name": model.name,
        "parameters": described.get("parameters"),
        "parameter_size": short_count(int(described.get("parameters", 0))),
        "step": loaded.step,
        "layers": described["layers"],
        "n_layers": described["n_layers"],
        "memories": memory_names(loaded.model),
        "copies": loaded.model.copy_tier is not None,
        "answers": loaded.has_records,
        "chats": loaded.chats,
        "defaults": {
            "temperature": generate.temperature,
            "top_k": generate.top_k,
            "top_p": generate.top_p,
            "min_p": generate.min_p,
            "repetition_penalty": generate.repetition_penalty,
            "max_tokens": generate.max_tokens,
        },
    }
