"""Prompt contrast is the loss of an answer after other prompts minus that after its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.evaluated import nats_of, small_model

from ys_llm.data.records import Document
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.prompt_contrast import measure_contrast

TOKENIZER = train_tokenizer(["x"], kind="bytes", vocab_size=258)
DOCUMENTS = [Document(f"It is {i * i}.", f"What is the square of {i}?") for i in range(8)]


def test_the_gain_is_the_difference_of_the_losses() -> None:
    model = small_model(TOKENIZER)

    def nats(prompt: str, answer: str) -> float:
        end = [*TOKENIZER.encode(answer), 0]
        ids = np.array([0, *TOKENIZER.encode(prompt), 1, *end])
        return float(nats_of(model, ids, reset=False)[-len(end) :].sum())

    row = measure_contrast(model, TOKENIZER, DOCUMENTS, n_answers=99)
    bits, wins = [], 0
    for document in DOCUMENTS:
        others = [nats(o.prompt or "", document.text) for o in DOCUMENTS if o != document]
        own = nats(document.prompt or "", document.text)
        bits.append((sum(others) / 7 - own) / math.log(2))
        wins += own < min(others)
    assert row.answers == 8
    assert row.bits_per_answer == pytest.approx(np.mean(bits), abs=1e-4)
    assert row.standard_error == pytest.approx(np.std(bits, ddof=1) / math.sqrt(8), abs=1e-4)
    assert row.wins == wins / 8


def test_prompts_are_compared_with_those_that_begin_alike() -> None:
    model = small_model(TOKENIZER)
    more = [Document("A fox.", f"Tell me {i}") for i in range(7)]
    assert measure_contrast(model, TOKENIZER, [*DOCUMENTS, *more], n_answers=99).answers == 8
    assert measure_contrast(model, TOKENIZER, DOCUMENTS, n_answers=3).answers == 3
    with pytest.raises(UserError, match="no prompt of this text"):
        measure_contrast(model, TOKENIZER, more, n_answers=3)
