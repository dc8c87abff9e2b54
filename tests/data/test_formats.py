"""Conversations are read from every form in which people keep them, or refused by line."""

import csv
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ys_llm.config.schema import DataConfig
from ys_llm.data.chat import Conversation, PreferencePair, Turn
from ys_llm.data.conversations import read_examples
from ys_llm.data.formats import parse_record
from ys_llm.data.readers import read_corpus, read_documents
from ys_llm.data.records import Document, Record
from ys_llm.data.tally import Tally
from ys_llm.errors import UserError
from ys_llm.system.lock import RUN_LOCK

USER, REPLY = Turn("user", "Who are you? 👩‍🚀 <end>"), Turn("assistant", "A cat.</s><|im_end|>")
SYSTEM = Turn("system", "Be kind.")
HI = (Turn("user", "Hi"), Turn("assistant", "Ho"))
PART, IMAGE = [{"type": "text", "text": "a"}], [{"type": "image"}]
LONG = "meow " * 20_000  # 100 kB
MESSAGES = [{"role": turn.role, "content": turn.text} for turn in (SYSTEM, USER, REPLY)]
SHAREGPT = [{"from": "human", "value": USER.text}, {"from": "gpt", "value": REPLY.text}]
SKIP = DataConfig(on_bad_record="skip")
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
        ({"prompt": "Hi", "completion": "Ho", "system": "Be kind."}, "prompt", (SYSTEM, *HI)),
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


def test_a_prompt_with_its_response_is_a_record() -> None:
    record = ("prompt", Record("Hi", "Ho"))
    assert parse_record({"prompt": "Hi", "completion": "Ho"}) == record
    assert parse_record({"prompt": "", "response": "Ho"}) == ("prompt", Record("", "Ho"))
    asked, said = {"role": "user", "content": "Hi"}, [{"role": "assistant", "content": "Ho"}]
    assert parse_record({"prompt": [asked], "completion": said}) == record


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
    counts = {"formats": "2 alpaca, 1 conversations, 1 messages, 1 prompt, 1 text"}
    assert examples.tally.notes() == counts
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
    examples = read_examples(path, SKIP)
    assert len(examples.found) == 2
    problem = "1 left out: {path}:2: found the fields 'question'"
    assert examples.tally.notes()["bad records"] == problem.format(path=path)


def test_pretraining_reads_texts_and_prompts_and_says_what_reads_conversations(
    tmp_path: Path,
) -> None:
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3"}
    path = written(tmp_path / "a.jsonl", {"text": "Plain."}, {"prompt": "p", "completion": "c"})
    (tmp_path / "b.json").write_text(json.dumps([alpaca]))
    (tmp_path / "c.md").write_text("q<start>a<end>\n")
    found = {(one.prompt, one.text) for one in read_documents(tmp_path)}
    assert found == {(None, "Plain."), ("p", "c"), ("Add.\n\n1 2", "3"), ("q", "a")}
    both = [read(tmp_path).tally.notes() for read in (read_corpus, read_examples)]
    assert both == [{"formats": "2 prompt, 1 alpaca, 1 text"}] * 2
    for record, what in (
        ({"messages": MESSAGES}, r"a conversation \(messages\)"),
        ({"conversations": SHAREGPT}, r"a conversation \(conversations\)"),
        ({**alpaca, "system": "Be kind."}, r"a conversation \(alpaca\)"),
        (PAIR, r"a pair of replies \(preferences\)"),
    ):
        written(path, {"text": "Plain."}, record)
        with pytest.raises(UserError, match=rf"a\.jsonl:2: found {what}, which pre") as refused:
            read_documents(tmp_path)
        assert f"ys sft BASE {path}" in refused.value.fix
        left_out = read_corpus(tmp_path, SKIP)
        assert left_out.tally.forms == {"text": 1, "prompt": 1, "alpaca": 1}
        assert "1 left out" in left_out.tally.notes()["bad records"]


BAD = [
    ("a.jsonl", '{"question": 1}\n{"text": "a"}', ":1: found the fields 'question'"),
    ("a.json", '[{"text": "a"}, {"text": 1}]', ":1: 'text' is int, not a string"),
    ("a.csv", "text\na\nb,c\n", ":3: 2 cells below 1 columns"),
    ("a.tsv", "question\nb\n", ":1: found the columns 'question'"),
    ("a.md", "q<start>a<end>\n<start>\n<end>", ":2: nothing between <start> and <end>; expected"),
]


@pytest.mark.parametrize("read", [read_corpus, read_examples])
@pytest.mark.parametrize(("name", "content", "problem"), BAD)
@pytest.mark.parametrize("compressed", [False, True])
def test_bad_records_are_named_or_left_out_and_listed_whatever_the_file_and_the_command(
    tmp_path: Path, read: Any, name: str, content: str, problem: str, compressed: bool
) -> None:
    path = tmp_path / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(content.encode()) if compressed else content.encode())
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(UserError, match=re.escape(f"{path}{problem}")):
        read(tmp_path)
    tally = read(tmp_path, SKIP).tally
    assert tally.notes()["bad records"].startswith(f"1 left out: {path}{problem}")
    assert tally.forms.total() == (1 if name == "a.tsv" else 2)


def test_of_many_problems_the_first_are_listed() -> None:
    tally = Tally()
    for number in range(4):
        one = Tally(Counter(text=1))
        one.bad_records.add(f"a:{number}")
        one.bad_records.add("b")
        one.skipped.add("c.gz is cut off")
        tally.add(one)
    notes = tally.notes()
    assert notes["formats"] == "4 text"
    assert notes["bad records"] == "8 left out: a:0; b; a:1; b; a:2; and 3 more records"
    assert notes["skipped"].startswith("4 left out: c.gz is cut off; ")


def test_one_object_beside_texts_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    path = tmp_path / "package.json"
    path.write_text('{\n"name": "x"}\n')
    for read in (read_corpus, read_examples):
        notes = {"formats": "1 text", "passed over": "1 file: 1 .json"}
        assert read(tmp_path).tally.notes() == notes
        with pytest.raises(UserError, match=r"package\.json:1: found the fields 'name'"):
            read(path)
    path.write_text('{"text": "x"}')
    assert read_corpus(tmp_path).tally.forms == {"text": 2}


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
        ("a.csv", "question\n1\n", r":1: found the columns 'question'"),
        ("a.csv", "prompt,chosen,rejected\n1,2,\n", r":2: 'rejected' is empty"),
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
    assert read_examples(path, DataConfig(format="prompt")).forms == {"prompt": 1}
    with pytest.raises(UserError, match="not 'instruction' and 'output'"):
        read_examples(path, DataConfig(format="alpaca"))
