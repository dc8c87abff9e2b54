"""A connection whose client must send its next request's headers in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Protocol = Callable[..., asyncio.Protocol]


class PatientConnection(asyncio.Protocol):
    """Passes everything on to uvicorn's protocol, and closes what says nothing for long.

    uvicorn itself waits for ever for the end of the headers.
    """

    def __init__(self, inner: H11Protocol, header_seconds: float) -> None:
        self._inner, self._seconds = inner, header_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Pass it on; the wait ends with the headers, and begins again after the answer."""
        self._inner.data_received(data)
        self._watch()

    def eof_received(self) -> None:
        """Pass it on."""
        self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()

    def _watch(self) -> None:
        cycle: Any = self._inner.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering:
            self._stop()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        cycle: Any = self._inner.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if self._transport is not None and not is_answering:
            self._transport.close()


def patient(header_seconds: float) -> Protocol:
    """What uvicorn takes for `http`."""

    def connection(**arguments: Any) -> asyncio.Protocol:
        """A connection with uvicorn's arguments."""
        return PatientConnection(H11Protocol(**arguments), header_seconds)

    return connection
