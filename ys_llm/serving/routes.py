"""Every request that the server knows: the table of its routes and of its description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ys_llm.serving import ollama_api, ollama_bodies, openai_api, openai_bodies, ys_api
from ys_llm.serving.answering import Services
from ys_llm.serving.bodies import Body
from ys_llm.serving.exchange import NDJSON, SSE, Dialect, Handle, line, server_sent
from ys_llm.serving.ollama_api import OllamaApi
from ys_llm.serving.ollama_models import OllamaModels
from ys_llm.serving.openai_api import OpenAIApi
from ys_llm.serving.ys_api import YsApi

OLLAMA = Dialect(ollama_api.error_body, line)
OPENAI = Dialect(openai_api.error_body, server_sent)
YS = Dialect(ys_api.error_body, line)


def dialect_of(path: str) -> Dialect:
    """How errors are told on a path that may not exist."""
    return OPENAI if path.startswith("/v1/") else OLLAMA


@dataclass(frozen=True)
class RouteInfo:
    """One request: `body` is what is sent with it, `streams` the type of an answer in pieces."""

    method: str
    path: str
    summary: str
    handle: Handle
    dialect: Dialect
    body: type[Body] | None = None
    streams: str = ""


def routes(services: Services) -> list[RouteInfo]:
    """The routes, in the order of the description."""
    return [*_ollama(services), *_openai(services), *_own(services)]


def _ollama(services: Services) -> Iterator[RouteInfo]:
    api, models = OllamaApi(services), OllamaModels(services)
    yield RouteInfo(
        *("POST", "/api/generate", "Answer or continue a prompt.", api.generate, OLLAMA),
        *(ollama_bodies.GenerateBody, NDJSON),
    )
    yield RouteInfo(
        *("POST", "/api/chat", "Answer the last message of a conversation.", api.chat, OLLAMA),
        *(ollama_bodies.ChatBody, NDJSON),
    )
    yield RouteInfo("GET", "/api/tags", "The models.", models.tags, OLLAMA)
    yield RouteInfo("GET", "/api/ps", "The models that are loaded.", models.loaded, OLLAMA)
    yield RouteInfo("GET", "/api/version", "The server's version.", models.version, OLLAMA)
    show = ollama_bodies.ShowBody
    yield RouteInfo("POST", "/api/show", "One model in detail.", models.show, OLLAMA, show)


def refused(services: Services) -> Iterator[RouteInfo]:
    """What ollama has and this server does not: its answer says so."""
    refuse = OllamaModels(services).refuse
    for name in ("pull", "push", "create", "copy", "delete", "embed", "embeddings"):
        method = "DELETE" if name == "delete" else "POST"
        yield RouteInfo(method, f"/api/{name}", "Not supported.", refuse, OLLAMA)
    for name in ("embeddings", "responses", "messages"):
        yield RouteInfo("POST", f"/v1/{name}", "Not supported.", refuse, OPENAI)


def _openai(services: Services) -> Iterator[RouteInfo]:
    api = OpenAIApi(services)
    yield RouteInfo(
        *("POST", "/v1/completions", "Continue texts.", api.completions, OPENAI),
        *(openai_bodies.CompletionBody, SSE),
    )
    yield RouteInfo(
        *("POST", "/v1/chat/completions", "Answer the last message.", api.chat, OPENAI),
        *(openai_bodies.ChatBody, SSE),
    )
    yield RouteInfo("GET", "/v1/models", "The models.", api.models, OPENAI)
    yield RouteInfo("GET", "/v1/models/{name}", "One model.", api.model, OPENAI)


def _own(services: Services) -> Iterator[RouteInfo]:
    api = YsApi(services)
    yield RouteInfo(
        *("POST", "/ys/generate", "Tokens, with all that can be seen of them.", api.generate, YS),
        *(ys_api.GenerateBody, NDJSON),
    )
    yield RouteInfo("GET", "/ys/models", "The models, for the page.", api.models, YS)
