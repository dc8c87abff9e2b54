"""README.md and docs/speed.md show what benchmarks/*.json holds, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import command, machine, tables
from benchmarks.bars import FILES
from benchmarks.tables import Result

ROOT = Path(__file__).resolve().parents[2]
RESULTS = tables.results()
each = pytest.mark.parametrize("result", RESULTS, ids=[result.name for result in RESULTS])


@pytest.mark.parametrize("page", tables.PAGES)
def test_a_page_shows_the_figures_of_the_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- speed: " in text
    again = tables.rewritten(text, tables.blocks(RESULTS))
    assert again == text, "type: python -m benchmarks tables --write"


@each
def test_a_figure_is_drawn_from_its_file(result: Result, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.svg"
    saved = ROOT / "benchmarks" / f"{result.name}.json"
    assert command.main(["figure", str(saved), "--out", str(drawn)]) == 0
    assert drawn.read_bytes() == saved.with_suffix(".svg").read_bytes()


@each
def test_a_file_is_a_whole_measurement_of_its_class(result: Result) -> None:
    report = result.report
    assert FILES[report["class"]] == f"{result.name}.json"
    assert not report["dirty"] and not report["wrong"] and not report["quick"]
    assert re.fullmatch(r"[0-9a-f]{7,40}", report["commit"])
    used = {case.rsplit(" ", 1)[-1] for group in report["groups"] for case in group["seconds"]}
    if result.bars.dtype == "fp32":
        assert "bf16" not in used
    if report["restricted_to"]:
        assert report["restricted_to"] == report["class"]
        assert report["variables"] in machine.RESTRICTIONS.values()
        assert f"restricted to {report['class']}" in result.title


def test_every_result_file_is_shown() -> None:
    named = {path.name for path in (ROOT / "benchmarks").glob("*.json")} - {
        "results.json",
        "recall.json",
        "recall_minutes.json",
        "replies.json",
        "diloco.json",
        "mixers.json",
        "abilities.json",
        "plan.json",
    }
    assert named == {f"{result.name}.json" for result in RESULTS}
    assert RESULTS


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in (*tables.PAGES, *(f"benchmarks/{result.name}.json" for result in RESULTS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_new_file_fills_the_pages_by_one_command(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = project / "benchmarks" / f"{RESULTS[0].name}.json"
    report: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
    (layer,) = (group for group in report["groups"] if group["name"] == tables.WIDEST)
    layer["seconds"]["windowed bf16"] = layer["seconds"][layer["facts"]["default"]]
    report |= {"class": "AVX512-BF16", "restricted_to": "AVX512-BF16", "processor": "A new one"}
    (project / "benchmarks" / "avx512_bf16.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(machine, "ROOT", project)
    assert command.main(["tables", "--write"]) == 0
    for page in tables.PAGES:
        text = (project / page).read_text(encoding="utf-8")
        assert "| A new one restricted to AVX512-BF16 |" in text
    speed = (project / "docs/speed.md").read_text(encoding="utf-8")
    assert re.search(r"times the same without a compiler \| [\d.]+ \| 1\.0 \|", speed)
    assert (project / "benchmarks" / "avx512_bf16.svg").exists()


def test_a_missed_bar_is_beside_its_figure() -> None:
    (amx,) = (result for result in RESULTS if result.name == "amx")
    assert amx.figure(f"{tables.WIDEST} / LSTM") == "5.3"
    assert amx.figure("memory bound") == "54 % (bar: 60)"
    assert amx.figure("no such figure") == "–"
