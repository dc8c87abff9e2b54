"""Replies to known conversations: what is exact, what has ended, and who has spoken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ys_llm.config.schema import Config, ModelConfig
from ys_llm.data.chat import Conversation, Turn, render
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.evaluation.replies import MOST_TOKENS, Reply, replies_to, shares
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

TOKENIZER = train_tokenizer(["abc"], kind="bytes", vocab_size=300).with_roles()
TURNS = (
    *(Turn("system", "S"), Turn("user", "hi"), Turn("assistant", "yes")),
    *(Turn("user", "so"), Turn("assistant", "no")),
)


def run_that_has_learned(ids: list[int]) -> LoadedRun:
    """A model that goes on with these tokens after any part of them."""
    torch.manual_seed(0)
    model = Model(ModelConfig(d_model=32, n_layers=1, d_mlp=32), vocab_size=TOKENIZER.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    tokens = torch.tensor([ids])
    for _ in range(60):
        model(tokens[:, :-1], targets_BT=tokens[:, 1:])[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return LoadedRun(Path("runs/x"), Config(), model.eval(), TOKENIZER, 1, True)


def test_a_model_that_knows_the_conversation_gives_its_replies() -> None:
    loaded = run_that_has_learned(render(TURNS, TOKENIZER).ids)
    replies = replies_to(loaded, Conversation(TURNS))
    assert [reply.text for reply in replies] == ["yes", "no"]
    assert all(reply.is_exact and reply.has_ended and reply.is_alone for reply in replies)
    other = Conversation((*TURNS[:2], Turn("assistant", "YES")))
    wrong = replies_to(loaded, other)
    assert [reply.is_exact for reply in wrong] == [False]
    found = shares({"a": replies, "b": wrong})
    assert (found["a"].exact, found["b"].exact) == (1.0, 0.0)
    assert found["all"].replies == 3 and found["all"].exact == pytest.approx(2 / 3)


def test_a_model_that_goes_on_as_the_user_is_told_apart() -> None:
    start = render(TURNS[:2], TOKENIZER).ids
    user, assistant = (TOKENIZER.controls[f"<{role}>"] for role in ("user", "assistant"))
    loaded = run_that_has_learned([*start, assistant, *TOKENIZER.encode("yes"), user, *start[1:]])
    (reply,) = replies_to(loaded, Conversation(TURNS[:3]))
    assert not reply.is_exact and not reply.is_alone


def test_shares_are_of_the_replies_of_a_kind() -> None:
    good, endless = Reply("x", True, True, True), Reply("x" * MOST_TOKENS, False, False, True)
    found = shares({"a": [good, endless], "none": []})
    assert found["a"] == found["all"]
    assert (found["a"].exact, found["a"].ended, found["a"].alone) == (0.5, 0.5, 1.0)
    assert "none" not in found
