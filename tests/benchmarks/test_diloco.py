"""The simulation of unequal workers runs, and its pages show what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.diloco import (
    ASYNCHRONOUS,
    BIG_BATCH,
    EXCHANGE,
    FILE,
    NAMES,
    SECONDS,
    SYNCHRONOUS,
    WORKERS,
    Nothing,
    main,
    markdown,
    rounds_of,
    within,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def read_in(name: str, seconds: float) -> int:
    rounds = within(rounds_of(name, Nothing()), batches=1e9, seconds=seconds)
    return sum(len(arrival.batches) for arrivals in rounds for arrival in arrivals)


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs/elastic.md").read_text(encoding="utf-8")
    assert "\n".join(markdown(RESULTS)) in page


def test_the_results_are_of_these_workers_and_contenders() -> None:
    assert [worker["speed"] for worker in RESULTS["workers"]] == [w.speed for w in WORKERS]
    for budget in ("tokens", "seconds"):
        assert tuple(row["name"] for row in RESULTS[budget]) == NAMES
    for row in RESULTS["seconds"]:
        assert row["batches"] == read_in(row["name"], SECONDS)


def test_all_wait_for_the_slowest_but_where_they_are_asynchronous() -> None:
    step = 1 / 0.25 + EXCHANGE
    assert read_in(BIG_BATCH, 10 * step) == 40
    assert read_in(SYNCHRONOUS, 20 / 0.25 + EXCHANGE) == 80
    assert read_in(ASYNCHRONOUS, 20 / 0.25 + EXCHANGE) >= 150


@pytest.mark.slow
def test_every_contender_trains(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = (ROOT / "training_data/tales-01.md").read_text(encoding="utf-8")
    (corpus / "tales.md").write_text(text[: text.rfind("<end>", 0, 100_000) + 6], encoding="utf-8")
    out = tmp_path / "found.json"
    main(["--quick", "--corpus", str(corpus), "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert all(0 < row["bits_per_byte"] < 9 for row in found["tokens"] + found["seconds"])
