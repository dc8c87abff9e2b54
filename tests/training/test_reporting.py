"""What training writes for its report, and that a report never stops it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.html_pages import problems_of
from support.training_runs import TrainRun

from ys_llm.errors import UserError
from ys_llm.runs.history import read_facts
from ys_llm.training import reporting
from ys_llm.training.loop import TrainSummary

EVENTS = ("train.eval_interval=2", "train.checkpoint_interval=3", "train.sample_interval=2")


def page_of(summary: TrainSummary) -> str:
    return (summary.run / "report.html").read_text(encoding="utf-8")


def test_a_run_has_a_page_with_its_facts_and_origins_survive_resuming(train_run: TrainRun) -> None:
    first = train_run(*EVENTS)
    facts = read_facts(first.run)
    assert problems_of(page_of(first)) == []
    assert facts["status"] == "done" and not facts["ended_badly"]
    assert facts["corpus"]["training"]["documents"] > facts["corpus"]["held_out"]["documents"] > 0
    assert facts["origins"]["train.eval_interval"] == "--set"
    assert {row["layer"] for row in facts["state"]} == {"layer 1"}
    assert {row["part"] for row in facts["state"]} >= {"main"}
    assert facts["by_position"][0]["first"] == 0
    train_run("train.max_steps=8", *EVENTS)
    facts = read_facts(first.run)
    assert [one["from_step"] for one in facts["sessions"]] == [0, 6]
    assert "8 steps" in page_of(first)


def test_a_run_that_is_killed_has_the_page_of_its_last_evaluation(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []
    monkeypatch.setattr(reporting, "MOST_COST", 1e9)
    write = reporting.write_report
    monkeypatch.setattr(
        reporting, "write_report", lambda run: pages.append(write(run).read_text("utf-8"))
    )
    train_run(*EVENTS)
    assert len(pages) == 6  # at the beginning, at steps 2, 3, 4 and 6, and at the end
    assert "Training went on when this was written" in pages[1]
    assert "Step 2" in pages[1] and "Step 4" not in pages[1]


def test_a_report_that_takes_long_is_written_less_often(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(reporting, "MOST_COST", 1e-9)
    monkeypatch.setattr(reporting, "write_report", calls.append)
    train_run(*EVENTS)
    assert len(calls) == 2  # at the beginning and at the end


def test_a_report_that_cannot_be_written_is_said_once_and_stops_nothing(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Path) -> None:
        raise UserError("no space")

    monkeypatch.setattr(reporting, "MOST_COST", 1e9)
    monkeypatch.setattr(reporting, "write_report", fail)
    assert train_run(*EVENTS).steps == 6
    assert capfd.readouterr().err.count("report       not written: no space") == 1


@pytest.mark.parametrize(
    ("error", "is_bad"),
    [
        (None, False),
        (UserError("diverged", exit_code=5), True),
        (UserError("no space", exit_code=1), True),
        (UserError("stopped by SIGINT", exit_code=130), False),
        (KeyboardInterrupt(), False),
        (RuntimeError("bug"), True),
    ],
)
def test_which_ends_are_bad(error: BaseException | None, is_bad: bool) -> None:
    assert reporting.is_bad_end(error) is is_bad
