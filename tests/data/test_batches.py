"""Shards say exactly what the documents say, and batches read every token of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.data import shards as shards_module
from ys_llm.data.batches import (
    IGNORE_INDEX,
    Batch,
    BatchPlan,
    batch_at,
    batches_per_epoch,
    evaluation_batches,
    evaluation_span,
    permute,
)
from ys_llm.data.records import Document
from ys_llm.data.shards import TokenShard, prepare
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import UserError

END = 0
TEXTS = ["the cat sat", "on the mat\n\nand École ½", "", "日本語 🙂", "a" * 300]
DOCUMENTS = [Document(text=text) for text in TEXTS] + [Document(text="4", prompt="2 + 2 =")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, kind="bytes", vocab_size=258)


def token_data(lengths: list[int]) -> TokenShard:
    """Documents of these lengths; every text token differs from every other."""
    total = sum(lengths) + len(lengths) + 1
    tokens = np.arange(total, dtype=np.uint32) + 10
    offsets = np.cumsum([0, *[length + 1 for length in lengths[:-1]]]).astype(np.int64)
    tokens[offsets] = END
    tokens[-1] = END
    return TokenShard(tokens, offsets, np.array(lengths, dtype=np.int64) * 3)


def plan_of(
    seq_len: int, batch_size: int, *, batching: str = "shuffled", seed: int = 7
) -> BatchPlan:
    assert batching in ("shuffled", "contiguous")
    return BatchPlan(
        "shuffled" if batching == "shuffled" else "contiguous", seq_len, batch_size, seed, END
    )


def rows_of(batches: list[Batch], row: int) -> list[int]:
    return torch.cat([batch.inputs_BT[row] for batch in batches]).tolist()


def same(a: Batch, b: Batch) -> bool:
    tensors = ("inputs_BT", "targets_BT", "starts_BT")
    return a.carry == b.carry and all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors)


# Shards


def test_a_shard_is_the_documents_between_end_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="training")
    by_key = sorted(DOCUMENTS, key=lambda document: document.content_hash)
    expected = [END]
    for document in by_key:
        if document.prompt is not None:
            expected += [*tokenizer.encode(document.prompt), tokenizer.start_id]
        expected += [*tokenizer.encode(document.text), END]
    assert data.tokens.tolist() == expected
    assert data.tokens.dtype == np.uint16
    assert isinstance(data.tokens, np.memmap)
    assert (data.tokens[data.document_offsets] == END).all()
    assert data.document_bytes.tolist() == [document.n_bytes for document in by_key]
    assert data.n_bytes == sum(len(text.encode()) for text in TEXTS) + len("2 + 2 =4")


def test_the_order_of_the_documents_does_not_matter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    forward = prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path / "a", label="training")
    backward = prepare(DOCUMENTS[::-1], tokenizer, cache_dir=tmp_path / "b", label="training")
    assert forward.tokens.tolist() == backward.tokens.tolist()
    assert [p.name for p in (tmp_path / "a").iterdir()] == [
        p.name for p in (tmp_path / "b").iterdir()
    ]


def test_a_second_call_reads_the_cache(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="training")
    (shard,) = tmp_path.glob("*/tokens.bin")
    written = shard.stat().st_mtime_ns
    prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="training")
    assert shard.stat().st_mtime_ns == written


def test_changed_text_of_the_same_name_is_encoded_anew(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    before = [Document(text="old text", source="story.txt")]
    after = [Document(text="new text", source="story.txt")]
    prepare(before, tokenizer, cache_dir=tmp_path, label="training")
    data = prepare(after, tokenizer, cache_dir=tmp_path, label="training")
    assert tokenizer.decode(data.tokens.tolist()) == "new text"


def test_another_tokenizer_never_meets_the_ids_of_the_first(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    documents = [Document(text="the cat sat on the mat")]
    other = train_tokenizer(["the cat sat on the mat"], kind="chars", vocab_size=300)
    prepare(documents, tokenizer, cache_dir=tmp_path, label="training")
    data = prepare(documents, other, cache_dir=tmp_path, label="training")
    assert data.tokens.tolist() == [END, *other.encode("the cat sat on the mat"), END]


@pytest.mark.parametrize("name", ["tokens.bin", "index.bin", "meta.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_cache_is_made_again(
    tokenizer: Tokenizer, tmp_path: Path, name: str, harm: str
) -> None:
    whole = prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="training").tokens.tolist()
    (path,) = tmp_path.glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    again = prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="training")
    assert again.tokens.tolist() == whole
    assert again.document_bytes.sum() == sum(document.n_bytes for document in DOCUMENTS)


def test_no_temporary_file_stays(tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path, label="training")
    assert {path.name for path in tmp_path.glob("*/*")} == {"tokens.bin", "index.bin", "meta.json"}


def test_several_processes_write_the_same_shard(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path / "one", label="training")
    monkeypatch.setattr(shards_module, "_PARALLEL_BYTES", 0)
    monkeypatch.setattr(shards_module, "_MOST_PROCESSES", 2)
    monkeypatch.setattr(shards_module, "_CHUNK_BYTES", 16)
    parallel = prepare(DOCUMENTS, tokenizer, cache_dir=tmp_path / "many", label="training")
    assert parallel.tokens.tolist() == whole.tokens.tolist()
    assert parallel.document_offsets.tolist() == whole.document_offsets.tolist()


def test_no_documents_is_the_users_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="validation split holds no documents"):
        prepare([], tokenizer, cache_dir=tmp_path, label="validation")


# The order of windows


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_the_permutation_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    values = permute(np.arange(n, dtype=np.uint64), n, seed=seed, epoch=epoch)
    assert sorted(values.tolist()) == list(range(n))


def test_each_index_is_permuted_alone_even_where_no_list_would_fit() -> None:
    n = 10**15 + 37
    indices = np.array([0, 1, 2, n // 2, n - 1], dtype=np.uint64)
    together = permute(indices, n, seed=3, epoch=0)
    alone = [int(permute(indices[i : i + 1], n, seed=3, epoch=0)[0]) for i in range(5)]
    assert together.tolist() == alone
    assert len(set(alone)) == 5
    assert max(alone) < n


def test_permutations_look_random_and_differ_between_epochs_and_seeds() -> None:
    n = 10_000
    indices = np.arange(n, dtype=np.uint64)
    orders = [permute(indices, n, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    for i, order in enumerate(orders):
        # The correlation of two independent orders has standard deviation 1 / sqrt(n) = 0.01.
        assert abs(np.corrcoef(indices, order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        for other in orders[i + 1 :]:
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.05


# Batches


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


# Evaluation


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
        evaluation_batches(
            data, seq_len=seq_len, batch_size=batch_size, end_id=END, max_tokens=max_tokens
        )
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
