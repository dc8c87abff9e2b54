"""`ys plan` prints a table or JSON, and refuses numbers that mean nothing."""

from __future__ import annotations

import json

import pytest

from ys_llm.cli.main import main

SMALL = ["--set", "model.n_layers=1", "--set", "model.d_model=32"]


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *SMALL, *words]) == 0
    return capsys.readouterr().out


def test_a_line_for_each_number_of_devices_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    lines = plan(capsys, "--devices", "8,16", "--tokens", "1e9").splitlines()
    assert lines[0].startswith("model ") and "1,000,000,000 tokens" in lines[1]
    table = [line.split()[:2] for line in lines[4:9]]
    expected = [["8", "DDP"], ["8", "FSDP2"], ["16", "DDP"], ["16", "FSDP2"], ["16", "DiLoCo"]]
    assert table == expected
    assert len({len(line) for line in lines[3:9]}) == 1  # in columns


def test_more_devices_than_rows_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(capsys, "--devices", "64")
    assert "32 of 64 devices have no row: use a larger train.batch_size" in out


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(plan(capsys, "--cluster", "laptops", "--json", "--simulate", "20"))
    assert found["cluster"]["nodes"] == 4
    assert [row["method"] for row in found["plans"]] == ["DDP", "FSDP2", "DiLoCo"]
    assert len(found["plans"][0]["simulated_days"]) == 20
    assert found["workload"]["parameters"] > 0


def test_simulated_days_are_shown_as_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert " to " in plan(capsys, "--cluster", "laptops", "--simulate", "20").splitlines()[4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "8,x"], "--devices must be numbers such as 8,64, found 8,x"),
        (["--devices", "0"], "--devices must be numbers"),
        (["--tokens", "0"], "--tokens must be 1 to 1e18, found 0"),
        (["--inner-steps", "0"], "--inner-steps must be at least 1, found 0"),
        (["--simulate", "-1"], "--simulate must be 0 to 10000 runs, found -1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
