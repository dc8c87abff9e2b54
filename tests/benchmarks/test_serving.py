"""The benchmark of `ys serve` counts what it was answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.served import served, train_small

from benchmarks.serving import measure, measure_feeding
from ys_llm.runs.model_files import load_run
from ys_llm.serving.server import Serving


@pytest.mark.slow
def test_it_measures_one_client_and_many(tmp_path: Path) -> None:
    run = train_small(tmp_path, "run=small")
    with served(Serving({"small": run}, load_run)) as server:
        alone, together = asyncio.run(measure(server.url, "small", clients=3, tokens=5))
    assert len(alone.first_seconds) == 8 and len(together.first_seconds) == 9
    assert alone.tokens_per_second > 0
    assert "p99" in str(together)


@pytest.mark.slow
def test_tokens_keep_coming_while_another_client_feeds_a_book(tmp_path: Path) -> None:
    run = train_small(tmp_path, "run=small")
    with served(Serving({"small": run}, load_run)) as server:
        feeding = measure_feeding(server.url, "small", clients=4, tokens=50, n_bytes=5_000_000)
        others, seconds = asyncio.run(feeding)
    print(f"{others}, {seconds:.0f} s")
    gaps = others.between_seconds
    assert seconds > 1 and len(gaps) > 100
    assert gaps[len(gaps) // 2] < 0.1 and gaps[int(0.99 * len(gaps))] < 1
