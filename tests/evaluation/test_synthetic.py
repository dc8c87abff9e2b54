"""Examples of associative recall and copying: what is asked, and that it can be answered."""

from __future__ import annotations

import pytest
import torch

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.evaluation.tasks.synthetic import (
    BLANK,
    N_SYMBOLS,
    SEPARATOR,
    TASKS,
    VOCAB_SIZE,
    examples,
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
    assert int(whole.inputs_BT.max()) < VOCAB_SIZE


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
