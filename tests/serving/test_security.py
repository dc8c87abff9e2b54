"""What strangers may try: pages of other origins, oversized, malformed and slow requests."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.served import Served, served

from ys_llm.runs.model_files import load_run
from ys_llm.serving.guard import Access
from ys_llm.serving.limits import Limits
from ys_llm.serving.server import Serving

ASKED = {"model": "small", "prompt": "Who?", "options": {"temperature": 0, "num_predict": 3}}
ENDLESS = {"model": "small", "prompt": "Who?", "options": {"num_predict": 4000, "stop": ["☃"]}}
STRICT = Limits(
    body_bytes=20_000,
    all_bodies_bytes=30_000,
    header_bytes=4_000,
    header_seconds=0.3,
    body_seconds=0.3,
    answer_seconds=0.5,
    answer_tokens=200_000,
)


@pytest.fixture(scope="module")
def strict(small_run: Path) -> Iterator[Served]:
    """A server with small limits and a key."""
    access = Access(api_key="sesame", origins=frozenset({"http://friend.example"}))
    serving = Serving({"small": small_run}, load_run, access, STRICT)
    with served(serving) as running:
        yield running


KEY = {"authorization": "Bearer sesame"}


@contextmanager
def connected(server: Served) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def said(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    return b"".join(parts)


# Pages of other origins


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"host": "evil.example"},
        {"host": "evil.example:11500"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost@evil.example"},
        {"host": ""},
        {"sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions", "/api/tags", "/ys/models"])
def test_a_page_of_another_origin_is_refused(
    client: httpx.Client, headers: dict[str, str], path: str
) -> None:
    method = "GET" if path in ("/api/tags", "/ys/models") else "POST"
    answer = client.request(method, path, json=ASKED, headers=headers)
    assert answer.status_code in (400, 403)
    assert "access-control-allow-origin" not in answer.headers
    assert not answer.headers["content-type"].startswith("text/html")


def test_a_page_cannot_ask_for_permission(client: httpx.Client) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/api/generate", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_servers_own_page_may_ask(server: Served, client: httpx.Client) -> None:
    port = server.url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        headers = {"host": host, "origin": f"http://{host}"}
        assert client.post("/api/generate", json=ASKED, headers=headers).status_code == 200


def test_an_allowed_page_may_ask(strict: Served) -> None:
    with strict.client(headers={"origin": "http://friend.example"}) as client:
        answer = client.post("/v1/models", headers=KEY)
        assert answer.status_code == 405
        answer = client.get("/v1/models", headers=KEY)
        assert answer.headers["access-control-allow-origin"] == "http://friend.example"
        wanted = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        assert client.options("/api/chat", headers=wanted).status_code == 200


# Keys


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}]
)
def test_without_the_key_nothing_is_told(strict: Served, headers: dict[str, str]) -> None:
    with strict.client(headers=headers) as client:
        for path in ("/api/tags", "/v1/models", "/metrics", "/openapi.json", "/ys/models"):
            assert client.get(path).status_code == 401
        assert client.post("/api/generate", json=ASKED).status_code == 401
        assert client.get("/").status_code == 200  # the page asks for the key


def test_two_keys_or_two_hosts_are_none(strict: Served) -> None:
    for name in (b"Authorization: Bearer sesame", b"Host: localhost"):
        with connected(strict) as connection:
            connection.sendall(
                b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\n"
                + name
                + b"\r\nConnection: close\r\n\r\n"
            )
            assert said(connection).split(b" ")[1] == b"400"


# Names


@pytest.mark.parametrize(
    "name",
    [
        "../small",
        "../../../../etc/passwd",
        "/etc/passwd",
        "small/../small",
        "small\0",
        "./small",
        "runs/small",
        "file:///etc/passwd",
        "",
        "..%2fsmall",
        "SMALL",
        "x" * 900,
    ],
)
def test_a_name_is_never_a_path(client: httpx.Client, name: str) -> None:
    answer = client.post("/api/generate", json={**ASKED, "model": name})
    assert answer.status_code == 404
    assert "not found" in answer.json()["error"]
    assert client.post("/api/show", json={"model": name}).status_code in (400, 404)


@pytest.mark.parametrize(
    "path",
    [
        *("/web/../server.py", "/web/%2e%2e/server.py", "/web/..%2fserver.py", "/web//etc/passwd"),
        *("/v1/models/../../etc/passwd", "/web/", "/api/blobs/sha256:00", "/.env"),
    ],
)
def test_a_path_is_never_a_file(server: Served, path: str) -> None:
    with connected(server) as connection:  # a client would clean the path
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        assert said(connection).split(b" ")[1] == b"404"


# Bodies and headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"a":' * 3_000,
        b'{"model": "small", "prompt": "\\ud800"}',
        b'{"model": "small", "prompt": "a", "options": {"temperature": NaN}}',
        b'{"model": "small", "prompt": "a", "options": {"temperature": 1e999}}',
        b'{"model": "small", "prompt": "a", "options": {"seed": 99999999999999999999999999}}',
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions", "/ys/generate"])
def test_a_malformed_body_is_refused(client: httpx.Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 400
    assert "error" in answer.json()


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused(strict: Served, declared: bool) -> None:
    data = json.dumps({**ASKED, "prompt": "a" * 25_000}).encode()
    pieces = iter([data[:15_000], data[15_000:]])
    with strict.client(headers=KEY) as client:
        answer = client.post("/api/generate", content=data if declared else pieces)
        assert answer.status_code == 413
        assert "20,000 bytes" in answer.json()["error"]


def test_large_headers_are_refused(strict: Served) -> None:
    with connected(strict) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 5_000)
        assert said(connection).split(b" ")[1] == b"400"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
        b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused(strict: Served, request_bytes: bytes) -> None:
    with connected(strict) as connection:
        connection.sendall(request_bytes)
        answer = said(connection)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer) or not answer


# Slow clients


def test_headers_must_come_in_time(strict: Served) -> None:
    with connected(strict) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert said(connection) == b""  # closed


def test_a_body_must_come_in_time(strict: Served) -> None:
    with connected(strict) as connection:
        connection.sendall(
            b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\n"
            b"Content-Length: 100\r\nConnection: close\r\n\r\n{"
        )
        assert said(connection).split(b" ")[1] == b"408"


def test_an_answer_ends_in_time(strict: Served) -> None:
    endless = {"num_predict": -1, "temperature": 0}
    body = {"model": "small", "prompt": "Who?", "raw": True, "options": endless}
    with strict.client(headers=KEY) as client:
        whole = client.post("/api/generate", json={**body, "stream": False})
        parts = client.post("/api/generate", json=body).text.splitlines()
    assert whole.status_code == 503 or whole.json()["done_reason"] == "stop"
    last = json.loads(parts[-1])
    assert "longer than 0.5 s" in last.get("error", "") or last["done_reason"] == "stop"


def metric(client: httpx.Client, name: str) -> float:
    found = re.findall(rf"^{name}(?:{{.*small.*}})? ([\d.]+)$", client.get("/metrics").text, re.M)
    return float(found[0]) if found else 0.0


def test_a_client_that_leaves_frees_its_row(client: httpx.Client) -> None:
    answers: list[Any] = []
    for _ in range(3):
        request = client.build_request("POST", "/api/generate", json=ENDLESS)
        answer = client.send(request, stream=True)
        assert next(answer.iter_lines())
        answers.append(answer)
    for answer in answers:
        answer.close()
    ends = time.monotonic() + 30
    while metric(client, "ys_rows"):
        assert time.monotonic() < ends, "a row is not freed"
        time.sleep(0.02)


def test_the_metrics_are_those_of_what_was_asked(client: httpx.Client) -> None:
    before = client.get("/metrics").text
    client.post("/api/generate", json={**ASKED, "stream": False})
    after = client.get("/metrics").text

    def count(text: str, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    name = 'ys_requests_total{path="/api/generate",status="200"}'
    assert count(after, name) == count(before, name) + 1
    name = 'ys_tokens_total{kind="generated"}'
    assert 1 <= count(after, name) - count(before, name) <= 3
    assert count(after, 'ys_first_token_seconds{quantile="0.99"}') > 0
    for line in after.splitlines():
        assert line.startswith("# ") or re.fullmatch(r"\w+(\{.*\})? [\d.e+-]+", line), line


def test_too_many_bodies_at_once_are_refused(strict: Served) -> None:
    with connected(strict) as first, strict.client(headers=KEY) as client:
        first.sendall(
            b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\n"
            b"Content-Length: 19000\r\n\r\n" + b" " * 18_000
        )
        body = json.dumps({**ASKED, "prompt": "a"}).encode() + b" " * 15_000
        statuses = set()
        for _ in range(3):  # until the first has arrived, and before its time is over
            statuses.add(client.post("/api/generate", content=body).status_code)
        assert statuses & {503}
