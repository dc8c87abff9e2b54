"""How fast `ys serve` answers: one client after the other, and many at once.

    ys serve quickstart --port 11500
    python -m benchmarks.serving quickstart --host http://127.0.0.1:11500

Each client streams greedy texts of one length from /api/generate; no two prompts are equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import httpx

_PROMPT = "Tell me a bedtime story about a patient owl called number {}, please."
_ALONE = 8  # requests, one after the other
_EACH = 3  # requests of each of many clients
_SECONDS = 300.0  # for one answer


@dataclass(frozen=True)
class Answered:
    """One answer: its tokens, and the seconds to the first and between any two."""

    n_tokens: int
    first_seconds: float
    between_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Figures:
    """Many answers: tokens a second of all together, and the seconds that clients waited."""

    tokens_per_second: float
    first_seconds: tuple[float, ...]
    between_seconds: tuple[float, ...]

    def __str__(self) -> str:
        first, between = self.first_seconds, self.between_seconds
        return (
            f"{self.tokens_per_second:8,.0f} tokens/s; first token p50 {_share(first, 0.5)}, "
            f"p99 {_share(first, 0.99)}; between tokens p50 {_share(between, 0.5)}, "
            f"p99 {_share(between, 0.99)}"
        )


async def measure(host: str, model: str, *, clients: int, tokens: int) -> list[Figures]:
    """One client at a time, then `clients` at once."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=host, timeout=_SECONDS, limits=limits) as client:
        await _ask(client, model, "warm", tokens)
        began = time.perf_counter()
        alone = [await _ask(client, model, f"a{i}", tokens) for i in range(_ALONE)]
        figures = [_figures(alone, time.perf_counter() - began)]

        async def several(number: int) -> list[Answered]:
            """One of many clients."""
            return [await _ask(client, model, f"{number}.{i}", tokens) for i in range(_EACH)]

        began = time.perf_counter()
        groups = await asyncio.gather(*map(several, range(clients)))
        together = [answer for group in groups for answer in group]
        return [*figures, _figures(together, time.perf_counter() - began)]


async def _ask(client: httpx.AsyncClient, model: str, which: str, tokens: int) -> Answered:
    options = {"temperature": 0, "num_predict": tokens}
    body = {"model": model, "prompt": _PROMPT.format(which), "options": options}
    began, times, lines = time.perf_counter(), list[float](), list[str]()
    async with client.stream("POST", "/api/generate", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            lines.append(line)
            times.append(time.perf_counter())
    between = tuple(later - earlier for earlier, later in pairwise(times))
    return Answered(json.loads(lines[-1])["eval_count"], times[0] - began, between)


def _figures(answers: Sequence[Answered], seconds: float) -> Figures:
    return Figures(
        sum(answer.n_tokens for answer in answers) / seconds,
        tuple(sorted(answer.first_seconds for answer in answers)),
        tuple(sorted(one for answer in answers for one in answer.between_seconds)),
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
    asked = parser.parse_args()
    figures = asyncio.run(
        measure(asked.host, asked.model, clients=asked.clients, tokens=asked.tokens)
    )
    alone, together = figures
    print(f"one by one      {alone}")
    print(f"{asked.clients:3} at once     {together}")
    print(f"together {together.tokens_per_second / alone.tokens_per_second:.1f} x one by one")


if __name__ == "__main__":
    main()
