"""Rows that begin at documents: what an epoch reads, whatever the lengths, places and batches."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import END, same, token_data

from ys_llm.config.schema import LongDocuments
from ys_llm.data import document_rows as module
from ys_llm.data.batches import IGNORE_INDEX, Batch, BatchPlan, batch_at, batches_per_epoch
from ys_llm.data.document_rows import RowShares, document_rows
from ys_llm.data.packing import pack
from ys_llm.data.shards import TokenShard
from ys_llm.errors import UserError

CHOICES = get_args(LongDocuments)
LENGTHS = st.lists(st.integers(0, 40), min_size=2, max_size=30)


def plan_of(choice: LongDocuments, seq_len: int, batch_size: int, seed: int = 7) -> BatchPlan:
    return BatchPlan("documents", seq_len, batch_size, seed, END, choice)


def forget() -> None:
    """What a new process knows: nothing is computed yet."""
    module.document_rows.cache_clear()
    module._document_order.cache_clear()
    module._unit_order.cache_clear()


def read_of_epoch(data: TokenShard, plan: BatchPlan, epoch: int) -> list[list[tuple[int, int]]]:
    """The tokens with their successors that each place reads in an epoch, padding left out."""
    n_rows = document_rows(data, plan.seq_len, plan.long_documents).packing.n_rows
    borders = [b * n_rows // plan.batch_size for b in range(plan.batch_size + 1)]
    found = []
    for place, (begin, end) in enumerate(pairwise(borders)):
        pairs = list[tuple[int, int]]()
        for index in range(epoch * (end - begin), (epoch + 1) * (end - begin)):
            batch = batch_at(data, plan, index)
            row = zip(
                batch.inputs_BT[place].tolist(), batch.targets_BT[place].tolist(), strict=True
            )
            pairs += [(token, target) for token, target in row if target != IGNORE_INDEX]
        found.append(pairs)
    return found


def long_enough(lengths: list[int], seq_len: int) -> bool:
    return sum(lengths) + len(lengths) >= seq_len


def fits(data: TokenShard, plan: BatchPlan) -> bool:
    """Whether every place has a row of every epoch."""
    rows = document_rows(data, plan.seq_len, plan.long_documents)
    return rows.packing.n_rows >= plan.batch_size


def successors(data: TokenShard) -> Counter[tuple[int, int]]:
    """Every token with its successor; a document's <end> stands for its first token."""
    return Counter(pairwise(data.tokens.tolist()))


@given(
    lengths=LENGTHS,
    seq_len=st.integers(1, 20),
    batch_size=st.integers(1, 5),
    choice=st.sampled_from(["carry", "cut"]),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=120)
def test_an_epoch_reads_every_token_once(
    lengths: list[int], seq_len: int, batch_size: int, choice: LongDocuments, epoch: int
) -> None:
    data, plan = token_data(lengths), plan_of(choice, seq_len, batch_size)
    if not long_enough(lengths, seq_len) or not fits(data, plan):
        return
    read = Counter(pair for pairs in read_of_epoch(data, plan, epoch) for pair in pairs)
    assert read == successors(data)


@given(
    lengths=LENGTHS,
    seq_len=st.integers(1, 20),
    batch_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=120)
def test_a_cropped_epoch_reads_every_beginning_once_and_no_token_twice(
    lengths: list[int], seq_len: int, batch_size: int, epoch: int
) -> None:
    data, plan = token_data(lengths), plan_of("crop", seq_len, batch_size)
    if not long_enough(lengths, seq_len) or not fits(data, plan):
        return
    read = Counter(pair for pairs in read_of_epoch(data, plan, epoch) for pair in pairs)
    begun, whole = (
        Counter({p: n for p, n in c.items() if p[0] == END}) for c in (read, successors(data))
    )
    assert begun == whole
    assert read <= successors(data)


@given(lengths=LENGTHS, seq_len=st.integers(1, 20), batch_size=st.integers(1, 40))
@settings(deadline=None, max_examples=120)
def test_what_is_carried_is_the_document_and_nothing_else(
    lengths: list[int], seq_len: int, batch_size: int
) -> None:
    """Each place reads documents in full from their beginning, or from where its share begins."""
    data, plan = token_data(lengths), plan_of("carry", seq_len, batch_size)
    if not long_enough(lengths, seq_len):
        return
    batches = [batch_at(data, plan, index) for index in range(2 * batches_per_epoch(data, plan))]
    assert [batch.carry for batch in batches] == [False] + [True] * (len(batches) - 1)
    for place in range(batch_size):
        inputs, targets, starts = (
            torch.cat([tensor[place] for tensor in tensors]).tolist()
            for tensors in zip(
                *((b.inputs_BT, b.targets_BT, b.starts_BT) for b in batches), strict=True
            )
        )
        for column in range(1, len(inputs)):
            if not starts[column]:
                assert inputs[column] == targets[column - 1]
            assert targets[column] != IGNORE_INDEX or inputs[column] == END


@given(lengths=LENGTHS, seq_len=st.integers(1, 20), batch_size=st.integers(1, 40))
@settings(deadline=None, max_examples=80)
def test_a_cropped_row_holds_only_tokens_whose_beginning_it_holds(
    lengths: list[int], seq_len: int, batch_size: int
) -> None:
    data, plan = token_data(lengths), plan_of("crop", seq_len, batch_size)
    if not long_enough(lengths, seq_len):
        return
    batch = batch_at(data, plan, 0)
    assert not batch.carry
    assert (batch.inputs_BT[:, 0] == END).all()
    inside = batch.inputs_BT[:, 1:] != END
    assert torch.equal(batch.inputs_BT[:, 1:][inside], batch.targets_BT[:, :-1][inside])


@pytest.mark.parametrize("choice", CHOICES)
@given(
    lengths=LENGTHS,
    seq_len=st.integers(1, 20),
    batch_size=st.integers(1, 40),
    index=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_any_batch_is_found_alone(
    choice: LongDocuments, lengths: list[int], seq_len: int, batch_size: int, index: int
) -> None:
    data, plan = token_data(lengths), plan_of(choice, seq_len, batch_size)
    if not long_enough(lengths, seq_len):
        return
    for before in range(max(0, index - 3), index):
        batch_at(data, plan, before)
    going_on = batch_at(data, plan, index)
    forget()
    alone = batch_at(data, plan, index)
    assert same(going_on, alone)
    assert alone.inputs_BT.shape == alone.targets_BT.shape == (batch_size, seq_len)
    assert (alone.targets_BT != IGNORE_INDEX).any(dim=1).all(), "no row is empty"


@given(lengths=LENGTHS, seq_len=st.integers(1, 20), choice=st.sampled_from(CHOICES))
@settings(deadline=None, max_examples=120)
def test_the_shares_are_those_of_the_rows(
    lengths: list[int], seq_len: int, choice: LongDocuments
) -> None:
    data, plan = token_data(lengths), plan_of(choice, seq_len, 1)
    if not long_enough(lengths, seq_len):
        return
    shares = document_rows(data, seq_len, choice).shares()
    batches = [batch_at(data, plan, index) for index in range(batches_per_epoch(data, plan))]
    targets = torch.cat([batch.targets_BT for batch in batches])
    inputs = torch.cat([batch.inputs_BT for batch in batches])
    is_read = targets != IGNORE_INDEX
    n_apart = sum(
        int(row.tolist().index(END) if END in row.tolist() else seq_len) for row in inputs
    )
    assert shares.rows == len(targets)
    assert shares.padding == pytest.approx(1 - is_read.float().mean().item(), abs=1e-6)
    assert shares.unread == pytest.approx(1 - int(is_read.sum()) / data.n_inputs)
    assert shares.apart == pytest.approx(n_apart / int(is_read.sum()))
    assert 0 <= shares.never <= shares.unread + 1e-9


def test_every_epoch_has_another_order_and_every_seed() -> None:
    data = token_data([9] * 50 + [19] * 20)
    firsts = []
    for seed in (7, 8):
        plan = plan_of("carry", 20, 2, seed)
        firsts += [str(read_of_epoch(data, plan, epoch)) for epoch in range(3)]
    assert len(set(firsts)) == 6


def test_short_documents_are_whole_and_fill_the_rows_of_long_ones() -> None:
    packing = pack(np.array([100, 60, 40, 30, 10, 30, 30]), 100, crop=False)
    assert packing.n_rows == 3
    assert document_rows(token_data([99, 59, 39, 29, 9, 29, 29]), 100, "cut").shares() == RowShares(
        rows=3, padding=0.0, unread=0.0, never=0.0, apart=0.0
    )


def test_a_small_gap_stays_empty_and_a_large_one_divides_a_document() -> None:
    lengths = np.array([95, 95])
    assert pack(lengths, 100, crop=False).pattern_rows.tolist() == [1]
    assert pack(lengths - 5, 100, crop=False).pattern_rows.tolist() == [2]


def test_the_end_of_a_document_that_one_epoch_crops_is_read_in_another() -> None:
    data, plan = token_data([29] * 400), plan_of("crop", 40, 8)
    shares = document_rows(data, 40, "crop").shares()
    assert 0.2 < shares.unread < 0.4
    assert shares.never == 0
    lasts = set((data.document_offsets[1:] - 1 + 10).tolist())  # token = position + 10
    read = {t for e in range(6) for pairs in read_of_epoch(data, plan, e) for t, _ in pairs}
    assert len(lasts & read) > 0.9 * len(lasts)


def test_a_document_longer_than_a_row_is_cropped_for_good() -> None:
    shares = document_rows(token_data([99, 9, 9]), 50, "crop").shares()
    assert shares.never == pytest.approx(50 / 120)


def test_a_batch_of_more_rows_than_an_epoch_has_is_full() -> None:
    data, plan = token_data([3, 4, 5]), plan_of("carry", 6, 64)
    batch: Batch = batch_at(data, plan, 5)
    assert (batch.targets_BT != IGNORE_INDEX).any(dim=1).all()


@pytest.mark.parametrize("choice", CHOICES)
def test_one_document_is_refused_with_what_to_type(choice: LongDocuments) -> None:
    with pytest.raises(UserError, match="is one document") as caught:
        batch_at(token_data([500]), plan_of(choice, 20, 2), 0)
    assert "--set data.batching=contiguous" in str(caught.value)


def test_a_million_documents_are_packed_as_patterns_with_next_to_no_padding() -> None:
    lengths = np.random.default_rng(0).gamma(2, 100, 1_000_000).astype(np.int64) + 1
    packing = pack(lengths, 256, crop=False)
    assert len(packing.slot_taken) < 200_000, "patterns, not documents"
    taken = np.repeat(packing.pattern_repeats, np.diff(packing.first_slot)) * packing.slot_taken
    assert taken.sum() == lengths.sum()
    assert packing.n_rows * 256 < 1.02 * lengths.sum()
