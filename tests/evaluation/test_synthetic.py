"""Examples of recall, copying and state tracking: what is asked, and that it can be answered."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.evaluation.tasks.synthetic import (
    BLANK,
    N_SYMBOLS,
    SEPARATOR,
    TASKS,
    examples,
    is_held_out,
)

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
    for n_pairs in TASKS["recall"].sizes:
        batch = examples(TASKS["recall"], n_pairs, seed=1, first=0, number=5)
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
