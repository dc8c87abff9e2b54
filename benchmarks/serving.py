"""How fast `ys serve` answers: one client after the other, and many at once.

    ys serve quickstart --port 11500
    python -m benchmarks.serving quickstart --host http://127.0.0.1:11500
    python -m benchmarks.serving quickstart --host http://127.0.0.1:11500 --clients 8 --feed 5000000

Each client streams greedy texts of one length from /api/generate; no two prompts are equal. The
clients share the processor with the server, and a client that reads HTTP and JSON as it arrives
takes as much of it as the server does. A server that has answered the same prompts before has them
saved: start another one for each run. These only note what arrives and when, and it is read
afterwards. With --feed the clients are asking while one more sends a text of so many bytes to be
read, until that is done or a minute is over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

import h11

_PROMPT = "Tell me a bedtime story about a patient owl called number {}, please."
_ALONE = 8  # requests, one after the other
_EACH = 3  # requests of each of many clients, unless told
_SECONDS = 300.0  # for all answers
_FEED_SECONDS = 60.0
_FED = "Number {} sat by the river, and nobody knew why. "
_END = b"0\r\n\r\n"  # of a chunked body; a line of JSON has no bare line breaks


@dataclass(frozen=True)
class Answered:
    """One answer: its tokens, and the seconds to the first and between any two."""

    n_tokens: int
    first_seconds: float
    between_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Figures:
    """Many answers: tokens a second of all together, and the seconds that clients waited.

    `client_load` is the processor time that the clients took of each second.
    """

    tokens_per_second: float
    first_seconds: tuple[float, ...]
    between_seconds: tuple[float, ...]
    client_load: float

    def __str__(self) -> str:
        first, between = self.first_seconds, self.between_seconds
        return (
            f"{self.tokens_per_second:8,.0f} tokens/s; first token p50 {_share(first, 0.5)}, "
            f"p99 {_share(first, 0.99)}; between tokens p50 {_share(between, 0.5)}, "
            f"p99 {_share(between, 0.99)}; the clients took {self.client_load:.0%} of a core"
        )


@dataclass
class Exchange:
    """One request, and what arrived of its answer, each piece with its time."""

    body: bytes
    began: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    def answered(self) -> Answered:
        """The answer, read from the bytes."""
        connection, times, lines = h11.Connection(h11.CLIENT), list[float](), b""
        request = h11.Request(method="POST", target="/", headers=[("Host", "localhost")])
        connection.send(request)
        connection.send(h11.EndOfMessage())
        for at, data in self.pieces:
            connection.receive_data(data)
            while isinstance(event := connection.next_event(), h11.Response | h11.Data):
                if isinstance(event, h11.Data):
                    times += [at] * bytes(event.data).count(b"\n")
                    lines += event.data
        between = tuple(later - earlier for earlier, later in pairwise(times))
        last = json.loads(lines.splitlines()[-1])
        return Answered(last["eval_count"], times[0] - self.began, between)


class Connection(asyncio.Protocol):
    """A client that stays connected, and asks one thing at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange, self._end = Exchange(b""), b""
        self._complete: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note what to send with."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Note what arrives and when."""
        self._exchange.pieces.append((time.perf_counter(), data))
        self._end = (self._end + data[-len(_END) :])[-len(_END) :]
        if self._end == _END and self._complete is not None:
            self._complete.set_result(None)
            self._complete = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will arrive."""
        if self._complete is not None and not self._complete.done():
            self._complete.set_exception(exc or ConnectionError("the server hung up"))

    async def ask(self, exchange: Exchange) -> Exchange:
        """Send a request, and wait for the end of its answer."""
        assert self._transport is not None
        self._exchange, self._end = exchange, b""
        self._complete = asyncio.get_running_loop().create_future()
        exchange.began = time.perf_counter()
        self._transport.write(exchange.body)
        await self._complete
        return exchange

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


async def measure(
    host: str, model: str, *, clients: int, tokens: int, each: int = _EACH
) -> list[Figures]:
    """One client at a time, then `clients` at once."""
    connections = await _connected(host, clients)

    async def all_of(connection: Connection, names: Sequence[str]) -> list[Exchange]:
        """One client's requests, one after the other."""
        bodies = [_request(model, _PROMPT.format(name), tokens) for name in names]
        return [await connection.ask(Exchange(body)) for body in bodies]

    async def figures(names: Sequence[Sequence[str]]) -> Figures:
        """Some clients at once, each with the names in its prompts."""
        began, used = time.perf_counter(), time.process_time()
        asking = [all_of(*pair) for pair in zip(connections, names, strict=False)]
        groups = await asyncio.wait_for(asyncio.gather(*asking), _SECONDS)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        answers = [exchange.answered() for group in groups for exchange in group]
        return _figures(answers, seconds, used / seconds)

    try:
        await all_of(connections[0], ["warm"])
        alone = await figures([[f"a{i}" for i in range(_ALONE)]])
        several = [[f"{number}.{i}" for i in range(each)] for number in range(clients)]
        return [alone, await figures(several)]
    finally:
        for connection in connections:
            connection.close()


async def measure_feeding(
    host: str, model: str, *, clients: int, tokens: int, n_bytes: int
) -> tuple[Figures, float]:
    """`clients` at once while one more feeds a text, and the seconds that this went on."""
    *connections, feeder = await _connected(host, clients + 1)
    text = "".join(_FED.format(number) for number in range(n_bytes // len(_FED) + 1))[:n_bytes]
    began, used = time.perf_counter(), time.process_time()
    feeding = asyncio.ensure_future(feeder.ask(Exchange(_request(model, text, 1, raw=True))))
    is_over = asyncio.ensure_future(asyncio.wait({feeding}, timeout=_FEED_SECONDS))

    async def until_fed(number: int, connection: Connection) -> list[Exchange]:
        """One client's requests, one after the other, as long as the other one feeds."""
        exchanges = list[Exchange]()
        while not is_over.done():
            prompt = _PROMPT.format(f"{number}.{len(exchanges)}")
            body = _request(model, prompt, tokens)
            exchanges.append(await connection.ask(Exchange(body)))
        return exchanges

    try:
        groups = await asyncio.gather(*(until_fed(*pair) for pair in enumerate(connections)))
        seconds, used = time.perf_counter() - began, time.process_time() - used
        answers = [exchange.answered() for group in groups for exchange in group]
        return _figures(answers, seconds, used / seconds), seconds
    finally:
        feeding.cancel()
        for connection in (*connections, feeder):
            connection.close()


async def _connected(host: str, clients: int) -> list[Connection]:
    url, loop = urlsplit(host), asyncio.get_running_loop()
    address = url.hostname or "127.0.0.1", url.port or 80
    made = [await loop.create_connection(Connection, *address) for _ in range(clients)]
    return [connection for _, connection in made]


def _request(model: str, prompt: str, tokens: int, *, raw: bool = False) -> bytes:
    options = {"temperature": 0, "num_predict": tokens}
    body = {"model": model, "prompt": prompt, "raw": raw, "options": options}
    data = json.dumps(body).encode()
    lines = ("POST /api/generate HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}")
    return "\r\n".join((*lines, "", "")).encode() + data


def _figures(answers: Sequence[Answered], seconds: float, client_load: float) -> Figures:
    return Figures(
        sum(answer.n_tokens for answer in answers) / seconds,
        tuple(sorted(answer.first_seconds for answer in answers)),
        tuple(sorted(one for answer in answers for one in answer.between_seconds)),
        client_load,
    )


def _share(ordered: Sequence[float], share: float) -> str:
    value = ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
    return f"{value * 1e3:,.1f} ms"


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--host", default="http://127.0.0.1:11500")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--each", metavar="REQUESTS", type=int, default=_EACH)
    parser.add_argument("--feed", metavar="BYTES", type=int)
    asked = parser.parse_args()
    sizes = {"clients": asked.clients, "tokens": asked.tokens}
    if asked.feed:
        feeding = measure_feeding(asked.host, asked.model, **sizes, n_bytes=asked.feed)
        others, seconds = asyncio.run(feeding)
        print(f"{asked.clients:3} clients while another feeds {asked.feed / 1e6:g} MB  {others}")
        print(f"it was feeding for {seconds:.0f} s")
        return
    figures = asyncio.run(measure(asked.host, asked.model, **sizes, each=asked.each))
    alone, together = figures
    print(f"one by one      {alone}")
    print(f"{asked.clients:3} at once     {together}")
    print(f"together {together.tokens_per_second / alone.tokens_per_second:.1f} x one by one")


if __name__ == "__main__":
    main()
