"""Failures of ollama: one class each, one line for the user, and what to type.

The client raises a dozen exception types from four libraries; `failure_of` translates them all.
"""

import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import ollama

from ys_llm.errors import EXIT_BACKEND_DOWN, UserError

PORT = 11434
_SHOWN_CHARS = 160  # of the server's message, inside one line of ours
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BUSY = (429, 503)
_CONTEXT = re.compile(
    r"context (?:length|size|window)|num_ctx|n_ctx|too (?:long|many tokens)", re.I
)
# What the client raises for a malformed line: errors of JSON and pydantic are ValueErrors; a line
# or an error text that is JSON but not an object causes an AttributeError.
_UNREADABLE = (ValueError, AttributeError, TypeError)


class BackendDownError(UserError):
    """Nothing answers at the address, or not with ollama's protocol."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix, exit_code=EXIT_BACKEND_DOWN)


class ModelMissingError(UserError):
    """The server does not have the model."""


class RefusedError(UserError):
    """The server will never answer this request: it is invalid, or not allowed."""


class DidNotFitError(RefusedError):
    """The prompt is longer than the context that was asked for."""


class EmptyAnswerError(UserError):
    """The answer has no text; the same seed would give the same."""


class TransientError(UserError):
    """A failure that may be temporary; `reason` is one word, `tries` the number of tries."""

    def __init__(self, address: str, reason: str, *, happened: str, tries: int = 1) -> None:
        times = "" if tries == 1 else f" {tries} times, the last time"
        super().__init__(
            f"the server at {address} failed{times}: {happened}",
            "Check the output of the server (`ollama serve`), then repeat the command.",
            exit_code=EXIT_BACKEND_DOWN,
        )
        self.address, self.reason, self.happened, self.tries = address, reason, happened, tries

    def after(self, tries: int) -> "TransientError":
        """The same failure after this many tries."""
        return TransientError(self.address, self.reason, happened=self.happened, tries=tries)


class StoppedError(Exception):
    """`should_stop` was true; the request is closed."""


def failure_of(error: Exception, address: str, model: str) -> UserError | None:
    """Our exception for one of the client's; None for an exception it is not known to raise."""
    if isinstance(error, ollama.ResponseError):
        return of_status(error.status_code, error.error, address=address, model=model)
    if _is_down(error):
        return backend_down(address, _why_unreachable(error))
    if isinstance(error, httpx.TimeoutException):
        return TransientError(address, "stall", happened="it stopped responding")
    if isinstance(error, httpx.TransportError | OSError):
        return TransientError(address, "reset", happened="the connection was closed")
    if isinstance(error, _UNREADABLE):
        happened = f"it sent a malformed line ({shorten(str(error))})"
        return TransientError(address, "bad-line", happened=happened)
    return None


def backend_down(address: str, why: str) -> BackendDownError:
    """Nothing answers; the fix depends on the address."""
    return BackendDownError(f"ollama does not answer at {address}: {why}", _how_to_reach(address))


def model_missing(address: str, model: str, models: tuple[str, ...] = ()) -> ModelMissingError:
    """The server lacks this model; `models` are those it has."""
    where = "" if _is_here(address) else f"OLLAMA_HOST={address} "
    fix = f"Type `{where}ollama pull {model}`"
    if models:
        fix += f", or use one that it has: --model {' or '.join(models[:8])}"
    return ModelMissingError(f"ollama at {address} has no model {model!r}", f"{fix}.")


def shorten(text: str) -> str:
    """The text as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 3]}..."


def of_status(status: int, message: object, *, address: str, model: str) -> UserError:
    """The failure behind an HTTP status; the client uses -1 for an error line in an answer."""
    text = shorten(str(message))
    if status == -1:
        return TransientError(address, "error-line", happened=f"error in its answer: {text}")
    if status in _BUSY:
        return TransientError(address, "busy", happened=f"it is busy ({text})")
    if status >= 500:
        return TransientError(address, "failed", happened=f"status {status}: {text}")
    if status == 404 and "model" in text:
        return model_missing(address, model)
    if status == 404 or status < 400:
        return backend_down(address, f"the server there is not ollama (status {status})")
    if status in (401, 403):
        fix = "Set OLLAMA_API_KEY if the server wants a key, or choose another --model or --host."
        return RefusedError(f"the server at {address} does not allow it: {text}", fix)
    if _CONTEXT.search(text):
        return DidNotFitError(
            f"the server at {address}: the prompt did not fit: {text}",
            "Raise sampling.num_ctx in the kind file, or shorten the prompt.",
        )
    return RefusedError(
        f"the server at {address} refuses the request (status {status}): {text}",
        "Change the kind's options, format or model; `ollama show MODEL` says what a model takes.",
    )


def _is_down(error: Exception) -> bool:
    """Whether no connection was made; plain calls of the client wrap the error, streams do not."""
    never = (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, httpx.UnsupportedProtocol)
    return isinstance(error, never) or type(error) is ConnectionError


def _why_unreachable(error: BaseException) -> str:
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "the host name is unknown"
    if any(isinstance(cause, httpx.ConnectTimeout) for cause in causes):
        return "the connection timed out"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "the connection was refused"
    return shorten(str(causes[-1])) or type(causes[-1]).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            yield from error.exceptions
        error = error.__cause__ or error.__context__


def _how_to_reach(address: str) -> str:
    parts = urlsplit(address)
    if parts.port in (80, 443):
        listens = f"ollama listens on port {PORT}: --host {parts.scheme}://{parts.hostname}:{PORT}"
        return f"An address with {parts.scheme}:// and no port means {parts.port}; {listens}."
    if parts.hostname in _LOOPBACK:
        return f"Type `ollama serve` to start it, or add --host NAME:{PORT} if it runs elsewhere."
    return (
        "Start it there with `OLLAMA_HOST=0.0.0.0 ollama serve` (by default it listens on "
        f"localhost only), or add --host NAME:{PORT} if it runs elsewhere."
    )


def _is_here(address: str) -> bool:
    parts = urlsplit(address)
    return parts.hostname in _LOOPBACK and parts.port == PORT
