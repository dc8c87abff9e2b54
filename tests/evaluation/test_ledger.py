"""The ledger of comparisons: a line for each, whole even after a crash."""

from __future__ import annotations

from pathlib import Path

from ys_llm.evaluation.ledger import read, record

ONE = {"runs": {"a": "1"}, "seeds": (1, 2)}
OTHER = {"runs": {"a": "2"}, "seeds": (1, 2)}


def test_a_comparison_has_one_line_however_often_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "experiments.jsonl"
    for entry in (ONE, OTHER, ONE, OTHER):
        record(path, entry, keep=None)
    assert [line["runs"] for line in read(path)] == [ONE["runs"], OTHER["runs"]]
    assert [line["kept"] for line in read(path)] == [None, None]


def test_what_was_kept_is_noted_in_its_own_line_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "experiments.jsonl"
    for entry, keep in ((ONE, None), (OTHER, None), (ONE, "a"), (ONE, None)):
        record(path, entry, keep=keep)
    assert [line["kept"] for line in read(path)] == ["a", None]


def test_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "experiments.jsonl"
    record(path, ONE, keep=None)
    with path.open("a") as file:
        file.write('{"runs": {"a"')
    record(path, OTHER, keep=None)
    assert [line["runs"] for line in read(path)] == [ONE["runs"], OTHER["runs"]]
