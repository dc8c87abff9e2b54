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
