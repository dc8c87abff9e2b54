"""What one request, and all of them together, may take; and the errors that say so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import Receive, Scope

MEGABYTE = 1_000_000


class ApiError(Exception):
    """What the client is told, with its status; `param` is the field that is wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


class ClientGoneError(Exception):
    """The client closed the connection."""


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes and tokens, times in seconds."""

    body_bytes: int = 16 * MEGABYTE
    all_bodies_bytes: int = 256 * MEGABYTE  # of requests in work or waiting
    header_bytes: int = 16_384
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    answer_seconds: float = 600.0
    answer_tokens: int = 8192
    scored_tokens: int = 65_536  # of a prompt whose tokens are scored
    choices: int = 128  # answers to one request
    connections: int = 1024
    kept_bytes: int = 64 * MEGABYTE
    cache_bytes: int = 64 * MEGABYTE


class BodyBudget:
    """The bytes of all bodies that are held at the moment."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._n_held = limits, 0

    @contextmanager
    def held(self) -> Iterator[list[int]]:
        """Count what is appended to the list, until the context ends."""
        sizes: list[int] = []
        try:
            yield sizes
        finally:
            self._n_held -= sum(sizes)

    async def read(self, scope: Scope, receive: Receive, sizes: list[int]) -> bytes:
        """The body of a request; ApiError where it is too large or too slow."""
        limits = self._limits
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and len(declared) < 16 and int(declared) > limits.body_bytes:
            raise _too_large(limits)
        parts = []
        try:
            async with asyncio.timeout(limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    self._count(sizes, len(parts[-1]))
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            problem = f"the body did not arrive within {limits.body_seconds:g} s"
            raise ApiError(408, problem) from None

    def _count(self, sizes: list[int], n_bytes: int) -> None:
        sizes.append(n_bytes)
        self._n_held += n_bytes
        if sum(sizes) > self._limits.body_bytes:
            raise _too_large(self._limits)
        if self._n_held > self._limits.all_bodies_bytes:
            raise busy()


def busy() -> ApiError:
    """The queue is full; in ollama's words, which clients look for."""
    return ApiError(503, "server busy, please try again.  maximum pending requests exceeded")


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body is larger than {limits.body_bytes:,} bytes")
