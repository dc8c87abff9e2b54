"""The table of what models remember is that of benchmarks/recall.json, and its models exist."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import recall
from benchmarks.recall import CONTENDERS, MINUTES_FILE, busy_percent, main, markdown
from ys_llm.config.sources import Resolved, load_config
from ys_llm.evaluation.compare import PARAMETER_TOLERANCE
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model

ROOT = Path(__file__).resolve().parents[2]
RESULTS: dict[str, Any] = json.loads((ROOT / "benchmarks/recall.json").read_text("utf-8"))
IN_MINUTES: dict[str, Any] | None = (
    json.loads(MINUTES_FILE.read_text("utf-8")) if MINUTES_FILE.exists() else None
)
ROWS = [*RESULTS["rows"], *(IN_MINUTES["rows"] if IN_MINUTES else [])]


def parameters_of(changes: list[str]) -> int:
    config = load_config(ROOT / "configs/quickstart.yaml", overrides=changes).config
    with torch.device("meta"):
        return parameter_count(Model(config.model, vocab_size=config.tokenizer.vocab_size))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_row_has_its_settings_and_parameters(row: dict[str, Any]) -> None:
    assert row["changes"] == CONTENDERS[row["name"]]
    assert row["parameters"] == parameters_of(row["changes"])


def test_all_models_are_as_large_as_the_quickstart() -> None:
    counts = [parameters_of(changes) for changes in CONTENDERS.values()]
    assert max(counts) <= min(counts) * (1 + PARAMETER_TOLERANCE)


def test_the_page_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = markdown(RESULTS, IN_MINUTES)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page
    assert {len(row["bits_per_byte"]) for row in ROWS} == {3}
    main(["--table"])
    assert capsys.readouterr().out.splitlines() == lines


def row(name: str, bits: list[float]) -> dict[str, Any]:
    return {
        "name": name,
        "changes": [],
        "parameters": 1000,
        "tokens": [2_000_000] * len(bits),
        "tokens_per_second": [500.0] * len(bits),
        "bits_per_byte": bits,
        "names_again": [0.5] * len(bits),
    }


def test_both_budgets_are_shown_side_by_side() -> None:
    steps = {"rows": [row("three-tier", [0.3, 0.4])]}
    minutes = {"minutes": 2.0, "rows": [row("hybrid", [0.2]), row("three-tier", [0.5])]}
    assert markdown(steps, minutes) == [
        "| model | parameters | bits per byte | nats on names again "
        "| M tokens, 2 minutes | bits per byte, 2 minutes | nats on names again, 2 minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| three-tier | 1,000 | 0.350 ± 0.071 | 0.50 ± 0.00 | 2.00 | 0.500 | 0.50 |",
        "| hybrid | 1,000 |  |  | 2.00 | 0.200 | 0.50 |",
    ]
    assert markdown(None, minutes)[0] == markdown(steps, None)[0]


def test_steps_are_not_timed_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall.psutil, "cpu_percent", lambda interval: 40.0)
    assert busy_percent(refuse=False) == 40
    with pytest.raises(SystemExit, match="other processes keep 40 % of the cores busy"):
        busy_percent(refuse=True)
    monkeypatch.setattr(recall.psutil, "cpu_percent", lambda interval: 1.0)
    assert busy_percent(refuse=True) == 1


def test_minutes_are_as_many_steps_as_were_timed_to_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def time_steps(contenders: Sequence[Resolved], runs_dir: Path) -> dict[str, SimpleNamespace]:
        names = [one.config.run for one in contenders]
        return {name: SimpleNamespace(seconds=(n / 8,)) for n, name in enumerate(names, 1)}

    trained: list[tuple[str, int, int]] = []

    def train(name: str, seed: int, steps: int) -> dict[str, Any]:
        trained.append((name, seed, steps))
        summary = {"parameters": 5, "tokens": steps, "tokens_per_second": 1.0, "busy": 0.0}
        return summary | {"bits_per_byte": 1.0, "names_again": 1.0}

    monkeypatch.setattr(recall, "time_steps", time_steps)
    monkeypatch.setattr(recall, "_trained", train)
    monkeypatch.setattr(recall, "busy_percent", lambda refuse: 0.0)
    out = tmp_path / "minutes.json"
    main(["--minutes", "0.25", "--seeds", "2", "--out", str(out)])
    assert [steps for _, _, steps in trained] == [120, 60, 40, 30, 24] * 2
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [row["step_seconds"] for row in rows][:2] == [0.125, 0.25]
    assert [row["tokens"] for row in rows][:2] == [[120, 120], [60, 60]]
