"""A server that speaks ollama's protocol and fails on demand.

    with FaultServer("503", "503", "good") as server:
        Ollama(server.address).ask(...)
        server.asked[0].body["options"]

Each word is the fault of one generation, in order of arrival; after the last one, all are good.
FAULTS lists the words. A good answer depends on model, prompt and options alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = "0.99.0-faults"
PARTS_BEFORE = 3  # of an answer that is not going to be whole
DRIP_SECONDS = 0.05  # between the parts of an answer that never ends
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset instead of an orderly end
_ERRORS = {
    "400": "invalid options: temperature",
    "400 context": "the prompt exceeds the available context size: 9000 > 4096 tokens",
    "401": "unauthorized",
    "404": "model 'MODEL' not found",
    "429": "too many requests",
    "500": "llama runner process has terminated: exit status 2",
    "502": "bad gateway",
    "503": "server busy, please try again.  maximum pending requests exceeded",
}
_BAD_LINES = {
    "bad json": b'{"model": "tiny", "mess\n',
    "blank line": b"\n",
    "not an object": b"[1, 2]\n",
    "no message": b'{"model": "tiny", "done": false}\n',
    "line separator": '{"message": {"role": "a", "content": "x\u0085y"}}\n'.encode(),
    "error line": b'{"error": "an error was encountered while running the model: EOF"}\n',
}
_WHO = ["The old miller", "A small grey fox", "The girl next door", "My uncle", "A tired sailor"]
_DID = ["found", "mended", "carried home", "painted", "forgot", "looked for"]
_WHAT = ["a copper kettle", "the broken gate", "a basket of pears", "three letters", "a red boat"]
_WHEN = ["before the rain came", "in the morning", "without a word", "after supper", "last winter"]


def answer_text(body: Mapping[str, Any]) -> str:
    """Five sentences, or JSON where a format is asked for."""
    source = random.Random(f"{body['model']}|{prompt_of(body)}|{body['options'].get('seed')}")
    if body.get("format"):
        return json.dumps(_instance(body["format"], source))
    return " ".join(_sentence(source) for _ in range(5))


def prompt_of(body: Mapping[str, Any]) -> str:
    """The prompt of a request to either endpoint."""
    messages = body.get("messages")
    return str(messages[-1]["content"] if messages else body.get("prompt", ""))


def digest_of(model: str) -> str:
    return hashlib.sha256(model.encode()).hexdigest()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses every connection: bound, but not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@dataclass
class Asked:
    """One request, and whether the client left before the answer was complete."""

    path: str
    body: dict[str, Any]
    fault: str = ""
    left: threading.Event = field(default_factory=threading.Event)


class FaultServer:
    """The server, in threads of this process; `asked` holds the generations, `paths` all else."""

    def __init__(
        self,
        *script: str,
        models: tuple[str, ...] = ("tiny:latest",),
        answer: Callable[[Mapping[str, Any]], str] = answer_text,
        slow_seconds: float = 0.5,
    ) -> None:
        wrong = set(script) - set(FAULTS)
        assert not wrong, f"no such fault: {wrong}"
        self.models, self.answer, self.slow_seconds = models, answer, slow_seconds
        self.asked: list[Asked] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self.over = threading.Event()
        self._script, self._lock, self._now = list(script), threading.Lock(), 0
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.faults = self
        self.port = self._http.server_port
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.hang_up()
        self._thread.join()
        self._http.server_close()

    @contextlib.contextmanager
    def generation(self, path: str, body: dict[str, Any]) -> Iterator[Asked]:
        """Note a request and what is going to happen to it."""
        with self._lock:
            asked = Asked(path, body, self._script.pop(0) if self._script else "good")
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield asked
        finally:
            with self._lock:
                self._now -= 1


class _Http(ThreadingHTTPServer):
    faults: FaultServer
    daemon_threads = False  # server_close() waits for them: none outlives its test
    request_queue_size = 64

    def __init__(self, *where: Any) -> None:
        super().__init__(*where)
        self._connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """End every connection, as a process does that ends."""
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        faults = self.server.faults
        faults.paths.append(self.path)
        if self.path == "/":
            self.whole(200, b"Ollama is running", "text/plain")
        elif self.path == "/api/version":
            self.json(200, {"version": VERSION})
        elif self.path == "/api/tags":
            self.json(200, {"models": [_listed(name) for name in faults.models]})
        else:
            self.whole(404, b"404 page not found", "text/plain")

    def do_POST(self) -> None:
        faults = self.server.faults
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in ("/api/generate", "/api/chat", "/api/show"):
            return self.whole(404, b"404 page not found", "text/plain")
        model = self.body.get("model", "")
        if (model if ":" in model else f"{model}:latest") not in faults.models:
            return self.json(404, {"error": f"model '{model}' not found"})
        if self.path == "/api/show":
            faults.paths.append(self.path)
            return self.json(200, {"details": _listed(model)["details"], "model_info": {}})
        with faults.generation(self.path, self.body) as self.asked:
            try:
                FAULTS[self.asked.fault](self)
            except OSError:
                self.asked.left.set()
                self.close_connection = True

    def whole(self, status: int, data: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self, status: int, value: Any) -> None:
        self.whole(status, json.dumps(value).encode())

    def open(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def line(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def part(self, text: str, thinking: str = "", **more: Any) -> None:
        extra = {"thinking": thinking} if thinking else {}
        if self.path == "/api/chat":
            said = {"message": {"role": "assistant", "content": text, **extra}}
        else:
            said = {"response": text, **extra}
        head = {"model": self.body["model"], "created_at": "2026-01-01T00:00:00Z"}
        line = {**head, **said, "done": bool(more), **more}
        self.line((json.dumps(line) + "\n").encode())

    def end(self, reason: str, tokens: int, prompt_tokens: int = 0) -> None:
        counts = {"eval_count": tokens, "prompt_eval_count": prompt_tokens or self.prompt_tokens()}
        self.part("", done_reason=reason, total_duration=1, eval_duration=1, **counts)
        self.wfile.write(b"0\r\n\r\n")

    def prompt_tokens(self) -> int:
        return len(prompt_of(self.body).split())

    def full_context(self) -> None:
        """The prompt was cut, so that it fills the context together with the answer."""
        words = self.words()
        self.open()
        for word in words:
            self.part(word)
        num_ctx = self.body["options"]["num_ctx"]
        self.end("stop", len(words), prompt_tokens=num_ctx - len(words))

    def words(self) -> list[str]:
        """The answer's tokens."""
        words = self.server.faults.answer(self.body).split(" ")
        return [words[0], *(f" {word}" for word in words[1:])]

    def begin(self) -> None:
        """Some parts of an answer that is not going to be whole."""
        self.open()
        for word in self.words()[:PARTS_BEFORE]:
            self.part(word)

    def good(self) -> None:
        words, limit = self.words(), self.body["options"].get("num_predict", -1)
        cut = 0 <= limit < len(words)
        self.open()
        for word in words[:limit] if cut else words:
            self.part(word)
        self.end("length" if cut else "stop", limit if cut else len(words))

    def slow(self) -> None:
        """The first part takes its time: the model is being loaded."""
        self.wait_for_leaving(self.server.faults.slow_seconds)
        self.good()

    def wait_for_leaving(self, seconds: float = 60.0) -> None:
        """Send nothing until the client leaves, which raises, or the time is over."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self.server.faults.over.is_set():
            readable = select.select([self.connection], [], [], 0.02)[0]
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError("the client left")

    def stall(self) -> None:
        self.begin()
        self.silent()

    def silent(self) -> None:
        self.close_connection = True
        self.wait_for_leaving()

    def drip(self) -> None:
        """Part after part without an end; never a stall."""
        self.open()
        for _ in range(round(60 / DRIP_SECONDS)):
            self.part("drip ")
            self.wait_for_leaving(DRIP_SECONDS)
            if self.server.faults.over.is_set():
                break
        self.close_connection = True

    def reset(self) -> None:
        self.begin()
        self.reset_at_once()

    def reset_at_once(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close_connection = True

    def truncated(self) -> None:
        """An orderly end of an answer that is not whole."""
        self.begin()
        self.wfile.write(b"0\r\n\r\n")

    def cut_off(self) -> None:
        """The connection ends inside a part."""
        self.begin()
        self.wfile.write(b'40\r\n{"model"')
        self.close_connection = True

    def length(self) -> None:
        self.begin()
        self.end("length", PARTS_BEFORE)

    def empty(self) -> None:
        self.open()
        self.end("stop", 0)

    def blank(self) -> None:
        self.open()
        self.part(" \n")
        self.end("stop", 1)

    def thinking(self) -> None:
        """All of num_predict goes into thoughts."""
        self.open()
        for word in self.words():
            self.part("", thinking=word)
        self.end("length", len(self.words()))

    def html(self) -> None:
        self.whole(200, b"<html><body>It works!</body></html>", "text/html")

    def page_not_found(self) -> None:
        self.whole(404, b"<html>Not Found</html>", "text/html")

    def redirect(self) -> None:
        """To where a GET is answered, as which a redirected POST arrives."""
        self.whole(301, b"", Location="/api/version")

    def odd_error(self) -> None:
        """An error text that is JSON, but no object."""
        self.whole(503, b'"busy"')


def _status(status: str) -> Callable[[_Handler], None]:
    def fail(handler: _Handler) -> None:
        text = _ERRORS[status].replace("MODEL", handler.body["model"])
        handler.json(int(status[:3]), {"error": text})

    return fail


def _bad_line(line: bytes) -> Callable[[_Handler], None]:
    def fail(handler: _Handler) -> None:
        handler.begin()
        handler.line(line)
        handler.wfile.write(b"0\r\n\r\n")

    return fail


_ENDINGS = (
    *(_Handler.good, _Handler.slow, _Handler.stall, _Handler.silent, _Handler.drip),
    *(_Handler.reset, _Handler.reset_at_once, _Handler.truncated, _Handler.cut_off),
    *(_Handler.length, _Handler.empty, _Handler.blank, _Handler.thinking, _Handler.full_context),
    *(_Handler.html, _Handler.page_not_found, _Handler.redirect, _Handler.odd_error),
)
FAULTS: Mapping[str, Callable[[_Handler], None]] = {
    **{ending.__name__.replace("_", " "): ending for ending in _ENDINGS},
    **{status: _status(status) for status in _ERRORS},
    **{name: _bad_line(line) for name, line in _BAD_LINES.items()},
}


def _listed(model: str) -> dict[str, Any]:
    details = {"format": "gguf", "family": "llama", "quantization_level": "Q4_1"}
    return {
        "name": model,
        "model": model,
        "modified_at": "2026-01-01T00:00:00Z",
        "size": 98_000_000,
        "digest": digest_of(model),
        "details": details,
    }


def _sentence(source: random.Random) -> str:
    return f"{' '.join(source.choice(words) for words in (_WHO, _DID, _WHAT, _WHEN))}."


def _instance(schema: Any, source: random.Random) -> Any:
    """A value that fits a schema; of "json" alone, any object."""
    if not isinstance(schema, Mapping):
        return {"text": _sentence(source)}
    if "enum" in schema:
        return source.choice(schema["enum"])
    match schema.get("type", "object"):
        case "object":
            fields = schema.get("properties", {})
            return {name: _instance(inner, source) for name, inner in fields.items()}
        case "array":
            return [_instance(schema.get("items", {"type": "string"}), source) for _ in range(3)]
        case "integer" | "number":
            return source.randrange(100)
        case "boolean":
            return source.random() < 0.5
        case _:
            return _sentence(source)
