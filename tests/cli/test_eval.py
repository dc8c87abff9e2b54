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
    "Spell garden.<start>G-A-R-D-E-N<end>\n"
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
    assert {(row["kind"], row["check"]): row["prompts"] for row in rows} == {
        ("stories", "all"): 1,
        ("stories", "names_the_asked"): 1,
        ("stories", "keeps_its_hero"): 1,
        ("stories", "keeps_names_apart"): 1,
        ("stories", "keeps_pronouns"): 1,
        ("stories", "names_the_trait"): 1,
        ("spelling", "spell"): 1,
    }
    spelled = next(row for row in rows if row["kind"] == "spelling")
    assert (spelled["share"], spelled["in_the_text"]) == (0, 1)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", run, str(tmp_path / "new.md"), "--obedience", "0"])
    assert stopped.value.code == EXIT_USAGE
    assert "--obedience must be at least 1" in capsys.readouterr().err


def test_tasks_are_printed_and_kept(
    train_run: TrainRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run().run
    capsys.readouterr()
    words = ["--tasks", "passkey,mqar", "--lengths", "150,200", "--samples", "2"]
    assert main(["eval", str(run), *words, "--json"]) == 0
    passkey, mqar = json.loads(capsys.readouterr().out)
    assert [row["tokens"] for row in passkey["rows"] if row["depth"] == "all"] == [150, 200]
    assert all(row["state_bytes"] > 0 for row in passkey["rows"])
    assert [row["size"] for row in mqar["rows"]] == [2, 4, 8, 16, 32]
    assert json.loads((run / "evaluations/passkey.json").read_text())["rows"] == passkey["rows"]
    (tmp_path / "new.md").write_text(RECORDS)
    assert main(["eval", str(run), str(tmp_path / "new.md"), "--tasks", "bits_by_kind"]) == 0
    title, header, new = capsys.readouterr().out.splitlines()
    assert title == "bits_by_kind: bits per byte of each kind of text"
    assert header.split()[:3] == ["path", "kind", "documents"]
    assert new.split()[1:3] == ["new", "2"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give a file or folder after the run, or --tasks that need none"),
        (["--tasks", "recall,passkey"], "give a file or folder after the run"),
        (["text", "--tasks", "passkey"], "passkey needs no file or folder"),
        (["--tasks", "passkey", "--lengths", "1k"], "--lengths takes numbers"),
        (["--tasks", "passkey", "--samples", "0"], "--samples must be at least 1"),
        (["--tasks", "mqar", "--long"], "--long is for --tasks passkey"),
        (["--tasks", ","], "--tasks takes names with commas between them"),
        (["--tasks", "s5"], "Type: ys compare default llama --task s5"),
        (["--tasks", "piano"], "there is no 'piano'. Choose some of bits_by_kind, "),
        (["--task", "passkey"], "--task is now --tasks"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "some_run", *words])
    assert stopped.value.code == EXIT_USAGE
    assert problem in capsys.readouterr().err
