"""The table of mixers is that of benchmarks/mixers.json, and its configurations make a fair one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import mixers
from benchmarks.mixers import EVERY, RESULTS, SETTINGS, SEVERAL, main, rewritten, run_of, tables
from ys_llm.config.shipped import find_config
from ys_llm.config.sources import load_config
from ys_llm.evaluation.compare import check_configs
from ys_llm.training.trial_budget import Budget, with_budget

ROOT = Path(__file__).resolve().parents[2]
FOUND: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
UNITS = {"tokens": "tokens", SEVERAL: "tokens", "seconds": "seconds"}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # configurations are named by paths


def test_the_configurations_may_be_compared() -> None:
    configs = [load_config(find_config(path), overrides=SETTINGS).config for path in EVERY.values()]
    check_configs(configs, allowed=["model.copy.window"])


def test_the_published_order_may_be_asked_for() -> None:
    paths = sorted((ROOT / "benchmarks/order").glob("*.yaml"))
    assert len(paths) == 6
    check_configs([load_config(path).config for path in paths], allowed=[])


def test_every_file_may_be_compared() -> None:
    files = {f"benchmarks/fair/{path.name}" for path in (ROOT / "benchmarks/fair").glob("*")}
    assert files < set(EVERY.values())


@pytest.mark.parametrize("part_name", UNITS)
def test_a_row_has_the_steps_of_its_budget_and_the_state_of_its_model(part_name: str) -> None:
    part, unit = FOUND[part_name], UNITS[part_name]
    assert (len(part["seeds"]) > 1) == (part_name == SEVERAL)
    assert {"three-tier"} <= {row["name"] for row in part["rows"]} <= set(EVERY)
    for row in part["rows"]:
        assert row["config"] == EVERY[row["name"]]
        config = load_config(find_config(row["config"]), overrides=SETTINGS).config
        assert config.run == run_of(row["name"]) == row["run"]
        step = FOUND["steps"][row["name"]]["seconds"] if unit == "seconds" else ()
        planned = with_budget(config, Budget(unit, part["amount"], tuple(step))).train  # type: ignore[arg-type]
        assert row["tokens"] == planned.total_steps * planned.seq_len * planned.batch_size
        assert row["state_bytes"] == mixers._state_bytes(row["name"])
        assert (row["bits_per_byte"]["deviation"] is None) == (len(part["seeds"]) == 1)
    assert torch.__version__.partition(".")[0] == part["torch"].partition(".")[0]


def test_the_pages_show_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    found = tables(FOUND)
    for page, lines in found.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert rewritten(text, lines) == text, "type: python -m benchmarks.mixers --table"
    assert "\n".join(found["docs/mixers.md"]) in (ROOT / "docs/mixers.md").read_text("utf-8")
    main(["--table"])
    printed = capsys.readouterr().out
    assert all("\n".join(lines) in printed for lines in found.values())


def test_a_table_takes_the_place_of_its_older_self_alone() -> None:
    lines = tables(FOUND)["README.md"]
    older = f"{lines[0]}\n|---|---:|\n| a model of before | 1 |\n"
    page = f"Before.\n\n| model | other |\n|---|---|\n\n{older}\nAfter.\n"
    assert rewritten(page, lines) == page.replace(older, "\n".join(lines) + "\n")
