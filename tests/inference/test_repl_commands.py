"""The commands of `ys run`: what each does to the text, the state and the log."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.doc_claims import output_matches
from support.prefixes import loaded_run

from ys_llm.config.schema import GenerateConfig
from ys_llm.errors import UserError
from ys_llm.inference import repl
from ys_llm.inference.conversation import Conversation
from ys_llm.inference.engine import Engine
from ys_llm.inference.repl_commands import COMMANDS, command_of, completions
from ys_llm.inference.repl_input import Line
from ys_llm.inference.session import Session, Snapshot
from ys_llm.inference.session_log import LOG_NAME, SessionLog
from ys_llm.model.state import flatten

ROOT = Path(__file__).resolve().parents[2]
SAMPLING = GenerateConfig(temperature=1.0, max_tokens=12, seed=4)
Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(loaded_run())


@pytest.fixture
def begin(engine: Engine, tmp_path: Path) -> Callable[..., Conversation]:
    """A conversation with the run in a folder of its own; `log` keeps its turns there too."""

    def new(*, raw: bool = False, log: bool = False, of: Engine = engine) -> Conversation:
        own = Engine(replace(of.loaded, path=tmp_path / "run"))
        conversation = Conversation(own, SAMPLING, raw=raw)
        conversation.log = SessionLog(tmp_path / "kept") if log else None
        return conversation

    return new


def do(conversation: Conversation, *lines: str) -> None:
    for line in lines:
        repl._obey(conversation, Line(line))


def same(found: Snapshot, expected: Snapshot) -> bool:
    assert found.now is not None and expected.now is not None
    left, right = flatten(found.now.state), flatten(expected.now.state)
    return found.tail == expected.tail and all(torch.equal(left[n], right[n]) for n in right)


def text_of(conversation: Conversation) -> str:
    return conversation.engine.loaded.tokenizer.decode(conversation.session.at.tail)


def answers(capsys: Shown) -> str:
    return capsys.readouterr().out


# --- what is a command ---


def test_help_shows_every_command(begin: Callable[..., Conversation], capsys: Shown) -> None:
    do(begin(), "/help")
    out = answers(capsys)
    assert "Each prompt is answered on its own" in out
    for command in COMMANDS:
        assert f"\n/{command.name}" in out and command.help in out
    do(begin(raw=True), "/help")
    assert "What you type goes on with the text" in answers(capsys)


@pytest.mark.parametrize(
    ("line", "fix"),
    [("/fokr x", "Did you mean /fork?"), ("/udno", "Did you mean /undo?"), ("/xyzzy", "/help")],
)
def test_an_unknown_command_names_the_nearest(line: str, fix: str) -> None:
    with pytest.raises(UserError, match="there is no command /") as raised:
        command_of(line)
    assert fix in str(raised.value) and "\n" not in str(raised.value)


def test_a_text_that_begins_with_a_slash_may_be_a_prompt(
    begin: Callable[..., Conversation],
) -> None:
    conversation = begin()
    do(conversation, "/usr/bin is a folder")
    assert "/usr/bin is a folder" in text_of(conversation)
    repl._obey(conversation, Line("/help", is_quoted=True))
    assert text_of(conversation).startswith("/help")


def test_commands_and_their_arguments_are_completed(
    begin: Callable[..., Conversation], tmp_path: Path
) -> None:
    conversation = begin()
    do(conversation, "the cat", "/save fox", "/fork other")
    (tmp_path / "book.txt").touch()
    (tmp_path / "books").mkdir()

    def found(text: str) -> list[str]:
        return [text[: len(text) - n] + word for word, n in completions(conversation, text)]

    assert found("/s") == ["/switch", "/save", "/set", "/show", "/seed", "/state", "/surprise"]
    assert found("/load f") == ["/load fox"]
    assert found("/switch ") == ["/switch main", "/switch other"]
    assert found("/set temp") == ["/set temperature "]
    assert found("/mute 2 g") == ["/mute 2 global_summary"]
    assert found(f"/feed {tmp_path}/bo") == [
        f"/feed {tmp_path}/{name}" for name in ("book.txt", "books/")
    ]
    assert found("/feed /no/such/folder/") == found("the c") == found("/nothing x") == []


# --- settings ---


def test_settings_are_set_and_shown(begin: Callable[..., Conversation], capsys: Shown) -> None:
    conversation = begin()
    do(conversation, "/set temperature 0.25", "/set max_tokens=3", "/set carry on", "/seed 9")
    do(conversation, "/set undo_mb 5", "/show")
    out = answers(capsys)
    rows = dict(line.split(None, 1) for line in out.splitlines())
    assert (rows["temperature"], rows["max_tokens"], rows["seed"]) == ("0.25", "3", "9")
    assert (rows["carry"], rows["undo_mb"], rows["muted"]) == ("on", "5", "nothing")
    assert "0 steps in 0.00 MB of 5" in out
    do(conversation, "/seed random", "the cat", "/seed")
    seed = int(answers(capsys).rsplit(" ", 1)[1])
    do(conversation, f"/seed {seed}", "/regenerate")
    assert conversation.last_seed == seed


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/set temperature hot", "temperature must be a finite number"),
        ("/set temperature -1", "at least 0"),
        ("/set temprature 1", "temperature"),
        ("/set carry maybe", "expected on or off"),
        ("/set undo_mb much", "expected a whole number"),
        ("/undo 0", "expected a whole number from 1"),
        ("/undo 2 pages", "not understood"),
        ("/undo", "1 steps cannot be undone: the last 0 are kept"),
        ("/regenerate", "the last step was no answer"),
        ("/edit", "the last step was no prompt"),
        ("/continue", "no text to go on with"),
        ("/fork", "no name"),
        ("/switch x", "Choose one of: main"),
        ("/save x", "nothing was read yet"),
        ("/load x", "there is no saved state x"),
        ("/load ../x", "no name"),
        ("/mute cerebellum", "has no memory"),
        ("/feed", "cannot be read"),
        ("/feed no.txt", "cannot be read: No such file"),
        ("/surprise", "needs a text"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    begin: Callable[..., Conversation], line: str, problem: str
) -> None:
    conversation = begin()
    before = conversation.session.at
    with pytest.raises(UserError) as raised:
        do(conversation, line)
    assert problem in str(raised.value) and "\n" not in str(raised.value)
    assert conversation.session.at is before
    assert conversation.sampling == SAMPLING


# --- the text ---


def test_each_prompt_is_on_its_own_unless_it_is_carried(
    begin: Callable[..., Conversation], engine: Engine, capsys: Shown
) -> None:
    conversation = begin()
    do(conversation, "the mat", "the cat")
    alone = engine.answer("the cat", SAMPLING).text
    assert answers(capsys).endswith(alone + "\n")
    do(conversation, "/set carry on", "the cat")
    assert conversation.session.at.n_tokens > 12 + 9
    assert text_of(conversation).startswith("the cat" + alone)
    capsys.readouterr()
    do(conversation, "/undo 12 tokens", "/branches")
    assert answers(capsys).splitlines()[-1].endswith(" the cat")  # apart from what is before


def test_a_raw_conversation_goes_on_with_its_text(begin: Callable[..., Conversation]) -> None:
    conversation = begin(raw=True)
    do(conversation, "the cat", "sat", ", and")
    parts = text_of(conversation)
    assert parts.startswith("the cat")
    assert " sat" in parts and ", and" in parts and " , and" not in parts
    do(conversation, "/new", "the cat")
    assert text_of(conversation)[:7] == "the cat" and " sat" not in text_of(conversation)


def test_to_continue_is_to_go_on_with_the_answer(
    begin: Callable[..., Conversation], engine: Engine
) -> None:
    conversation = begin()
    do(conversation, "/set temperature 0", "the cat", "/continue")
    longer = replace(SAMPLING, temperature=0.0, max_tokens=24)
    assert text_of(conversation) == "the cat" + engine.answer("the cat", longer).text
    do(conversation, "/continue and then")
    assert "and then" in text_of(conversation)


def test_an_answer_is_made_again_in_place_of_the_last(begin: Callable[..., Conversation]) -> None:
    for raw in (False, True):
        conversation = begin(raw=raw)
        do(conversation, "the mat", "the cat")
        before = conversation.session.at
        do(conversation, "/regenerate")
        assert same(conversation.session.at, before)
        do(conversation, "/seed 5", "/regenerate")
        assert not same(conversation.session.at, before)
        do(conversation, "/edit the hat")
        assert "the hat" in text_of(conversation) and "the cat" not in text_of(conversation)
        assert len(conversation.session.ring.snapshots) == 2


def test_an_answer_is_kept_where_another_was_not_begun(
    begin: Callable[..., Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = begin()
    do(conversation, "the mat", "the cat")
    before = conversation.session.at

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Session, "read", interrupted)
        do(conversation, "/regenerate")
    assert conversation.session.at is before
    do(conversation, "/undo")
    assert "the mat" in text_of(conversation)


def test_an_edit_without_a_text_offers_the_last_prompt(begin: Callable[..., Conversation]) -> None:
    conversation = begin()
    do(conversation, "the cat", "/edit")
    assert conversation.next_line == "/edit the cat"


def test_undo_goes_back_by_steps_and_by_tokens(
    begin: Callable[..., Conversation], capsys: Shown
) -> None:
    conversation, other = begin(raw=True), begin(raw=True)
    do(conversation, "the cat", " sat", " on", "/undo 2")
    do(other, "the cat")
    assert same(conversation.session.at, other.session.at)
    do(other, "/new", "/set max_tokens 5", "the cat")
    capsys.readouterr()
    do(conversation, "/undo 7 tokens")
    assert same(conversation.session.at, other.session.at)
    assert answers(capsys).startswith("13 tokens: the cat")  # <end>, 7 characters and 5 tokens
    do(conversation, "/undo")
    assert answers(capsys) == "at the beginning: nothing is read\n"


def test_branches_have_one_beginning_and_lives_of_their_own(
    begin: Callable[..., Conversation], capsys: Shown
) -> None:
    conversation = begin(raw=True)
    do(conversation, "the cat", "/fork hen")
    common = conversation.session.at
    do(conversation, "sat", "/switch main")
    assert conversation.session.at is common
    do(conversation, "ran", "/undo")
    capsys.readouterr()
    do(conversation, "/branches")
    first, second = answers(capsys).splitlines()
    assert first.startswith("* main") and second.startswith("  hen ")
    with pytest.raises(UserError, match="there is a branch hen"):
        do(conversation, "/fork hen")


def test_a_saved_state_goes_on_elsewhere(begin: Callable[..., Conversation]) -> None:
    conversation, other = begin(), begin()
    do(conversation, "the cat", "/save fox")
    do(other, "/load fox")
    assert same(other.session.at, conversation.session.at)
    assert other.carries  # what is typed next is read after it
    for one in (conversation, other):
        do(one, "/continue and")
    assert same(other.session.at, conversation.session.at)
    do(other, "/undo 2")
    assert other.session.at.now is None


def test_a_file_is_fed_in_pieces(
    begin: Callable[..., Conversation], tmp_path: Path, capsys: Shown
) -> None:
    book, conversation, other = tmp_path / "book.txt", begin(), begin(raw=True)
    text = "the cat sat on the mät\r\n" * 400
    book.write_bytes(text.encode())
    do(conversation, f"/feed {book}")
    other.session.read([text])
    assert same(conversation.session.at, other.session.at)
    assert conversation.session.at.n_tokens == 1 + len(text.encode())
    out, err = capsys.readouterr()
    assert "/set carry off" in out and "10,001 tokens in " in err
    do(conversation, "the cat", "/undo 2")
    assert conversation.session.at.now is None
    book.write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        do(conversation, f"/feed {book}")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        do(conversation, f"/feed {tmp_path}")


# --- looking inside ---


def test_a_muted_memory_is_named_and_heard_again(
    begin: Callable[..., Conversation], capsys: Shown
) -> None:
    conversation = begin()
    do(conversation, "/mute global 1.main")
    assert answers(capsys) == "muted: 1.global_summary, 1.main, 2.global_summary\n"
    do(conversation, "the cat", "/unmute global", "/mute")
    assert "muted: 1.main; there are 1, 2, main" in answers(capsys)
    do(conversation, "/unmute")
    assert answers(capsys) == "muted: nothing\n"


def test_the_memories_are_drawn(
    begin: Callable[..., Conversation], capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    conversation = begin()
    do(conversation, "/state")
    assert answers(capsys) == "nothing was read yet: every memory is empty\n"
    do(conversation, "the cat sat", "/mute 2", "/state")
    lines = answers(capsys).splitlines()
    memories = [line for line in lines if line[:2] in ("1.", "2.")]
    assert [line.split()[0] for line in memories[:3]] == [
        *("1.main", "1.local_summary", "1.global_summary")
    ]
    assert "█" in memories[0] and memories[0].endswith("by the last token")
    assert memories[2].endswith("empty")  # its first change is at token 64
    assert lines[-1].startswith("muted: 2.global_summary")
    monkeypatch.setenv("TERM", "dumb")
    do(conversation, "/state")
    assert answers(capsys).isascii()


def test_why_tells_the_candidates_for_the_last_token(
    begin: Callable[..., Conversation], capsys: Shown
) -> None:
    conversation = begin()
    do(conversation, "/why")
    assert answers(capsys) == "nothing was answered yet\n"
    do(conversation, "/set temperature 0", "the cat")
    capsys.readouterr()
    do(conversation, "/why")
    first, second, third = answers(capsys).splitlines()
    answer = conversation.session.at.answer
    assert answer is not None
    token = repr(conversation.engine.loaded.tokenizer.token_text(answer.ids[-1]))
    assert first.startswith(f"the last token, {token}, had ") and "bits; best:" in first
    assert second.split("%")[1].strip().startswith(token)  # the best one, as it is greedy
    assert third.startswith("this model has no copy tier")


def test_why_tells_what_was_copied_in_a_text_that_is_carried(
    begin: Callable[..., Conversation], capsys: Shown
) -> None:
    loaded = replace(loaded_run(), model=copying_model())
    conversation = begin(raw=True, of=Engine(loaded))
    do(conversation, "the cat sat. ", "the mat. the ")
    capsys.readouterr()
    do(conversation, "/why")
    out, answer = answers(capsys), conversation.session.at.answer
    assert answer is not None
    assert f"{len(answer.ids)} of {len(answer.ids)} tokens were copied" in out
    assert out.count("from token ") == len(answer.ids)


def copying_model() -> Any:
    """A model that copies nearly all it says."""
    from ys_llm.config.schema import CopyConfig, ModelConfig
    from ys_llm.model.language_model import Model

    torch.manual_seed(2)
    tier = CopyConfig(64, 8, gate="separate")
    model = Model(ModelConfig(d_model=32, n_layers=2, d_mlp=64, copy=tier), vocab_size=258).eval()
    assert model.copy_tier is not None
    with torch.no_grad():
        model.copy_tier.gate.bias.fill_(30.0)
    return model


def test_surprise_is_coloured_or_numbered(
    begin: Callable[..., Conversation], capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = begin()
    do(conversation, "/surprise the\x1bcat")
    out = answers(capsys)
    assert out.startswith("t(8)h(8)")  # about log2(258) bits for an untrained model
    assert "\\x1b" in out and "\x1b" not in out
    assert "bits: " in out and " a byte, after 0 tokens" in out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for name, value in (("TERM", "xterm"), ("NO_COLOR", "")):
        monkeypatch.setenv(name, value)
    do(conversation, "/surprise the cat")
    assert "\x1b[48;5;" in answers(capsys)
    monkeypatch.setenv("NO_COLOR", "1")
    do(conversation, "/surprise the cat")
    assert "\x1b" not in answers(capsys)
    assert conversation.session.at.now is None


def test_answers_at_a_terminal_hold_no_control_characters(
    begin: Callable[..., Conversation], capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loaded_run()
    with torch.no_grad():  # every byte is as likely as any other
        loaded.model.output.weight.zero_()
    conversation = begin(of=Engine(loaded))
    controls = {chr(code) for code in (*range(9), *range(11, 32), 127)}
    do(conversation, "/set max_tokens 200", "the cat")
    assert set(answers(capsys)) & controls
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    do(conversation, "/regenerate")
    assert not set(answers(capsys)) & controls


def test_the_session_of_the_page_is_a_real_one(
    begin: Callable[..., Conversation], capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    block = page.split("## A session")[1].split("```text\n")[1].split("```")[0]
    conversation = begin()
    typed = [part.split("\n", 1) for part in block.removeprefix("> ").split("\n> ")]
    assert len(typed) > 8
    for line, expected in typed:
        try:
            do(conversation, line)
        except UserError as error:  # as `run_interactive` shows it
            print(f"ys: {error}")
        shown = "".join(capsys.readouterr())
        assert output_matches(expected.splitlines(), shown), f"> {line}\n{shown}"


# --- the log ---


def test_turns_are_kept_searched_and_gone_on_from(
    begin: Callable[..., Conversation], tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Once upon a time. " * 30)
    conversation = begin(raw=True, log=True)
    do(conversation, f"/feed {book}", "the squirrel's cat", "/mute global", "sat")
    do(conversation, "/fork x", "/undo 1", "ran", "/undo 3 tokens", "/continue")
    log = SessionLog(tmp_path / "kept")
    last = log.latest(1)[0]
    chain = log.text_of(last.id)
    assert [turn.kind for turn in chain] == ["file", "text", "text", "more"]
    assert [turn.typed for turn in chain[1:]] == ["the squirrel's cat", "ran", ""]
    assert len(chain[2].ids) == 9
    again = begin(raw=True)
    again.replay(chain)
    assert same(again.session.at, conversation.session.at)
    assert again.session.muted == conversation.session.muted
    again.session.undo(4)
    assert again.session.at.now is None
    assert [turn.typed for turn in log.search(["squir"], 9)] == ["the squirrel's cat"]
    assert [turn.typed for turn in log.search(["cat", "squirrel's"], 9)] == ["the squirrel's cat"]
    assert log.search(['cat" OR "ran'], 9) == log.search(["sat*", "ran"], 9) == []
    assert os.stat(tmp_path / "kept" / LOG_NAME).st_mode & 0o077 == 0


def test_prompts_of_their_own_are_texts_of_their_own_in_the_log(
    begin: Callable[..., Conversation], tmp_path: Path
) -> None:
    conversation = begin(log=True)
    do(conversation, "the mat", "the cat", "/regenerate", "/continue and")
    log = SessionLog(tmp_path / "kept")
    assert [turn.parent for turn in reversed(log.latest(9))] == [None, None, None, 3]
    again = begin()
    again.replay(log.text_of(4))
    assert same(again.session.at, conversation.session.at)


def test_a_changed_file_and_another_tokenizer_are_not_gone_on_from(
    begin: Callable[..., Conversation], tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Once upon a time.")
    do(begin(log=True), f"/feed {book}")
    turns = SessionLog(tmp_path / "kept").text_of(1)
    book.write_text("Once.")
    with pytest.raises(UserError, match="is not what it was"):
        begin().replay(turns)
    with pytest.raises(UserError, match="another tokenizer"):
        begin().replay([replace(turns[0], tokenizer="other")])
    with pytest.raises(UserError, match="has no turn 7"):
        SessionLog(tmp_path / "kept").turn(7)


def test_a_search_works_without_an_index(
    begin: Callable[..., Conversation], tmp_path: Path
) -> None:
    do(begin(log=True), "the 50% mat", "the cat")
    log = SessionLog(tmp_path / "kept")
    assert log.has_index
    log.has_index = False
    assert [turn.typed for turn in log.search(["50%", "mat"], 9)] == ["the 50% mat"]
    assert log.search(["5%m"], 9) == []


def test_a_damaged_log_is_told_once_and_stops_no_conversation(
    begin: Callable[..., Conversation], tmp_path: Path, capsys: Shown
) -> None:
    path = tmp_path / "kept" / LOG_NAME
    conversation = begin(log=True)
    with sqlite3.connect(path) as connection:
        connection.execute("drop table turns")
    do(conversation, "the cat", "the mat")
    out, err = capsys.readouterr()
    assert out.count("\n") >= 2
    assert err.count("cannot be used as the log of sessions") == 1
    path.write_bytes(b"Once upon a time" * 100)
    with pytest.raises(UserError, match="Move it away"):
        SessionLog(tmp_path / "kept")


def test_any_model_of_constant_memories_converses(begin: Callable[..., Conversation]) -> None:
    layers = ("gated_delta", "mamba2")
    loaded = replace(loaded_run(layers), has_records=False)
    conversation = begin(of=Engine(loaded))
    do(conversation, "the cat", "/mute 1", "sat", "/undo", "/save x", "/load x", "/state")
    assert conversation.is_text and conversation.session.at.now is not None
