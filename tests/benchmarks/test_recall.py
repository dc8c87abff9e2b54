"""The table of what models remember is that of benchmarks/recall.json, and its models exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.recall import CONTENDERS, main, markdown
from ys_llm.config.sources import load_config
from ys_llm.evaluation.compare import PARAMETER_TOLERANCE
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model

ROOT = Path(__file__).resolve().parents[2]
RESULTS: dict[str, Any] = json.loads((ROOT / "benchmarks/recall.json").read_text("utf-8"))


def parameters_of(changes: list[str]) -> int:
    config = load_config(ROOT / "configs/quickstart.yaml", overrides=changes).config
    with torch.device("meta"):
        return parameter_count(Model(config.model, vocab_size=config.tokenizer.vocab_size))


@pytest.mark.parametrize("row", RESULTS["rows"], ids=lambda row: row["name"])
def test_a_row_has_its_settings_and_parameters(row: dict[str, Any]) -> None:
    assert row["changes"] == CONTENDERS[row["name"]]
    assert row["parameters"] == parameters_of(row["changes"])


def test_all_models_are_as_large_as_the_quickstart() -> None:
    counts = [parameters_of(changes) for changes in CONTENDERS.values()]
    assert max(counts) <= min(counts) * (1 + PARAMETER_TOLERANCE)


def test_the_page_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = markdown(RESULTS)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page
    assert {len(row["bits_per_byte"]) for row in RESULTS["rows"]} == {3}
    main(["--table"])
    assert capsys.readouterr().out.splitlines() == lines
