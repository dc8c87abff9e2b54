"""Who may ask: pages of other origins may not, nor names that were bound to this address.

A web page of a stranger can send requests to a server on the reader's own machine: directly, with
its own `Origin`, or after its name was bound to 127.0.0.1 (DNS rebinding), with its own `Host`.
Both are refused. Beyond loopback, an API key is asked for.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ys_llm.serving.exchange import Exchange
from ys_llm.serving.limits import ApiError
from ys_llm.serving.routes import dialect_of

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?", re.ASCII)
_OPEN_PATHS = ("/", "/web/")  # the page itself: whoever sees it must still give the key
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Access:
    """`host` is the address that the server listens on; `origins` are those of allowed pages."""

    host: str = "127.0.0.1"
    api_key: str = ""
    origins: frozenset[str] = frozenset()


class Guard:
    """Refuses what may not ask, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            """Add the headers."""
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["content-security-policy"] = _PAGE_POLICY
                headers["cross-origin-resource-policy"] = "same-origin"
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            told = dialect_of(scope["path"]).error_body(error)
            await Exchange(scope, b"", send_guarded).send_json(told, status=error.status)
            return
        await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        host = _single(scope, b"host")
        match = _HOST.fullmatch(host.lower())
        if match is None:
            raise ApiError(400, "the header Host is missing, or no host")
        own = {*_LOOPBACK, self._access.host.lower()}
        if not self._access.api_key and match[1] not in own:
            raise ApiError(403, "the header Host names another host than this server")
        self._check_origin(scope, host)
        if scope["path"] not in _OPEN_PATHS[:1] and not scope["path"].startswith(_OPEN_PATHS[1]):
            self._check_key(scope)

    def _check_origin(self, scope: Scope, host: str) -> None:
        origin = _single(scope, b"origin")
        same = {f"http://{host}".lower(), f"https://{host}".lower()}
        if origin and origin.lower() not in same | self._access.origins:
            raise ApiError(403, "pages of other origins may not use this server")
        if not origin and _single(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            mode = _single(scope, b"sec-fetch-mode")
            if mode != "navigate" or scope["path"] != "/":
                raise ApiError(403, "pages of other origins may not use this server")

    def _check_key(self, scope: Scope) -> None:
        key = self._access.api_key
        if not key or scope["method"] == "OPTIONS":
            return
        given = _single(scope, b"authorization").partition(" ")
        is_right = hmac.compare_digest(given[2].strip().encode(), key.encode())
        if given[0].lower() != "bearer" or not is_right:
            raise ApiError(401, "the API key is missing or wrong: send Authorization: Bearer KEY")


def _single(scope: Scope, name: bytes) -> str:
    """The value of a header; "" without one. ApiError where there are several."""
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise ApiError(400, f"there are {len(values)} headers {name.decode()}")
    return values[0].decode("latin-1") if values else ""
