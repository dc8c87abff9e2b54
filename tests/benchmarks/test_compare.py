"""python -m benchmarks compare: an old and a new file of one class of processors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import command, tables

RESULTS = tables.results()
GROUP, CASE = "layer 32,256,384,1024", "cpp bf16"


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(dict(next(r.report for r in RESULTS if r.report["class"] == "AMX")))


def compared(old: dict[str, Any], new: dict[str, Any], folder: Path) -> int:
    for name, saved in (("old", old), ("new", new)):
        (folder / f"{name}.json").write_text(json.dumps(saved), encoding="utf-8")
    return command.main(["compare", str(folder / "old.json"), str(folder / "new.json")])


def slowed(report: dict[str, Any], factor: float) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    seconds = next(g for g in changed["groups"] if g["name"] == GROUP)["seconds"]
    seconds[CASE] = [factor * s for s in seconds[CASE]]
    return changed


def test_a_file_equals_itself(report, tmp_path, capsys):
    assert compared(report, report, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20
    assert all("gain 1.00" in line for line in lines)


def test_a_figure_that_is_missing_is_named_and_ends_in_exit_code_1(report, tmp_path, capsys):
    new = copy.deepcopy(report)
    new["groups"] = [group for group in new["groups"] if group["name"] != "data"]
    without = next(g for g in new["groups"] if g["name"] == GROUP)["seconds"]
    for case in [case for case in without if case.startswith("nn.LSTM")]:
        del without[case]
    assert compared(report, new, tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    missing = [line.partition(":")[0] for line in lines if line.endswith("-> missing")]
    assert missing == [f"{GROUP} / LSTM", "tokenising", "second start"]
    assert lines[-1] == f"of {len(lines) - 1} figures 0 fell, 3 are missing"
    assert compared(new, report, tmp_path) == 0, "what only the newer file has is no loss"


def test_a_figure_that_fell_is_named(report, tmp_path, capsys):
    assert compared(report, slowed(report, 1.5), tmp_path) == 1
    fell = [line for line in capsys.readouterr().out.splitlines() if line.endswith("fell")]
    assert fell and all(line.startswith(GROUP) for line in fell)
    assert any("gain 0.67" in line for line in fell)


def test_what_got_better_or_stayed_within_the_spread_did_not_fall(report, tmp_path):
    assert compared(report, slowed(report, 0.5), tmp_path) == 0
    assert compared(report, slowed(report, 1.04), tmp_path) == 0


def test_seconds_fall_by_growing(report, tmp_path, capsys):
    slow = copy.deepcopy(report)
    start = next(g for g in slow["groups"] if g["name"] == "start")["seconds"]
    for case in start:
        start[case] = [3 * s for s in start[case]]
    assert compared(report, slow, tmp_path) == 1
    assert compared(slow, report, tmp_path) == 0
    assert "--help" in capsys.readouterr().out


def test_files_of_two_classes_are_refused(report, tmp_path, capsys):
    other = {**report, "class": "AVX2"}
    assert compared(report, other, tmp_path) != 0
    assert "class AMX and class AVX2 cannot be compared" in capsys.readouterr().err


def test_one_file_is_not_a_comparison(capsys):
    with pytest.raises(SystemExit):
        command.main(["compare", "benchmarks/amx.json"])
    assert "compare OLD.json NEW.json" in capsys.readouterr().err
