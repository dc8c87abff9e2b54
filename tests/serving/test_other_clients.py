"""Programs that were not written here, and `ys gen-data`, against `ys serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.forked import ForkServer
from support.gendata_runs import write_kinds
from support.served import Served

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.engine import Engine

pytestmark = pytest.mark.slow
PROMPT = "Who sat on the mat in story 7?"
GREEDY = GenerateConfig(temperature=0, max_tokens=12)
SENTENCES = """\
description: sentences about things
slots: {thing: [a fox, bread, the sea, a clock, snow, rain]}
ask: [{prompts: ["Write a sentence about {thing}."], sampling: {num_predict: 20}}]
output: {prompts: ["A sentence about {thing}."]}
rules: []
verifiers: {words: {least: 1, most: 100}}
count: 4
"""


def llm(server: Served, home: Path, *words: str) -> str:
    """What simonw's `llm` prints; `home` is its own folder."""
    pytest.importorskip("llm")
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "LLM_USER_PATH": str(home), "OLLAMA_HOST": server.url}
    done = subprocess.run(
        [sys.executable, "-m", "llm", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llm_speaks_to_the_openai_endpoint(server: Served, engine: Engine, tmp_path: Path) -> None:
    url, expected = f"{server.url}/v1", engine.answer(PROMPT, GREEDY).text
    assert "small" in llm(server, tmp_path, "openai", "endpoint", url, "--models")
    how = ["-m", "small", "-o", "temperature", "0", "-o", "max_tokens", "12"]
    for more in ([], ["--no-stream"]):
        said = llm(server, tmp_path, "openai", "endpoint", url, PROMPT, *how, *more)
        assert said.strip() == expected.strip()


def test_llm_speaks_to_the_ollama_api(server: Served, engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("llm_ollama")
    assert "small:latest" in llm(server, tmp_path, "models", "list")
    how = ["-m", "ollama/small", "-o", "temperature", "0", "-o", "num_predict", "12"]
    for more in ([], ["--no-stream"]):
        said = llm(server, tmp_path, PROMPT, *how, *more)
        assert said.strip() == engine.answer(PROMPT, GREEDY).text.strip()


def test_gen_data_asks_it(server: Served, forks: ForkServer, tmp_path: Path) -> None:
    write_kinds(tmp_path / "gen/kinds", sentence=SENTENCES)
    to = ["--host", server.url, "--model", "small"]
    checked = forks.run("gen-data", "--check", *to, folder=tmp_path)
    assert checked.code == 0, checked.stdout + checked.stderr
    # This model hardly ever ends a text: what it writes is refused for that, and for nothing else.
    made = forks.run("gen-data", "--kind", "sentence", "--out", "made", *to, folder=tmp_path)
    assert "4 decided now" in made.stdout
    assert made.code == 0 or "rejected tries: cut_off 12" in made.stdout


@pytest.mark.parametrize("streamed", [True, False])
def test_curl(server: Served, engine: Engine, streamed: bool) -> None:
    options = {"temperature": 0, "num_predict": 12}
    body = {"model": "small", "prompt": PROMPT, "stream": streamed, "options": options}
    command = ["curl", "-sN", f"{server.url}/api/generate", "-d", json.dumps(body)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    parts = [json.loads(line)["response"] for line in said.splitlines()]
    assert "".join(parts) == engine.answer(PROMPT, GREEDY).text
    assert (len(parts) > 1) == streamed
