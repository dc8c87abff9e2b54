"""A conversation is carried in a state of constant size, and is the one that training reads."""

from __future__ import annotations

import copy
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.prefixes import loaded_run
from support.scheduled import scheduled

from ys_llm.config.schema import GenerateConfig
from ys_llm.config.sft import SftConfig
from ys_llm.data.chat import Turn, render
from ys_llm.inference import repl
from ys_llm.inference.conversation import Conversation
from ys_llm.inference.engine import Engine
from ys_llm.inference.generate import prefill, prompt_ids
from ys_llm.inference.generation import GenerationRequest
from ys_llm.inference.kept import Kept, ids_after
from ys_llm.inference.session_log import NewTurn, SessionLog
from ys_llm.model.language_model import Model
from ys_llm.model.state import tensors_of
from ys_llm.runs.model_files import LoadedRun
from ys_llm.serving.chat import ChatMessage, chat_ids

SAMPLING = GenerateConfig(temperature=1.0, max_tokens=9, seed=4)


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    return chatting("three_tier")


def chatting(mixer: str, **options: object) -> LoadedRun:
    """A run as fine-tuning on conversations leaves it."""
    plain = loaded_run((mixer,))
    tokenizer = plain.tokenizer.with_roles()
    sizes = replace(plain.config.model, options={mixer: options})
    model = Model(sizes, vocab_size=tokenizer.vocab_size).eval()
    config = replace(plain.config, model=sizes, sft=SftConfig(method="full"))
    return replace(plain, config=config, tokenizer=tokenizer, model=model, has_records=True)


def n_state_bytes(conversation: Conversation) -> int:
    now = conversation.session.at.now
    assert now is not None
    return sum(tensor.nbytes for tensor in tensors_of(now.state))


def test_the_state_after_many_turns_is_that_of_the_whole_conversation(
    run: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation(Engine(run), SAMPLING)
    conversation.system = "Be a cat."
    turns, sizes, read = [Turn("system", "Be a cat.")], set[int](), list[int]()
    for number in range(12):
        text = f"say <end> {number}"
        before = conversation.session.at.n_tokens
        conversation.say(text)
        answer = conversation.session.at.answer
        assert answer is not None
        ids = [id for id in answer.ids if id != run.tokenizer.end_id]
        # What was drawn need not be how its text is encoded; what is compared, is what was read.
        turns += [Turn("user", text), Turn("assistant", run.tokenizer.decode(ids))]
        sizes.add(n_state_bytes(conversation))
        read.append(conversation.session.at.n_tokens - before)
    assert len(sizes) == 1
    assert max(read[1:]) <= len(run.tokenizer.encode("say <end> 11")) + 3 + SAMPLING.max_tokens
    whole = list(conversation.session.at.tail)
    rendered = render(turns, run.tokenizer)
    assert whole[0] == run.tokenizer.end_id
    controls = set(run.tokenizer.controls.values())
    assert [i for i in whole if i in controls] == [i for i in rendered.ids[:-1] if i in controls]
    assert run.tokenizer.decode(whole) == run.tokenizer.decode(rendered.ids)
    now = conversation.session.at.now
    assert now is not None
    again = prefill(run.model, whole).state
    for carried, reread in zip(tensors_of(now.state), tensors_of(again), strict=True):
        torch.testing.assert_close(carried, reread, rtol=1e-4, atol=1e-5)


def test_a_conversation_goes_on_past_the_window_of_attention(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a Llama block, as of lilLM: its cache is full after the first turns."""
    run = chatting("softmax_attention", window=16)
    conversation, sizes = Conversation(Engine(run), SAMPLING), list[int]()
    for number in range(6):
        conversation.say(f"say {number}")
        sizes.append(n_state_bytes(conversation))
    now = conversation.session.at.now
    assert now is not None and now.n_tokens > 5 * 16
    assert len(set(sizes[2:])) == 1
    again = prefill(run.model, list(conversation.session.at.tail))
    torch.testing.assert_close(now.logits_V, again.logits_V, rtol=1e-4, atol=1e-5)


def test_every_way_to_ask_reads_what_training_reads(run: LoadedRun) -> None:
    tokenizer = run.tokenizer
    turns = [
        Turn("system", "S"),
        Turn("user", "a <user>"),
        Turn("assistant", "b"),
        Turn("user", "c"),
    ]
    assistant = tokenizer.controls["<assistant>"]
    messages = [ChatMessage(turn.role, turn.text) for turn in turns]
    assert list(chat_ids(run, messages)) == [*render(turns, tokenizer).ids, assistant]
    asked = [*render([Turn("user", "c")], tokenizer).ids, assistant]
    assert list(prompt_ids(tokenizer, ["c"], raw=False, chats=True)) == asked
    kept = Kept(run.model.init_state(1), (7,), ())
    assert list(ids_after(kept, tokenizer, ["c"], raw=False, chats=True)) == [7, *asked]


def interrupting(run: LoadedRun, prompt: str) -> tuple[LoadedRun, list[int]]:
    """The run with a model that begins to speak as the user, and its answer up to there.

    Two rows of its head are swapped: the last token that it writes anew becomes `<user>`.
    """
    answer = Engine(run).answer(prompt, replace(SAMPLING, temperature=0.0)).ids
    at = max(n for n, id in enumerate(answer) if id not in answer[:n])
    written, user = answer[at], run.tokenizer.controls["<user>"]
    model = copy.deepcopy(run.model)
    with torch.no_grad():
        head = model.output.weight
        head[[written, user]] = head[[user, written]]
    return replace(run, model=model), [*answer[:at], user]


def test_an_answer_ends_where_the_model_begins_to_speak_for_somebody_else(
    run: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = replace(SAMPLING, temperature=0.0)
    other, expected = interrupting(run, "Hi")
    answer = Engine(other).answer("Hi", greedy)
    assert (list(answer.ids), answer.finish_reason) == (expected, "stop")
    conversation = Conversation(Engine(other), greedy)
    conversation.say("Hi")
    end, user = run.tokenizer.end_id, run.tokenizer.controls["<user>"]
    asked = prompt_ids(run.tokenizer, ["Hi"], raw=False, chats=True)
    assert list(conversation.session.at.tail) == [*asked, *expected[:-1]]
    conversation.say("So?")
    assert list(conversation.session.at.tail).count(user) == 2
    with scheduled(other) as (scheduler, collected):
        ids = list(chat_ids(other, [ChatMessage("user", "Hi")]))
        generation = scheduler.submit(GenerationRequest(ids, greedy, keep="last"))
        finished = collected.finished(generation)
        assert collected.ids(generation) == expected
    assert finished.reason == "stop" and finished.kept is not None
    assert finished.kept.pending == (end,)


def test_lines_are_turns_of_one_conversation(
    run: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = repl.Beginning(system="Be kind.", chats=True)
    repl.run_turns(run, ["Hi", "", "/show", "Again"], SAMPLING, beginning=begun)
    told = capsys.readouterr()
    assert told.err.count("answer") == 2
    assert "carry" in told.out


def test_the_log_keeps_the_system_text_so_that_a_conversation_can_be_gone_on_with(
    run: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = repl.Beginning(system="Be kind.", chats=True, kept_in=tmp_path)
    repl.run_turns(run, ["Hi", "Again"], SAMPLING, beginning=begun)
    turns = SessionLog(tmp_path).text_of(2)
    assert [turn.system for turn in turns] == ["Be kind.", ""]
    again = Conversation(Engine(run), SAMPLING)
    again.replay(turns)  # refuses to go on where the text is not as long as it was
    assert "Be kind." in run.tokenizer.decode(again.session.at.tail)


def test_a_log_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    log = SessionLog(tmp_path)
    session = log.new_session(run="x", path="x", tokenizer="x")
    facts: dict[str, Any] = {"parent": None, "kind": "prompt", "answer": "", "ids": (), "muted": ()}
    log.add(session, NewTurn(typed="one", n_tokens=1, sampling={}, **facts))
    log.close()
    with sqlite3.connect(tmp_path / "sessions.sqlite") as connection:
        connection.execute("alter table turns drop column system")
    log = SessionLog(tmp_path)
    log.add(session, NewTurn(typed="two", n_tokens=1, sampling={}, system="S", **facts))
    assert [(turn.typed, turn.system) for turn in log.latest(9)] == [("two", "S"), ("one", "")]


def test_a_model_of_prompts_reads_the_system_text_before_the_first(
    run: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    records = replace(run, config=replace(run.config, sft=SftConfig()))
    conversation = Conversation(Engine(records), SAMPLING)
    conversation.system, conversation.carries = "Be kind.", True
    conversation.say("Hi")
    conversation.say("Again")
    text = records.tokenizer.decode(conversation.session.at.tail)
    assert text.startswith("Be kind.\n\nHi")
    assert text.count("Be kind.") == 1
