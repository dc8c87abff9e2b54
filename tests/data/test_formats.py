"""Conversations are read from every form in which people keep them, or refused by line."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ys_llm.data.chat import Conversation, PreferencePair, Turn
from ys_llm.data.conversations import Examples, read_examples
from ys_llm.data.formats import parse_record
from ys_llm.data.readers import read_documents
from ys_llm.data.records import Document
from ys_llm.errors import UserError
from ys_llm.system.lock import RUN_LOCK

USER, REPLY = Turn("user", "Who are you? 👩‍🚀 <end>"), Turn("assistant", "A cat.</s><|im_end|>")
SYSTEM = Turn("system", "Be kind.")
HI = (Turn("user", "Hi"), Turn("assistant", "Ho"))
PART, IMAGE = [{"type": "text", "text": "a"}], [{"type": "image"}]
LONG = "meow " * 20_000  # 100 kB
MESSAGES = [{"role": turn.role, "content": turn.text} for turn in (SYSTEM, USER, REPLY)]
SHAREGPT = [{"from": "human", "value": USER.text}, {"from": "gpt", "value": REPLY.text}]
PAIR = {"prompt": "Who?", "chosen": "A cat.", "rejected": "No."}


def written(path: Path, *records: Any) -> Path:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(lines, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "form", "turns"),
    [
        ({"messages": MESSAGES, "id": 3}, "messages", (SYSTEM, USER, REPLY)),
        ({"conversations": SHAREGPT}, "conversations", (USER, REPLY)),
        ({"conversations": SHAREGPT, "system": "Be kind."}, "conversations", (SYSTEM, USER, REPLY)),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is"},
            "alpaca",
            (Turn("user", "Add.\n\n1 2"), Turn("assistant", "3")),
        ),
        (
            {"instruction": "Hi", "input": None, "output": "Ho"},
            "alpaca",
            (Turn("user", "Hi"), Turn("assistant", "Ho")),
        ),
        ({"prompt": "Hi", "completion": "Ho"}, "prompt", HI),
        ({"prompt": MESSAGES[:2], "completion": MESSAGES[2:]}, "prompt", (SYSTEM, USER, REPLY)),
        (
            {"messages": [MESSAGES[1], MESSAGES[2], MESSAGES[2]]},
            "messages",
            (USER, REPLY, REPLY),
        ),
        (
            {"messages": [{"role": "system", "content": ""}, *MESSAGES[1:]]},
            "messages",
            (USER, REPLY),
        ),
        (
            {"messages": [{"role": "user", "content": LONG}, MESSAGES[2]]},
            "messages",
            (Turn("user", LONG), REPLY),
        ),
        (
            {"messages": [{"role": "user", "content": PART}, MESSAGES[2]]},
            "messages",
            (Turn("user", "a"), REPLY),
        ),
    ],
)  # fmt: skip
def test_every_form_is_read(record: dict[str, Any], form: str, turns: tuple[Turn, ...]) -> None:
    assert parse_record(record) == (form, Conversation(turns))


def test_pairs_are_texts_or_messages_with_or_without_a_prompt() -> None:
    who = (Turn("user", "Who?"),)
    sides = ((Turn("assistant", "A cat."),), (Turn("assistant", "No."),))
    expected = ("preferences", PreferencePair(who, *sides))
    assert parse_record(PAIR) == expected
    asked = {"role": "user", "content": "Who?"}
    chosen, rejected = (
        [asked, {"role": "assistant", "content": PAIR[name]}] for name in ("chosen", "rejected")
    )
    assert parse_record({"chosen": chosen, "rejected": rejected}) == expected
    for prompt in ("Who?", [asked]):
        assert (
            parse_record({"prompt": prompt, "chosen": chosen, "rejected": rejected[1:]}) == expected
        )
        assert parse_record({"prompt": prompt, "chosen": chosen, "rejected": rejected}) == expected


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([], "found list, not an object"),
        ({"question": "a", "answer": "b"}, "found the fields 'question', 'answer'"),
        ({"messages": None}, "'messages' is null, not a list"),
        ({"messages": ["hi"]}, r"messages\[0\] is str, not an object"),
        ({"messages": [{"content": "hi"}]}, r"messages\[0\] has no 'role', .*'content'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no 'content', .*'role'"),
        ({"messages": [{"role": "judge", "content": "a"}]}, "has the role 'judge'"),
        ({"messages": [{"role": "user", "content": None}]}, "'content' is null, not a string"),
        ({"messages": [{"role": "user", "content": " "}]}, "the turn of the user is empty"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "a part that is no text"),
        ({"messages": MESSAGES[:2]}, "no turn of the assistant"),
        ({"messages": []}, "no turn of the assistant"),
        ({"instruction": "a", "output": ""}, "the turn of the assistant is empty"),
        ({"prompt": "a", "completion": 3}, "'completion' is int, not a string"),
        ({"prompt": "a", "completion": "\ud800"}, "half of a character"),
        ({"chosen": "a", "rejected": ""}, "'rejected' is empty"),
        ({"chosen": MESSAGES, "rejected": MESSAGES}, "'chosen' has no reply of its own"),
    ],
)  # fmt: skip
def test_what_fits_no_form_is_refused_with_the_reason(record: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_record(record)


def test_a_folder_may_mix_files_of_all_forms(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", {"messages": MESSAGES}, {"text": "Plain."})
    (tmp_path / "b.json").write_text(json.dumps([{"conversations": SHAREGPT}], indent=1))
    for name, delimiter in (("c.csv", ","), ("d.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            rows = [("instruction", "output"), (f"In {name}", 'a "b",\nc')]
            csv.writer(file, delimiter=delimiter).writerows(rows)
    (tmp_path / "e.txt").write_text("Hi<start>Ho<end>")
    (tmp_path / "README.md").write_text("not read")
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / RUN_LOCK).touch()
    (tmp_path / "a run" / "config.json").write_text("{}")
    examples = read_examples(tmp_path)
    assert examples.forms == {
        "alpaca": 2,
        "messages": 1,
        "conversations": 1,
        "text": 1,
        "prompt": 1,
    }
    assert examples.forms_line() == "2 alpaca, 1 conversations, 1 messages, 1 prompt, 1 text"
    chats = {one.turns for one in examples.found if isinstance(one, Conversation)}
    assert (Turn("user", "Hi"), Turn("assistant", "Ho")) in chats
    assert (Turn("user", "In d.tsv"), Turn("assistant", 'a "b",\nc')) in chats
    texts = [one for one in examples.found if isinstance(one, Document)]
    assert [(one.text, one.source) for one in texts] == [("Plain.", f"{tmp_path}/a.jsonl:2")]


def test_prompts_alone_stay_records(tmp_path: Path) -> None:
    examples = read_examples(written(tmp_path / "a.jsonl", {"prompt": "a", "response": "b"}))
    assert examples.found == [Document("b", "a", f"{tmp_path}/a.jsonl:1")]


def test_a_bad_record_is_named_with_its_line_or_skipped_and_listed(tmp_path: Path) -> None:
    good, bad = {"messages": MESSAGES}, {"question": "a"}
    path = written(tmp_path / "a.jsonl", good, bad, good)
    with pytest.raises(UserError, match=r"a\.jsonl:2: found the fields 'question'") as refused:
        read_examples(path)
    assert "data.on_bad_record=skip" in refused.value.fix
    examples = read_examples(path, on_bad_record="skip")
    assert len(examples.found) == 2
    with pytest.raises(UserError, match="found the fields") as pretraining:
        read_documents(path)
    assert "ys sft BASE" in pretraining.value.fix
    assert examples.skipped_line() == f"1 records: {path}:2: found the fields 'question'"
    assert Examples(skipped=["x"] * 7).skipped_line().endswith("; and 2 more")


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text"', r":2: not JSON"),
        ("a.json", '[{"text": "a"},\n\n{"question": 1}]', r":3: found the fields"),
        ("a.json", '[{"text": "a"}\n{"text": "b"}]', r":2: .*expected , or \]"),
        ("a.json", '[{"text": "a"}]\n]', r":2: .*Expecting value"),
        ("a.json", '[{"text": "a"},\n{"text": "b\n', r":2: .*Invalid control character"),
        ("a.json", '[{"text": "a"},\n' + "[" * 200_000, r":2: .*nested too deep"),
        ("a.json", '[{"text": "a", "text": "b"}]', "the field 'text' is given twice"),
        ("a.csv", 'text\n"two\nlines"\na,b\n', r":4: 2 cells below 1 columns"),
        ("a.csv", "text,text\n1,2\n", "the column 'text' is there twice"),
        ("a.csv", "question\n1\n", r":2: found the fields 'question'"),
    ],
)
def test_the_line_of_what_is_wrong_is_told(
    tmp_path: Path, name: str, content: str, where: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=where):
        read_examples(tmp_path / name)


def test_a_form_can_be_forced(tmp_path: Path) -> None:
    both = {"messages": MESSAGES, "prompt": "a", "completion": "b"}
    path = written(tmp_path / "a.jsonl", both)
    assert read_examples(path).forms == {"messages": 1}
    assert read_examples(path, data_format="prompt").forms == {"prompt": 1}
    with pytest.raises(UserError, match="not 'instruction' and 'output'"):
        read_examples(path, data_format="alpaca")
