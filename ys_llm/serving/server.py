"""The server: its routes behind the guard, and its life from the first model to the last answer."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ys_llm.errors import UserError
from ys_llm.serving.answering import Services
from ys_llm.serving.connections import patient
from ys_llm.serving.exchange import Endpoint, Exchange, Handle, Shared
from ys_llm.serving.guard import Access, Guard
from ys_llm.serving.limits import ApiError, BodyBudget, Limits
from ys_llm.serving.metrics import Metrics
from ys_llm.serving.models import Load, Models
from ys_llm.serving.openapi import openapi
from ys_llm.serving.pages import page_handlers
from ys_llm.serving.routes import OLLAMA, RouteInfo, dialect_of, refused, routes
from ys_llm.serving.states import KeptStates

_KEEP_ALIVE_SECONDS = 30  # clients of httpx drop an idle connection after 5: they must be first
_GRACE_SECONDS = 2  # for answers in work, when the server is stopped


@dataclass(frozen=True)
class Serving:
    """What to serve, and to whom; `load` makes a run ready to be used."""

    runs: Mapping[str, Path]
    load: Load
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)


def application(serving: Serving, announce: Callable[[], None] = lambda: None) -> Starlette:
    """The ASGI application; `announce` is called when the first model is loaded."""
    limits, metrics = serving.limits, Metrics()
    models = Models(serving.runs, serving.load, limits, metrics)
    shared = Shared(limits, BodyBudget(limits), metrics)
    services = Services(models, KeptStates(limits.kept_bytes), limits)
    table = routes(services)
    described = openapi(table, model_names=list(serving.runs))
    plain: dict[str, Handle] = {
        "/openapi.json": partial(_send_json, described),
        "/metrics": partial(_send_metrics, metrics, models),
        **page_handlers(),
    }
    every = [*table, *refused(services)]
    every += [RouteInfo("GET", path, "", handle, OLLAMA) for path, handle in plain.items()]
    return Starlette(
        routes=[_route(info, shared) for info in every],
        middleware=_middleware(serving.access),
        exception_handlers={HTTPException: _refusal},
        lifespan=partial(_life, models, announce),
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; UserError where the address cannot be had.

    Its connections send at once. Otherwise the first token would wait for the client to acknowledge
    the headers before it, 40 ms on Linux; asyncio sees to that only where the protocol is named.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem, fix = f"port {port} is in use", "Give another one with --port; 0 finds one."
        else:
            problem, fix = f"cannot listen on {host}:{port}: {error.strerror}", "Check --host."
        raise UserError(problem, fix) from error


def serve(serving: Serving, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until a signal comes."""
    server_for(serving, announce).run(sockets=[listener])


def server_for(serving: Serving, announce: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """The server, not yet running."""
    limits = serving.limits
    config = uvicorn.Config(
        application(serving, announce),
        http=patient(limits.header_seconds),  # type: ignore[arg-type]  # anything that makes one
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def _route(info: RouteInfo, shared: Shared) -> BaseRoute:
    endpoint = Endpoint(info.path, info.handle, info.dialect, shared)
    return Route(info.path, endpoint, methods=[info.method])


def _middleware(access: Access) -> list[Middleware]:
    guard = Middleware(Guard, access=access)
    if not access.origins:
        return [guard]
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=sorted(access.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
    )
    return [guard, allowed]


@asynccontextmanager
async def _life(
    models: Models, announce: Callable[[], None], app: Starlette
) -> AsyncIterator[None]:
    """Load the first model, so that a damaged one is found at once."""
    await models.ready(next(iter(models)))
    cleaning = asyncio.create_task(models.unload_idle())
    announce()
    try:
        yield
    finally:
        cleaning.cancel()
        with suppress(asyncio.CancelledError):
            await cleaning
        await models.close()


async def _refusal(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    problem = ApiError(error.status_code, f"{request.method} {request.url.path} is not supported")
    told = dialect_of(request.url.path).error_body(problem)
    return JSONResponse(told, status_code=error.status_code, headers=error.headers)


async def _send_json(value: object, exchange: Exchange) -> None:
    await exchange.send_json(value)


async def _send_metrics(metrics: Metrics, models: Models, exchange: Exchange) -> None:
    text = metrics.text(models.gauges)
    await exchange.send_whole(text.encode(), "text/plain; version=0.0.4; charset=utf-8")
