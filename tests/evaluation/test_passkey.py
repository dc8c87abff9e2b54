"""The passkey task: its texts, and that it finds out who remembers."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.tasks.passkey import (
    ANSWER_TOKENS,
    FIFTHS,
    Answer,
    PasskeyRow,
    key_said,
    measure_passkey,
    published_key,
    rows_of,
)
from ys_llm.evaluation.tasks.passkey_text import QUESTION, Passkey, passkey_at, text_ids
from ys_llm.model.language_model import Model


class Repeater(nn.Module):
    """Says what followed the latest place in its memory that read like its last 12 tokens."""

    def __init__(self, tokenizer: Tokenizer, memory: int) -> None:
        super().__init__()
        self.vocab_size, self.memory = tokenizer.vocab_size, memory
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens_BT: Tensor, state: Any = None, logits: str = "all") -> Any:
        past = tokens_BT[:, :0] if state is None else state["tokens"]
        read_BN = torch.cat([past, tokens_BT], 1)
        ends = range(past.shape[1] + 1, read_BN.shape[1] + 1)
        rows = [[self.says(row[:end].tolist()) for end in ends] for row in read_BN]
        said_BT = torch.tensor(rows)[:, -1 if logits == "last" else 0 :]
        after = {"position_B": torch.zeros(1), "tokens": read_BN[:, -self.memory :]}
        return nn.functional.one_hot(said_BT, self.vocab_size), after

    def says(self, read: list[int]) -> int:
        last = bytes(read[-12:])
        found = bytes(read[-self.memory : -1]).rfind(last)
        return read[-self.memory :][found + 12] if found >= 0 else 0


def measured(model: Any, tokenizer: Tokenizer) -> list[PasskeyRow]:
    return measure_passkey(model, tokenizer, n_tokens=700, samples=6)


def test_a_model_that_remembers_all_of_it_says_every_key(tokenizer: Tokenizer) -> None:
    rows = measured(Repeater(tokenizer, 10_000), tokenizer)
    assert {row.accuracy for row in rows} == {row.as_published for row in rows} == {1}
    assert [row.depth for row in rows] == ["all", *FIFTHS]
    assert rows[0].samples == sum(row.samples for row in rows[1:]) == 6


def test_a_model_that_forgets_says_the_keys_at_the_end_alone(tokenizer: Tokenizer) -> None:
    every, *fifths = measured(Repeater(tokenizer, 250), tokenizer)
    assert 0 < every.accuracy < 1
    assert every.standard_error == pytest.approx((every.accuracy * (1 - every.accuracy) / 6) ** 0.5)
    assert (fifths[0].accuracy, fifths[-1].accuracy) == (0, 1)
    assert {row.state_bytes for row in (every, *fifths)} == {250 * 8}
    assert {row.tokens for row in (every, *fifths)} == {700}


def test_a_model_that_has_learned_nothing_says_none(model: Model, tokenizer: Tokenizer) -> None:
    assert {row.accuracy for row in measured(model, tokenizer)} == {0}


@pytest.mark.parametrize(
    ("answer", "ours", "published"),
    [
        (" 48213. Re", True, True),  # a dot after the digits
        ("48213. Rem", True, True),  # without the space that the question ends before
        (" 48213, an", True, True),
        (" 48213", True, False),  # stopped early: the last ten ids begin in the question
        ("", False, False),
        (" 48213\nThe", True, True),  # a new line ends no word, but brings no digits
        (" 48213\n77", True, False),  # here it does
        (" 482137 an", False, False),
        (" 4821. Rem", False, False),
        (" It is 482", False, False),
        (" key 48213", False, False),  # the first word alone counts
        ("\n48213. Re", True, True),
    ],
)
def test_an_answer_is_scored_as_in_the_published_test(
    answer: str, ours: bool, published: bool
) -> None:
    def decode(ids: Any) -> str:
        return "".join(map(chr, ids))

    text = [*map(ord, "What is the pass key? The pass key is")]
    said = [*map(ord, answer)]
    assert len(said) <= ANSWER_TOKENS
    assert (key_said(answer) == "48213") is ours
    assert (published_key(text, said, decode) == "48213") is published


def test_every_answer_is_counted_once_at_its_depth() -> None:
    answers = [
        Answer(Passkey("11111", depth, 0), [*b" key is"], [*said])
        for depth, said in [
            (0.0, b" 11111. Th"),
            (0.19, b" 22222. Th"),
            (0.2, b" 11111"),
            (0.99, b" 11111. Th"),
            (1.0, b" 1111"),
        ]
    ]
    rows = rows_of(answers, lambda ids: bytes(ids).decode(), n_tokens=99, n_bytes=7)
    assert [(row.depth, row.samples, row.accuracy, row.as_published) for row in rows] == [
        ("all", 5, 0.6, 0.4),
        ("0-20 %", 2, 0.5, 0.5),
        ("20-40 %", 1, 1, 0),
        ("80-100 %", 2, 0.5, 0.5),
    ]
    assert {(row.tokens, row.state_bytes) for row in rows} == {(99, 7)}


def test_a_text_has_the_length_asked_for_and_its_key_where_it_should_be(
    tokenizer: Tokenizer,
) -> None:
    for number in (0, 3, 7):
        passkey = passkey_at(1, number, 8)
        ids = list(text_ids(passkey, tokenizer, 1000))
        text = tokenizer.decode(ids)
        assert len(ids) == 1000
        assert text.count(passkey.needle) == 1
        assert text.endswith(QUESTION)
        assert number / 8 <= passkey.depth <= (number + 1) / 8
        filler = 1000 - 1 - len(passkey.needle) - len(QUESTION)
        assert 0 <= text.index(passkey.needle) - int(passkey.depth * filler) < 25
        endless = islice(text_ids(passkey, tokenizer, 10**12), 300)
        assert next(endless) == tokenizer.end_id


def test_keys_are_a_function_of_the_seed() -> None:
    assert passkey_at(1, 5, 9) == passkey_at(1, 5, 9)
    assert len({passkey_at(seed, number).key for seed in (1, 2) for number in range(10)}) == 20


def test_a_training_text_holds_its_key_says_it_at_the_end_and_goes_on(
    tokenizer: Tokenizer,
) -> None:
    passkey = passkey_at(3)
    text = passkey.text(20)
    asked, answer = text.split(QUESTION)
    assert asked.count(passkey.needle.strip()) == 1
    assert answer.startswith(f" {passkey.key}.")
    assert len(tokenizer.encode(answer)) > ANSWER_TOKENS


def test_a_length_too_short_for_the_question_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"a passkey needs 7[0-9] tokens, found 10"):
        list(text_ids(passkey_at(1), tokenizer, 10))
