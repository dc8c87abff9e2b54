"""What a training shows, and a metrics.jsonl that holds each step once."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from ys_llm.runs.history import read_metrics
from ys_llm.training.metrics import LINE_INTERVAL, Metrics, Progress, log_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(show: Progress, numbers: range) -> None:
    for number in numbers:
        show.step({"step": number, "loss": 2.5}, speed=12345.6, seconds_left=90.0)


def test_without_a_terminal_there_is_a_line_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    total = 2 * LINE_INTERVAL + 7
    show = Progress(begin=0, total=total)
    steps(show, range(1, total + 1))
    show.close()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split()[1] for line in lines] == [
        f"{LINE_INTERVAL}/{total}",
        f"{2 * LINE_INTERVAL}/{total}",
        f"{total}/{total}",
    ]
    assert lines[0].endswith("loss 2.500  12,346 tokens/s  1.5 min left")
    assert captured.out == ""


def test_on_a_terminal_there_is_a_bar_that_goes_on_where_training_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show = Progress(begin=40, total=50)
    steps(show, range(41, 51))
    show.log_line("a line that stays")
    show.close()
    shown = terminal.getvalue()
    assert "40/50" in shown
    assert "50/50" in shown
    assert "loss 2.500  12,346 tokens/s" in shown
    assert "\na line that stays\n" in shown.replace("\r", "\n")
    assert "min left" not in shown


def test_a_line_of_the_header_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log_line("corpus       32 documents")
    assert capsys.readouterr() == ("", "corpus       32 documents\n")


def test_rows_reach_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, keep_to_step=0)
    metrics.write({"step": 1, "loss": 2.0})
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    metrics.write({"step": 2, "loss": 1.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    metrics.close()


def test_going_on_drops_the_rows_that_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": number, "loss": 1 / number} for number in range(1, 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "lo')
    assert read_metrics(path) == rows
    metrics = Metrics(path, keep_to_step=5)
    metrics.write({"step": 6, "loss": 0.1})
    metrics.close()
    assert read_metrics(path) == [*rows[:5], {"step": 6, "loss": 0.1}]


def test_a_run_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
