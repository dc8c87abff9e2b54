"""A thousand records through ollama's protocol, killed five times, at two concurrencies.

`ys gen-data` runs as a user types it, and dies by SIGKILL wherever it is.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.forked import ForkServer, until
from support.gendata_runs import entries, write_kinds
from support.ollama_faults import FaultServer

from ys_llm.data.readers import read_documents
from ys_llm.gendata.generation.journal import NAME as JOURNAL

pytestmark = pytest.mark.slow

RECORDS = 1000
KILLS = (150, 500, 900, 1300, 1800)  # lines of the journal: an answer and a decision a record
KIND = """\
description: tales by number
model: tiny
slots: {number: {low: 1, high: 1000}}
ask: [{prompts: ["Tell tale number {number}."], sampling: {num_predict: 200}}]
output: {prompts: ["Tell tale number {number}."]}
rules: []
count: 1000
"""


@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_is_lost_and_nothing_is_made_twice(
    forks: ForkServer, tmp_path: Path, workers: int
) -> None:
    write_kinds(tmp_path / "gen/kinds", tale=KIND)
    journal, corpus = tmp_path / "made" / JOURNAL, tmp_path / "made"

    def lines() -> list[bytes]:
        return journal.read_bytes().splitlines(keepends=True) if journal.exists() else []

    kept: list[bytes] = []
    with FaultServer() as server:
        made = ["gen-data", "--kind", "tale", "--host", server.address, "--out", "made"]
        made += ["--workers", str(workers)]
        for least in KILLS:
            child = forks.start(*made, folder=tmp_path)
            until(lambda least=least: len(lines()) >= least, seconds=120)  # type: ignore[misc]
            child.send(signal.SIGKILL)
            assert child.wait().code == -signal.SIGKILL
            assert lines()[: len(kept)] == kept, "what was written before a kill has changed"
            kept = lines()[:least]
        ended = forks.start(*made, folder=tmp_path).wait(seconds=120)
        asked = len(server.asked)
    assert ended.code == 0, ended.stderr
    decided = entries(corpus)
    assert len(decided) == RECORDS == len({entry["key"] for entry in decided})
    documents = read_documents(corpus)
    assert len(documents) == RECORDS == len({document.id for document in documents})
    assert {document.prompt for document in documents} == {
        f"Tell tale number {number}." for number in range(1, RECORDS + 1)
    }
    # Only what was in flight at a kill is asked for again: answers are kept at once.
    assert asked <= RECORDS + len(KILLS) * (workers + 1)
