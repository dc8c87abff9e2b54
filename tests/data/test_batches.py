"""Batches read every token of a shard, in an order that depends on seed and index alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import END, same, token_data

from ys_llm.data.batches import (
    IGNORE_INDEX,
    Batch,
    BatchPlan,
    batch_at,
    batches_per_epoch,
    evaluation_batches,
    evaluation_span,
)
from ys_llm.errors import UserError


def plan_of(
    seq_len: int, batch_size: int, *, batching: str = "shuffled", seed: int = 7
) -> BatchPlan:
    assert batching in ("shuffled", "contiguous")
    return BatchPlan(
        "shuffled" if batching == "shuffled" else "contiguous", seq_len, batch_size, seed, END
    )


def rows_of(batches: list[Batch], row: int) -> list[int]:
    return torch.cat([batch.inputs_BT[row] for batch in batches]).tolist()


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    seq_len=st.integers(1, 20),
    batch_size=st.integers(1, 7),
    batching=st.sampled_from(["shuffled", "contiguous"]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=150)
def test_an_epoch_reads_every_token_and_its_true_successor(
    lengths: list[int], seq_len: int, batch_size: int, batching: str, seed: int
) -> None:
    data = token_data(lengths)
    plan = plan_of(seq_len, batch_size, batching=batching, seed=seed)
    if data.n_inputs < seq_len:
        with pytest.raises(UserError):
            batch_at(data, plan, 0)
        return
    ring = data.tokens[:-1].tolist()
    pairs = set(pairwise([*ring, END]))
    read: set[tuple[int, int]] = set()
    for index in range(batches_per_epoch(data, plan)):
        batch = batch_at(data, plan, index)
        assert batch.inputs_BT.shape == batch.targets_BT.shape == (batch_size, seq_len)
        assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
        assert torch.equal(batch.starts_BT, batch.inputs_BT == END)
        assert torch.equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])
        inputs, targets = batch.inputs_BT.flatten(), batch.targets_BT.flatten()
        read |= set(zip(inputs.tolist(), targets.tolist(), strict=True))
    assert read == pairs


def test_windows_are_seen_once_an_epoch_though_batches_straddle_epochs() -> None:
    data, plan = token_data([999]), plan_of(10, 7)
    n_windows = 100
    firsts = torch.cat([batch_at(data, plan, i).inputs_BT[:, 0] for i in range(100)]).tolist()
    for epoch in range(7):
        begun = firsts[epoch * n_windows : (epoch + 1) * n_windows]
        assert len(set(begun)) == n_windows


def test_window_borders_move_between_epochs() -> None:
    data, plan = token_data([999]), plan_of(10, 100)
    borders = [
        {int(t) % 10 for t in batch_at(data, plan, epoch).inputs_BT[:, 0] if t != END}
        for epoch in range(8)
    ]
    assert all(len(border) == 1 for border in borders)
    assert len(set.union(*borders)) > 2


@pytest.mark.parametrize("batching", ["shuffled", "contiguous"])
def test_a_batch_depends_on_its_arguments_alone(batching: str) -> None:
    data, plan = token_data([50, 60, 70]), plan_of(8, 3, batching=batching)
    first = {index: batch_at(data, plan, index) for index in (40, 3, 0, 17)}
    assert all(same(batch, batch_at(data, plan, index)) for index, batch in first.items())
    assert not same(first[0], batch_at(data, replace(plan, seed=8), 0))
    assert not same(first[0], first[17])


@pytest.mark.parametrize("batching", ["shuffled", "contiguous"])
def test_a_batch_of_one_row_and_data_of_one_window_work(batching: str) -> None:
    data, plan = token_data([7]), plan_of(8, 1, batching=batching)
    assert batches_per_epoch(data, plan) == 1
    for index in range(5):
        assert sorted(batch_at(data, plan, index).inputs_BT[0].tolist()) == sorted(data.tokens[:-1])


@pytest.mark.parametrize("batching", ["shuffled", "contiguous"])
def test_too_little_data_names_both_numbers_and_what_to_type(batching: str) -> None:
    data, plan = token_data([7]), plan_of(9, 4, batching=batching)
    message = r"has 9 tokens, and train.seq_len: 9 needs at least 10.*--set train.seq_len=8"
    with pytest.raises(UserError, match=message):
        batch_at(data, plan, 0)
    with pytest.raises(UserError, match=message):
        batches_per_epoch(data, plan)


def test_streams_go_on_where_they_stopped_and_carry_from_the_second_piece_on() -> None:
    data, plan = token_data([300, 200, 498]), plan_of(16, 3, batching="contiguous")
    ring = data.tokens[:-1].tolist()
    n = batches_per_epoch(data, plan)
    assert n == 21  # ceil(1001 / (3 * 16))
    for epoch in range(2):
        batches = [batch_at(data, plan, epoch * n + piece) for piece in range(n)]
        assert [batch.carry for batch in batches] == [False] + [True] * (n - 1)
        for row in range(3):
            read = rows_of(batches, row)
            start = next(i for i in range(len(ring)) if (ring + ring)[i : i + len(read)] == read)
            assert (ring + ring)[start : start + n * 16] == read


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    seq_len=st.integers(1, 20),
    batch_size=st.integers(1, 6),
    max_tokens=st.integers(0, 150),
)
@settings(deadline=None, max_examples=150)
def test_evaluation_scores_every_token_once_with_context_before_it(
    lengths: list[int], seq_len: int, batch_size: int, max_tokens: int
) -> None:
    data = token_data(lengths)
    n_tokens, _ = evaluation_span(data, max_tokens=max_tokens)
    batches = list(
        evaluation_batches(data, seq_len=seq_len, batch_size=batch_size, max_tokens=max_tokens)
    )
    assert [batch.carry for batch in batches] == [False] + [True] * (len(batches) - 1)
    tokens = data.tokens[: n_tokens + 1].tolist()
    scored: list[tuple[int, int]] = []
    for row in range(len(batches[0].inputs_BT)):
        inputs = rows_of(batches, row)
        targets = torch.cat([batch.targets_BT[row] for batch in batches]).tolist()
        counted = [i for i, target in enumerate(targets) if target != IGNORE_INDEX]
        assert row == 0 or counted[0] >= min(seq_len, len(scored))
        scored += [(inputs[i], targets[i]) for i in counted]
        last = counted[-1]
        assert inputs[: last + 1] == tokens[len(scored) - 1 - last : len(scored)]
    assert scored == list(pairwise(tokens))


def test_the_evaluated_part_is_whole_documents_and_their_bytes() -> None:
    data = token_data([9, 19, 29])
    assert evaluation_span(data, max_tokens=0) == (60, 171)
    assert evaluation_span(data, max_tokens=60) == (60, 171)
    assert evaluation_span(data, max_tokens=59) == (30, 84)
    assert evaluation_span(data, max_tokens=30) == (30, 84)
    assert evaluation_span(data, max_tokens=29) == (10, 27)
    assert evaluation_span(data, max_tokens=1) == (10, 27)
