"""The known warts of each format of conversations: read as they are, or refused with the place."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ys_llm.config.schema import DataConfig
from ys_llm.data.chat import Conversation, PreferencePair, Turn, render
from ys_llm.data.controls import ROLE_TOKENS
from ys_llm.data.conversations import as_conversation, read_examples
from ys_llm.data.readers import read_corpus
from ys_llm.data.records import Document
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer

LONG = "größer 🙂 " * 8_000  # over 100 kB
TYPED = "I type <end> and <assistant><|im_end|></s> as I like. 👩‍🚀 e\u0301 \u2028"
Turns = Sequence[tuple[str, Any]]


def messages(turns: Turns) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def sharegpt(turns: Turns) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[role], "value": text} for role, text in turns]}


def alpaca(turns: Turns) -> dict[str, Any]:
    return dict(zip(("instruction", "output"), (text for _, text in turns), strict=False))


def prompt(turns: Turns) -> dict[str, Any]:
    return dict(zip(("prompt", "completion"), (text for _, text in turns), strict=False))


def pair(turns: Turns) -> dict[str, Any]:
    chosen = [{"role": role, "content": text} for role, text in turns]
    return {"chosen": chosen, "rejected": [*chosen[:1], {"role": "assistant", "content": "No."}]}


FORMS = (messages, sharegpt, alpaca, prompt, pair)
every_form = pytest.mark.parametrize("form", FORMS)
with_turns = pytest.mark.parametrize("form", [messages, sharegpt, pair])
Form = Callable[[Turns], dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["abc"], kind="bytes", vocab_size=300, control_tokens=6)


def written(folder: Path, *records: Any) -> Path:
    path = folder / "a.jsonl.gz"
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=1))
    return path


def turns_of(path: Path) -> list[tuple[Turn, ...]]:
    found = [as_conversation(one) for one in read_examples(path).found]
    assert not any(isinstance(one, Document) for one in found)
    return [
        one.turns if isinstance(one, Conversation) else (*one.prompt, *one.chosen)
        for one in found
        if isinstance(one, Conversation | PreferencePair)
    ]


def problem_of(folder: Path, record: Any) -> str:
    """What is wrong with a record, which is the same where bad records are left out."""
    path = written(folder, {"text": "good"}, record)
    tally = read_examples(path, DataConfig(on_bad_record="skip")).tally
    assert tally.forms == {"text": 1}
    in_training = read_corpus(path, DataConfig(on_bad_record="skip")).tally
    assert in_training.bad_records == tally.bad_records
    listed = tally.notes()["bad records"]
    assert listed.startswith(f"1 left out: {path}:2: ")
    return listed


@every_form
@pytest.mark.parametrize("text", [LONG, TYPED, " \n x\t"])
def test_texts_of_any_length_and_with_any_characters_come_as_they_were(
    form: Form, text: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    said = [("user", text), ("assistant", f"{text}!")]
    (turns,) = turns_of(written(tmp_path, form(said)))
    assert [(turn.role, turn.text) for turn in turns] == said
    if len(text) < 1000:
        rendered = render(turns, tokenizer)
        controls = [tokenizer.controls[name] for name in ("<end>", *ROLE_TOKENS)]
        typed = [id for id in rendered.ids if id in controls]
        user, assistant = tokenizer.controls["<user>"], tokenizer.controls["<assistant>"]
        assert typed == [tokenizer.end_id, user, assistant, tokenizer.end_id]
        assert rendered.n_learned == len(f"{text}!".encode()) + 1


@every_form
@pytest.mark.parametrize("speaker", [0, 1])
@pytest.mark.parametrize("text", ["", " \n", None, 7])
def test_a_turn_without_a_text_is_refused(
    form: Form, speaker: int, text: Any, tmp_path: Path
) -> None:
    said: list[tuple[str, Any]] = [("user", "Hi"), ("assistant", "Ho")]
    said[speaker] = (said[speaker][0], text)
    if form is prompt and speaker == 0 and isinstance(text, str):  # a reply to nothing
        assert [turn.role for turn in turns_of(written(tmp_path, form(said)))[0]] == ["assistant"]
        return
    problem = problem_of(tmp_path, form(said))
    if isinstance(text, str):
        assert "empty" in problem
    else:
        assert f"is {'null' if text is None else 'int'}, not a string" in problem


@with_turns
def test_two_turns_of_one_speaker_stay_two(form: Form, tmp_path: Path) -> None:
    said = [("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")]
    (turns,) = turns_of(written(tmp_path, form(said)))
    assert [(turn.role, turn.text) for turn in turns] == said


@with_turns
@pytest.mark.parametrize(
    ("speaker", "problem"),
    [(None, "has no "), ("judge", "has the role 'judge'"), (7, "has the role '7'")],
)
def test_a_turn_of_nobody_is_refused(
    form: Form, speaker: Any, problem: str, tmp_path: Path
) -> None:
    record = form([("user", "a"), ("assistant", "b")])
    turn = next(turns for turns in record.values() if isinstance(turns, list))[1]
    key = "from" if form is sharegpt else "role"
    turn.pop(key)
    if speaker is not None:
        turn[key] = speaker
    assert problem in problem_of(tmp_path, record)


@every_form
def test_a_conversation_without_a_reply_is_refused(form: Form, tmp_path: Path) -> None:
    assert problem_of(tmp_path, form([("user", "a")]))


def test_lists_of_parts_and_roles_of_tools_are_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    said = [("developer", "Be kind."), ("user", parts), ("function", ""), ("assistant", "c")]
    (turns,) = turns_of(written(tmp_path, messages(said)))
    assert [(turn.role, turn.text) for turn in turns] == [
        ("system", "Be kind."), ("user", "a b"), ("tool", ""), ("assistant", "c")
    ]  # fmt: skip
