"""Many clients for minutes: every greedy answer is the one alone, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path

import httpx
import psutil
import pytest
from support.forked import ForkServer, until
from support.served import train_small

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.engine import Engine
from ys_llm.runs.model_files import load_run

pytestmark = pytest.mark.slow
CLIENTS = 64
SECONDS = float(os.environ.get("YS_TEST_LOAD_SECONDS", "120"))
PROMPTS = [f"Who sat on the mat in story {i}?" * (1 + i % 7) for i in range(40)]
LENGTHS = (3, 17, 60)
RUBBISH = (b"{", b"[]", b'{"model": "small", "prompt": 5}', b"\xff" * 100)
FED = "A fox sat by the river. " * 210_000  # 5 MB
MOST_GROWTH = 100e6  # bytes, beyond what the first minute needs; a leak of states is gigabytes


class Load:
    """The clients, and what they have seen."""

    def __init__(self, client: httpx.AsyncClient, expected: dict[tuple[int, int], str]) -> None:
        self.client, self.expected, self.ends = client, expected, time.monotonic() + SECONDS
        self.n_answers = self.n_left = self.n_rubbish = self.n_fed_tokens = 0
        self.wrong: list[str] = []

    async def ask(self, draw: random.Random) -> None:
        """One client: it asks, now and then leaves in the middle, or sends rubbish."""
        while time.monotonic() < self.ends:
            chance = draw.random()
            if chance < 0.05:
                answer = await self.client.post("/api/generate", content=draw.choice(RUBBISH))
                self.n_rubbish += answer.status_code == 400
            else:
                await self.generate(draw, is_leaving=chance < 0.15)

    async def generate(self, draw: random.Random, *, is_leaving: bool) -> None:
        which, length = draw.randrange(len(PROMPTS)), draw.choice(LENGTHS)
        options = {"temperature": 0, "num_predict": length}
        body = {"model": "small", "prompt": PROMPTS[which], "options": options}
        said = []
        async with self.client.stream("POST", "/api/generate", json=body) as answer:
            async for line in answer.aiter_lines():
                said.append(json.loads(line)["response"])
                if is_leaving and len(said) > 1:
                    self.n_left += 1
                    return
        self.n_answers += 1
        if "".join(said) != self.expected[which, length]:
            self.wrong.append(f"{PROMPTS[which]!r}: {''.join(said)!r}")

    async def feed(self) -> None:
        """A client that feeds 5 MB, again and again, the half of the time leaving while it does."""
        body = {"model": "small", "prompt": FED, "raw": True, "options": {"num_predict": 1}}
        while time.monotonic() < self.ends:
            try:
                answer = await self.client.post("/api/generate", json=body, timeout=SECONDS / 8)
                assert answer.status_code == 200, answer.text
            except httpx.TimeoutException:
                pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("load"), "run=small")


def test_every_answer_is_the_one_alone(run: Path, forks: ForkServer) -> None:
    engine = Engine(load_run(run))
    expected = {
        (i, n): engine.answer(prompt, GenerateConfig(temperature=0, max_tokens=n)).text
        for i, prompt in enumerate(PROMPTS)
        for n in LENGTHS
    }
    child = forks.start("serve", "small", "--port", "0", folder=run.parent.parent)
    until(lambda: "ready" in child.stdout())
    try:
        load, sizes = asyncio.run(press(child.stdout().split()[1], child.pid, expected))
    finally:
        child.send(15)
        ended = child.wait()
    assert "Traceback" not in ended.stderr
    assert not load.wrong, load.wrong[:3]
    assert load.n_answers > SECONDS and load.n_left > SECONDS / 20 and load.n_rubbish > 5
    settled = sizes[len(sizes) // 2]
    assert sizes[-1] < settled + MOST_GROWTH, sizes


async def press(url: str, pid: int, expected: dict[tuple[int, int], str]) -> tuple[Load, list[int]]:
    """The load, and the server's memory while it lasted; at its end nothing is left."""
    process, sizes = psutil.Process(pid), []
    limits = httpx.Limits(max_connections=CLIENTS + 8, keepalive_expiry=3.0)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        load = Load(client, expected)
        asking = [load.ask(random.Random(i)) for i in range(CLIENTS)]
        working = asyncio.gather(*asking, load.feed())
        while not working.done():
            sizes.append(process.memory_info().rss)
            await asyncio.wait({working}, timeout=SECONDS / 20)
        await working
        ends = time.monotonic() + 30
        while 'ys_rows{model="small"} 0' not in (text := (await client.get("/metrics")).text):
            assert time.monotonic() < ends, text
            await asyncio.sleep(0.05)
        assert 'ys_queue{model="small"} 0' in text
        print(text)
    return load, sizes
