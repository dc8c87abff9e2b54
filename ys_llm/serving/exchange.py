"""One HTTP exchange: its body, the answer in one piece or as a stream, and a client that leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from ys_llm.errors import UserError
from ys_llm.serving.limits import ApiError, BodyBudget, ClientGoneError, Limits
from ys_llm.serving.metrics import Metrics

NDJSON, SSE = "application/x-ndjson", "text/event-stream"
_TELL_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


def to_bytes(value: Any) -> bytes:
    """The value as JSON; a number that is not finite, which JSON does not have, as null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False).encode()


def line(value: Any) -> bytes:
    """A line of NDJSON."""
    return to_bytes(value) + b"\n"


def server_sent(value: Any) -> bytes:
    """An event of a stream of server-sent events."""
    return b"data: " + to_bytes(value) + b"\n\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


class Exchange:
    """What a handler reads and sends."""

    def __init__(self, scope: Scope, body: bytes, send: Send) -> None:
        self.scope, self.body, self.status = scope, body, 0
        self._send = send

    async def send_json(self, value: Any, *, status: int = 200) -> None:
        """Answer with one value."""
        await self.send_whole(to_bytes(value), "application/json", status=status)

    async def send_whole(self, data: bytes, media_type: str, *, status: int = 200) -> None:
        """Answer with these bytes."""
        length = (b"content-length", b"%d" % len(data))
        await self._start(media_type, status, [length])
        await self._send({"type": "http.response.body", "body": data})

    async def start_stream(self, media_type: str) -> None:
        """Begin an answer that comes in pieces."""
        await self._start(media_type, 200, [(b"cache-control", b"no-store")])

    async def send(self, data: bytes) -> None:
        """Send a piece of a stream, when the client has room for it."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """Nothing more comes."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, media_type: str, status: int, more: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        headers = [(b"content-type", media_type.encode()), *more]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


@dataclass(frozen=True)
class Dialect:
    """How one API tells an error: as a whole answer, and within a stream."""

    error_body: Callable[[ApiError], Mapping[str, Any]]
    error_piece: Callable[[Mapping[str, Any]], bytes]


Handle = Callable[[Exchange], Awaitable[None]]


class Endpoint:
    """An ASGI application that reads a body and hands the exchange to `handle`.

    The handler is cancelled as soon as the client leaves, or when its time is over.
    """

    def __init__(self, path: str, handle: Handle, dialect: Dialect, shared: Shared) -> None:
        self._path, self._handle, self._dialect, self._shared = path, handle, dialect, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(scope, b"", send)
        with self._shared.budget.held() as sizes:
            try:
                exchange.body = await self._shared.budget.read(scope, receive, sizes)
                await self._until_gone(exchange, receive)
            except ClientGoneError:
                exchange.status = 499
            except ApiError as error:
                await self._tell(exchange, error)
            except (UserError, OSError) as error:  # a run's files were damaged or removed
                await self._tell(exchange, ApiError(503, f"the model cannot be used: {error}"))
            except Exception:
                _LOG.exception("a request failed")
                await self._tell(exchange, ApiError(500, "the server failed; its log says why"))
            finally:
                self._shared.metrics.count_request(self._path, exchange.status)

    async def _until_gone(self, exchange: Exchange, receive: Receive) -> None:
        seconds = self._shared.limits.answer_seconds
        work = asyncio.ensure_future(self._handle(exchange))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif gone.done():
                raise ClientGoneError
            else:
                raise ApiError(503, f"the answer took longer than {seconds:g} s")
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _tell(self, exchange: Exchange, error: ApiError) -> None:
        """Send the error: as the answer, or as the last piece of a stream that has begun."""
        body = self._dialect.error_body(error)
        with suppress(TimeoutError):  # a client that does not read is not told: it is cut off
            async with asyncio.timeout(_TELL_SECONDS):
                if exchange.status == 0:
                    await exchange.send_json(body, status=error.status)
                else:
                    await exchange.send(self._dialect.error_piece(body))
                    await exchange.end_stream()


@dataclass(frozen=True)
class Shared:
    """What all endpoints share."""

    limits: Limits
    budget: BodyBudget
    metrics: Metrics


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
