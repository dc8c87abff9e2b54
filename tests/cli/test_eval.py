"""`ys eval` prints recall and obedience as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.training_runs import TrainRun

from ys_llm.cli.main import main
from ys_llm.errors import EXIT_USAGE

RECORDS = (
    "Tell me a story about a shy fox.<start>Zed met Zoe, and then Zed saw that Zoe ran.<end>\n"
)


def test_recall_and_obedience_are_printed(
    train_run: TrainRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(train_run("generate.max_tokens=3").run)
    (tmp_path / "new.md").write_text(RECORDS)
    capsys.readouterr()
    assert main(["eval", run, str(tmp_path / "new.md"), "--recall", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert ("names", "again") in {(row["words"], row["mention"]) for row in rows}
    assert main(["eval", run, str(tmp_path / "new.md"), "--obedience", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["check"]: row["prompts"] for row in rows} == {
        "names_the_asked": 1,
        "keeps_its_hero": 1,
    }
    with pytest.raises(SystemExit) as stopped:
        main(["eval", run, str(tmp_path / "new.md"), "--obedience", "0"])
    assert stopped.value.code == EXIT_USAGE
    assert "--obedience must be at least 1" in capsys.readouterr().err


def test_a_task_needs_no_text(train_run: TrainRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(train_run().run)
    capsys.readouterr()
    words = ["eval", run, "--task", "passkey", "--lengths", "150,200", "--samples", "2", "--json"]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["task"], row["tokens"], row["samples"]) for row in rows] == [
        ("passkey", 150, 2),
        ("passkey", 200, 2),
    ]
    assert all(row["state_bytes"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give a file or folder after the run, or --task"),
        (["text", "--task", "passkey"], "give a file or folder after the run, or --task"),
        (["--task", "passkey", "--lengths", "1k"], "--lengths takes numbers"),
        (["--task", "passkey", "--samples", "0"], "--samples must be at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "some_run", *words])
    assert stopped.value.code == EXIT_USAGE
    assert problem in capsys.readouterr().err
