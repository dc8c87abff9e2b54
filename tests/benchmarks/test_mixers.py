"""The table of mixers is that of benchmarks/mixers.json, and its configurations make a fair one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import mixers
from benchmarks.mixers import EVERY, RESULTS, SETTINGS, main, markdown, run_of
from ys_llm.config.shipped import find_config
from ys_llm.config.sources import load_config
from ys_llm.evaluation.compare import check_configs
from ys_llm.training.trial_budget import Budget, with_budget

ROOT = Path(__file__).resolve().parents[2]
FOUND: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
each = pytest.mark.parametrize("row", FOUND["rows"], ids=lambda row: row["name"])


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # configurations are named by paths


def test_the_configurations_may_be_compared() -> None:
    configs = [load_config(find_config(path), overrides=SETTINGS).config for path in EVERY.values()]
    check_configs(configs, allowed=["model.copy.window"])


def test_all_files_are_compared() -> None:
    files = {f"benchmarks/fair/{path.name}" for path in (ROOT / "benchmarks/fair").glob("*")}
    assert files < set(EVERY.values())
    rows = [row["name"] for row in FOUND["rows"]]
    assert rows == [name for name in EVERY if name in rows]


@each
def test_a_row_has_the_steps_of_its_budgets(row: dict[str, Any]) -> None:
    config = load_config(find_config(row["config"]), overrides=SETTINGS).config
    assert config.run == run_of(row["name"]) == row["tokens"]["run"]
    budgets = {"tokens": Budget("tokens", FOUND["tokens"])}
    if row["seconds"]:
        budgets["seconds"] = Budget("seconds", FOUND["seconds"], tuple(row["step"]["seconds"]))
    for unit, budget in budgets.items():
        planned = with_budget(config, budget).train
        tokens = planned.total_steps * planned.seq_len * planned.batch_size
        assert row[unit]["tokens"] == tokens


@each
def test_a_row_has_the_state_of_its_model(row: dict[str, Any]) -> None:
    assert row["state_bytes"] == mixers._state_bytes(row["name"])
    assert torch.__version__.partition(".")[0] == FOUND["torch"].partition(".")[0]


def test_the_page_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = markdown(FOUND)
    assert "\n".join(lines) in (ROOT / "docs/mixers.md").read_text(encoding="utf-8")
    main(["--table"])
    assert capsys.readouterr().out.splitlines() == lines
