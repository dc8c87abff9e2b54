"""Small tasks of memory and state: what is asked, and that it can be answered."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.tasks.accuracy import right_share
from ys_llm.evaluation.tasks.in_vocabulary import (
    in_tokens,
    measure_in_vocabulary,
    word_tokens,
)
from ys_llm.evaluation.tasks.symbols import BLANK, N_SYMBOLS, SEPARATOR
from ys_llm.evaluation.tasks.task import examples, is_held_out
from ys_llm.evaluation.tasks.trained import TASKS
from ys_llm.model.language_model import Model

every_task = pytest.mark.parametrize("name", TASKS)


@every_task
def test_an_example_is_a_function_of_seed_and_number(name: str) -> None:
    task, size = TASKS[name], TASKS[name].sizes[1]
    whole = examples(task, size, seed=3, first=0, number=6)
    part = examples(task, size, seed=3, first=4, number=2)
    assert torch.equal(whole.inputs_BT[4:], part.inputs_BT)
    assert torch.equal(whole.targets_BT[4:], part.targets_BT)
    other = examples(task, size, seed=4, first=0, number=6)
    assert not torch.equal(whole.inputs_BT, other.inputs_BT)
    assert int(whole.inputs_BT.max()) < task.vocab_size


def test_recall_asks_for_the_value_of_every_key_once() -> None:
    for n_pairs in TASKS["mqar"].sizes:
        batch = examples(TASKS["mqar"], n_pairs, seed=1, first=0, number=5)
        for ids, targets in zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True):
            pairs = dict(zip(ids[: 2 * n_pairs : 2], ids[1 : 2 * n_pairs : 2], strict=True))
            assert ids[2 * n_pairs] == SEPARATOR
            asked = {ids[t]: target for t, target in enumerate(targets) if target != IGNORE_INDEX}
            assert asked == pairs
            assert len(pairs) == n_pairs
            assert min(pairs.values()) >= N_SYMBOLS > max(pairs)


@pytest.mark.parametrize("name", ["copying", "selective_copying"])
def test_copying_asks_for_all_tokens_in_their_order(name: str) -> None:
    for size in TASKS[name].sizes:
        batch = examples(TASKS[name], size, seed=1, first=0, number=5)
        for ids, targets in zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True):
            told = [token for token in ids[:size] if token != BLANK]
            assert ids[size] == SEPARATOR
            assert targets[:size] == [IGNORE_INDEX] * size
            assert targets[size:] == told
            assert len(told) == (size if name == "copying" else 8)


@every_task
def test_no_text_is_both_trained_and_evaluated(name: str) -> None:
    task = TASKS[name]
    for held_out in (False, True):
        batch = examples(task, task.sizes[0], seed=5, first=0, number=40, held_out=held_out)
        assert {is_held_out(ids.numpy()) for ids in batch.inputs_BT} == {held_out}


def test_parity_is_asked_after_every_bit() -> None:
    batch = examples(TASKS["parity"], 32, seed=1, first=0, number=4)
    for bits, targets in zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        assert targets == [sum(bits[: end + 1]) % 2 for end in range(32)]
    assert set(batch.inputs_BT.flatten().tolist()) == {0, 1}


@pytest.mark.parametrize(("name", "n_objects"), [("s3", 3), ("s5", 5)])
def test_permutations_are_done_one_after_another(name: str, n_objects: int) -> None:
    every = list(permutations(range(n_objects)))
    batch = examples(TASKS[name], 64, seed=1, first=0, number=4, held_out=True)
    for ids, targets in zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        places = list(range(n_objects))  # where each object is
        for number, target in zip(ids, targets, strict=True):
            places = [every[number][place] for place in places]
            assert every[target] == tuple(places)


@pytest.mark.parametrize(("name", "elements"), [("parity", 2), ("s3", 6), ("s5", 120)])
def test_states_are_as_many_and_as_likely_as_the_permutations(name: str, elements: int) -> None:
    task = TASKS[name]
    assert (task.vocab_size, task.chance) == (elements, 1 / elements)
    assert min(task.longer) > max(task.sizes)
    batch = examples(task, 64, seed=1, first=0, number=40)
    counts = batch.targets_BT.flatten().bincount(minlength=elements)
    mean = 40 * 64 / elements
    assert len(counts) == elements
    assert ((counts - mean) ** 2 / mean).sum() < elements + 4 * (2 * elements) ** 0.5


def test_a_passkey_is_asked_for_digit_by_digit() -> None:
    for size in (128, 512):
        batch = examples(TASKS["passkey"], size, seed=1, first=0, number=5)
        for ids, targets in zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True):
            key = bytes(id for id in targets if id != IGNORE_INDEX).decode()
            text = bytes(ids[1:]).decode()
            assert len(text) == size + len(" 1234") - 1
            assert text.count(f"The pass key is {key}. Remember it.") == 1
            assert text.endswith(f"The pass key is {key[:-1]}")
            assert targets[-5:] == list(key.encode())


def test_half_an_answer_counts_half_unless_the_whole_is_asked_for() -> None:
    targets_BT = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 3, 4], [IGNORE_INDEX, 9, 5, 6]])
    said_BT = torch.tensor([[3, 4, 3, 5], [0, 0, 5, 6]])
    assert right_share(said_BT, targets_BT, whole=False).tolist() == [0.5, 1]
    assert right_share(said_BT, targets_BT, whole=True).tolist() == [0, 1]


class Inductive:
    """Says what followed the latest token that is the same as the last one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size, self.training = tokenizer.vocab_size, False

    def __call__(self, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, None]:
        said = [[self.says(row[: t + 1]) for t in range(len(row))] for row in tokens_BT.tolist()]
        return torch.nn.functional.one_hot(torch.tensor(said), self.vocab_size), None

    def says(self, read: list[int]) -> int:
        before = [i for i, id in enumerate(read[:-1]) if id == read[-1]]
        return read[before[-1] + 1] if before else 0


def test_a_task_in_tokens_is_the_same_task(tokenizer: Tokenizer) -> None:
    for name in ("mqar", "copying"):
        task = TASKS[name]
        batch = examples(task, 8, seed=1, first=0, number=4, held_out=True)
        told = in_tokens(batch, task, tokenizer)
        ordinary = set(word_tokens(tokenizer, least=130).tolist())
        assert tokenizer.end_id not in ordinary
        assert set(told.inputs_BT[:, 1:].flatten().tolist()) <= ordinary
        assert told.inputs_BT[:, 0].tolist() == [tokenizer.end_id] * 4
        for inputs, targets, ids, answers in zip(
            batch.inputs_BT.tolist(),
            batch.targets_BT.tolist(),
            told.inputs_BT.tolist(),
            told.targets_BT.tolist(),
            strict=True,
        ):
            meaning = dict(zip(ids[2:], inputs, strict=True))
            assert len(meaning) == len(set(inputs))
            assert meaning[ids[1]] == SEPARATOR
            assert [meaning.get(id, id) for id in answers] == [IGNORE_INDEX] * 2 + targets
        assert told.inputs_BT[0].tolist() != told.inputs_BT[1].tolist()


def test_who_looks_back_is_right_and_who_has_learned_nothing_guesses(
    tokenizer: Tokenizer, model: Model
) -> None:
    task = replace(TASKS["mqar"], sizes=(2, 4))
    rows = measure_in_vocabulary(model, tokenizer, task)
    assert [(row.unit, row.size, row.examples) for row in rows] == [
        ("pairs", 2, 256), ("pairs", 4, 256)
    ]  # fmt: skip
    assert all(row.accuracy < 0.05 for row in rows)
    batch = in_tokens(examples(task, 8, seed=1, first=0, number=6, held_out=True), task, tokenizer)
    said_BTV, _ = Inductive(tokenizer)(batch.inputs_BT)
    shares = right_share(said_BTV.argmax(-1), batch.targets_BT, whole=False)
    assert shares.tolist() == [1] * 6


class Vocabulary:
    """The tokens of a tokenizer, after two that stand for no text."""

    def __init__(self, *texts: str) -> None:
        self.texts = ["", "", *texts]
        self.end_id, self.vocab_size = 0, len(self.texts)

    def token_bytes(self, id: int) -> bytes:
        return self.texts[id].encode()


def test_words_are_asked_where_the_vocabulary_has_enough() -> None:
    vocabulary: Any = Vocabulary("a", "ing", " fox", " hen", "12", "owl", " of")
    assert word_tokens(vocabulary, least=2).tolist() == [4, 5]
    assert word_tokens(vocabulary, least=3).tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert word_tokens(Vocabulary("a", "fox", "hen"), least=2).tolist() == [3, 4]  # type: ignore[arg-type]


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    batch = examples(TASKS["mqar"], 2, seed=1, first=0, number=1)
    with pytest.raises(UserError, match="mqar needs a vocabulary of 130 tokens, the run's has 28"):
        in_tokens(batch, TASKS["mqar"], Vocabulary(*"x" * 28))  # type: ignore[arg-type]
