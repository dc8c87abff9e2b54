"""`ys compare` killed again and again ends with the figures of one that was not."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from support.forked import ForkServer
from support.training_runs import settings, write_corpus

from ys_llm.config.sources import load_config, to_yaml
from ys_llm.evaluation.ledger import read

KILLS = 3
TIMED = {"seconds", "tokens_per_second", "generated_per_second", "peak_memory"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = [f"The fox met crow {i}, and Fox and crow {i + 1} shared plums." for i in range(40)]
    write_corpus(tmp_path / "corpus", texts)
    for name, mixer in (("a", "min_gru"), ("b", "softmax_attention")):
        changes = (f"run={name}", "train.max_steps=2", "train.checkpoint_interval=1")
        words = settings(tmp_path / "corpus", (*changes, f"model.layers=[{mixer}]"))
        words = [word for word in words if "three_tier" not in word]
        (tmp_path / f"{name}.yaml").write_text(to_yaml(load_config(None, overrides=words).config))
    return tmp_path


def figures(folder: Path) -> list[dict[str, Any]]:
    runs = json.loads((folder / "runs" / "compare.json").read_text())["runs"]
    return [{k: v for k, v in row.items() if k not in TIMED} for row in runs]


def test_a_comparison_killed_anywhere_goes_on_where_it_was(folder: Path, forks: ForkServer) -> None:
    words = ("compare", "a.yaml", "b.yaml", "--seeds", "2", "--allow-different", "parameters")
    whole, killed = folder / "whole", folder / "killed"
    for base in (whole, killed):
        base.mkdir()
        for name in ("a.yaml", "b.yaml"):
            (base / name).write_bytes((folder / name).read_bytes())
    journal = folder / "journal"
    ended = forks.run(*words, folder=whole, fault={"below": str(whole), "journal": str(journal)})
    assert ended.code == 0, ended.stderr
    operations = len(journal.read_text().splitlines())
    draw, codes = random.Random(0), []
    for _ in range(KILLS):
        fault = {"below": str(killed), "at": draw.randrange(operations // 3), "kind": "kill"}
        codes.append(forks.run(*words, folder=killed, fault=fault).code)
    assert codes.count(-signal.SIGKILL) > KILLS / 2
    ended = forks.run(*words, folder=killed)
    assert ended.code == 0, ended.stderr
    assert figures(killed) == figures(whole)
    assert len(read(killed / "runs" / "experiments.jsonl")) == 1
    # Complete, it costs no step and no measurement.
    journal.unlink()
    forks.run(*words, folder=killed, fault={"below": str(killed), "journal": str(journal)})
    written = [line.split("\t")[:2] for line in journal.read_text().splitlines()]
    assert not [one for one in written if one[0] == "step" or "held_out" in one[1]]
