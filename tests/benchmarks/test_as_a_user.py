"""python -m benchmarks as a process of its own, its file, and the commands that read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sections, targets, training

ROOT = Path(__file__).resolve().parents[2]


def run_as_a_user(*words: str) -> subprocess.CompletedProcess[str]:
    command_line = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=900)


def figures_of(folder: Path, *words: str) -> dict[str, Any]:
    """The file of `python -m benchmarks WORDS`, after its readers have read it."""
    out = str(folder / "mine.json")
    measured = run_as_a_user(*words, "--out", out)
    assert measured.returncode == 0, measured.stderr
    table = run_as_a_user("table", out)
    compared = run_as_a_user("compare", out, out)
    assert table.returncode == compared.returncode == 0, compared.stdout
    report: dict[str, Any] = json.loads((folder / "mine.json").read_text(encoding="utf-8"))
    given = [target for target in targets.judge(report) if target.values]
    assert given and all(target.what in table.stdout for target in given)
    assert all(f"{target.key}: " in compared.stdout for target in given)
    assert all(target.line() in measured.stdout for target in given)
    return report


@pytest.mark.slow
def test_the_bench_measures_in_a_tiny_time_and_its_file_is_read_back(tmp_path: Path) -> None:
    report = figures_of(tmp_path, "model", "--quick", "--minutes", "0.01")
    names = [group["name"] for group in report["groups"]]
    lengths = sections.QUICK_LENGTHS
    trainings = [f"training T {n}" for n in lengths]
    assert names == ["machine", *trainings, "step default", "step quickstart"]
    for group in report["groups"][1:3]:
        sides = {case.rsplit(" ", 1)[0] for case in group["facts"]["tokens"]}
        assert set(training.JUDGED) <= sides


@pytest.mark.slow
def test_all_of_the_bench_ends_in_a_short_time_with_every_judged_figure(tmp_path: Path) -> None:
    report = figures_of(tmp_path, "all", "--minutes", "1")
    assert [group["name"] for group in report["groups"] if not group["seconds"]] == []
    judged = [target for target in targets.judge(report) if target.bar is not None]
    assert [target.key for target in judged if not target.values] == []
