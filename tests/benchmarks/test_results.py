"""The tables of results in README.md and docs/ are those of benchmarks/results.json.

Training them again takes hours, so everything but that is done here: each row's command is read as
a real configuration, its model is built and counted, and its figures are found in the text.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
)
ROWS: list[dict[str, Any]] = json.loads((ROOT / "benchmarks/results.json").read_text("utf-8"))
named = pytest.mark.parametrize("row", ROWS, ids=[row["run"] for row in ROWS])


def config_of(row: dict[str, Any]) -> Config:
    words = shlex.split(row["command"])
    assert words[:3] == ["ys", "train", "--config"]
    flags, overrides = words[4::2], words[5::2]
    assert set(flags) <= {"--set"} and len(flags) == len(overrides)
    return load_config(ROOT / words[3], overrides=overrides).config


@named
def test_a_row_says_how_it_was_made(row):
    config = config_of(row)
    assert config.train.seed == row["seed"]
    assert re.fullmatch(r"[0-9a-f]{7,40}", row["commit"])
    assert row["hardware"] and row["torch"]
    planned = sum(s.steps * s.seq_len * s.batch_size for s in config.train.plan)
    assert row["tokens"] == planned * config.train.grad_accum_steps


@named
def test_a_row_counts_the_parameters_of_its_model(row):
    with torch.device("meta"):
        model = Model(config_of(row).model, vocab_size=row["vocab_size"])
    assert parameter_count(model) == row["parameters"]


@named
def test_the_text_shows_the_figures_of_a_row(row):
    cells = [
        f"{row['parameters']:,}",
        f"{row['tokens'] / 1e6:.1f} M",
        f"{row['tokens_per_second']:,.0f}",
        f"{row[row['figure']]:.3f}",
    ]
    lines = [line for line in TEXT.splitlines() if line.startswith("|") and row["name"] in line]
    assert any(all(f" {cell} " in line for cell in cells) for line in lines), (row["name"], cells)
