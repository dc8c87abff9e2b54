"""The passkey task: its texts, and that it finds out who remembers."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.tasks.passkey import QUESTION, measure_passkey, passkey_at, text_ids
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


def measured(model: Any, tokenizer: Tokenizer, n_tokens: int = 700) -> float:
    return measure_passkey(model, tokenizer, n_tokens=n_tokens, samples=6).accuracy


def test_a_model_that_remembers_all_of_it_says_every_key(tokenizer: Tokenizer) -> None:
    assert measured(Repeater(tokenizer, 10_000), tokenizer) == 1
    row = measure_passkey(Repeater(tokenizer, 50), tokenizer, n_tokens=700, samples=6)  # type: ignore[arg-type]
    assert (row.accuracy, row.standard_error, row.tokens) == (0, 0, 700)
    assert row.state_bytes == 50 * 8


def test_a_model_that_has_learned_nothing_says_none(model: Model, tokenizer: Tokenizer) -> None:
    assert measured(model, tokenizer) == 0


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


def test_a_training_text_holds_its_key_and_says_it_at_the_end() -> None:
    passkey = passkey_at(3)
    text = passkey.text(20)
    assert text.endswith(f"{QUESTION} {passkey.key}.")
    assert text.count(passkey.needle.strip()) == 1


def test_a_length_too_short_for_the_question_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"a passkey needs 7[0-9] tokens, found 10"):
        list(text_ids(passkey_at(1), tokenizer, 10))
