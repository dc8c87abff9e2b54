"""A measured choice is made once on a machine; damage to its record costs a measurement."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ys_llm.errors import UserError
from ys_llm.ops import choices
from ys_llm.ops.choices import Answer, Question, disturbance, recorded, time_in_turn

QUESTION = Question("backend", ("old", "new"), {"batch": "4"})
SECONDS = {"old": (2.0, 2.1), "new": (1.0, 1.1)}


def answering(choice: str) -> Callable[[], Answer]:
    return lambda: Answer(choice, f"{choice} is faster", SECONDS)


def refuse() -> Answer:
    raise AssertionError("there is a record")


def asked(measure: Callable[[], Answer], question: Question = QUESTION) -> str:
    record = recorded(question, measure)
    assert record is not None
    return record.choice


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def test_an_answer_is_measured_once_and_then_read(own_records: Path) -> None:
    first = recorded(QUESTION, answering("new"))
    assert first is not None
    assert first.explanation == f"new is faster, as measured on this machine on {first.date}"
    assert recorded(QUESTION, refuse) == first
    assert [r.choice for r in choices.records()] == ["new"]
    figures = "(old 2,050.00 ms, new 1,050.00 ms)"
    assert choices.shown(first) == f"backend (batch 4): new, {first.explanation} {figures}"
    assert {path.suffix for path in own_records.iterdir()} <= {".json", ""}, "no temporary file"


def test_what_is_forgotten_is_measured_anew(own_records: Path) -> None:
    assert asked(answering("new")) == "new"
    assert choices.forget() == 1
    assert asked(answering("old")) == "old"
    own_records.joinpath("folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json"):
        choices.forget()


def test_without_a_folder_there_is_nothing_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "records_folder", lambda: None)
    assert choices.forget() == 0


def test_other_details_are_another_question(own_records: Path) -> None:
    assert asked(answering("new")) == "new"
    assert asked(answering("old"), QUESTION._replace(details={"batch": "8"})) == "old"
    assert asked(answering("old"), QUESTION._replace(subject="dtype")) == "old"
    assert asked(refuse) == "new"


@pytest.mark.parametrize("changed", ["threads", "YS_CPU_LEVEL", "torch", "library", "settings"])
def test_other_conditions_are_measured_anew(
    changed: str, monkeypatch: pytest.MonkeyPatch, threads_as_they_were: None
) -> None:
    torch.set_num_threads(1)
    assert asked(answering("new")) == "new"
    if changed == "threads":
        torch.set_num_threads(2)
    elif changed == "YS_CPU_LEVEL":
        monkeypatch.setattr(choices.machine, "cpu_class", lambda: "abacus")
    elif changed == "torch":
        monkeypatch.setattr(torch, "__version__", "9.0")
    elif changed == "library":
        other = SimpleNamespace(path=Path("ys-of-other-sources.so"))
        monkeypatch.setattr(choices.loader, "load", lambda: other)
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert asked(answering("old")) == "old"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: "[" * 30_000,
        lambda text: "\x00" * 100_000,
        lambda text: text.replace('"new"', '"newest"'),
        lambda text: text.replace('"batch": "4"', '"batch": "5"'),
        lambda text: text.replace('"date"', '"day"'),
        lambda text: text.replace('"reason"', '"extra": 1, "reason"'),
        lambda text: json.dumps({**json.loads(text), "date": "yesterday"}),
        lambda text: json.dumps({**json.loads(text), "seconds": {"old": [-1.0]}}),
        lambda text: json.dumps({**json.loads(text), "conditions": []}),
    ],
)
def test_a_damaged_record_is_measured_anew_and_replaced(
    own_records: Path, damage: Callable[[str], str]
) -> None:
    asked(answering("new"))
    path = file_of(own_records)
    path.write_text(damage(path.read_text()))
    assert asked(answering("old")) == "old"
    assert asked(refuse) == "old"
    assert file_of(own_records) == path


def test_a_record_of_bytes_that_are_no_text_is_measured_anew(own_records: Path) -> None:
    asked(answering("new"))
    file_of(own_records).write_bytes(b"\xff\xfe\x00")
    assert choices.records() == []
    assert asked(answering("old")) == "old"


def test_without_a_folder_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "records_folder", lambda: None)
    assert recorded(QUESTION, refuse) is None
    assert choices.records() == []


def test_a_folder_that_cannot_be_written_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(choices, "records_folder", lambda: tmp_path / "file" / "choices")
    assert recorded(QUESTION, refuse) is None
    assert choices.records() == []


def test_processes_that_ask_at_once_measure_once(own_records: Path) -> None:
    both, answers = threading.Barrier(2, timeout=30), list[str]()
    measured: list[str] = []

    def ask(choice: str) -> None:
        def measure() -> Answer:
            measured.append(choice)
            return answering(choice)()

        both.wait()
        answers.append(asked(measure))

    threads = [threading.Thread(target=ask, args=(choice,)) for choice in QUESTION.options]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measured) == 1
    assert answers == measured * 2


def test_the_first_to_write_wins_where_locks_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "wait_for_lock", lambda path, seconds: nullcontext())

    def measure_while_another_writes() -> Answer:
        assert asked(answering("new")) == "new"
        return answering("old")()

    assert asked(measure_while_another_writes) == "new"
    assert asked(refuse) == "new"


def test_calm_rounds_are_kept_and_disturbed_ones_repeated(quiet_machine: None) -> None:
    calm = time_in_turn({"old": lambda: 2.0, "new": lambda: 1.0})
    assert calm.disturbance == ""
    assert calm.gain("new", over="old") == 2.0
    draws = iter([1.0, 3.0, 9.0, 27.0, 81.0] + [1.0] * 5)
    assert time_in_turn({"only": lambda: next(draws)}).seconds == {"only": (1.0,) * 5}


def test_one_slow_round_is_let_pass_two_are_not() -> None:
    assert disturbance({"a": (1.0, 1.1, 1.0, 9.0, 1.2)}, 0.01) == ""
    two = disturbance({"a": (1.0,) * 5, "b": (1.0, 5.0, 1.0, 9.0, 1.0)}, 0.01)
    assert two == "rounds differed by 5.0 times"
    assert disturbance({"a": (1.0,) * 5}, 0.4) == "threads waited for a core 40% of the time"
