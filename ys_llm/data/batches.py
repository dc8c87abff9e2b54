"""Batches of a token shard: the order of the text is a function of the seed and the batch index.

The first and the last token of a shard (`shards.py`) are both `<end>`: training reads it as a ring
of M = len(tokens) - 1 inputs, in which position (i + 1) mod M follows position i.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ys_llm.config.schema import Batching, LongDocuments
from ys_llm.data.document_rows import EMPTY, document_rows
from ys_llm.data.permutation import draw, permute_keyed
from ys_llm.data.shards import NOT_COUNTED, Int64Array, TokenShard
from ys_llm.errors import UserError

IGNORE_INDEX = NOT_COUNTED  # no loss counts this target


@dataclass(frozen=True)
class Batch:
    """The input of one step: `inputs_BT`, `targets_BT` (int64), `starts_BT` (bool).

    With `carry`, row b continues row b of the previous batch, so the state is carried over.
    `starts_BT` marks the first token (`<end>`) of each document, and of a row that continues
    nothing though the others do. Of a batch that several processes share, each has a part of the
    rows, and `share` is its share of the targets that count, of which all have `counted_by_all`.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    starts_BT: Tensor
    carry: bool
    share: float = 1.0
    counted_by_all: int | None = None

    @property
    def counted(self) -> int:
        """How many targets count, those of other processes included."""
        if self.counted_by_all is not None:
            return self.counted_by_all
        return int((self.targets_BT != IGNORE_INDEX).sum())

    def part(self, rows: slice) -> Batch:
        """Return some rows of this batch."""
        targets_BT = self.targets_BT[rows]
        share = int((targets_BT != IGNORE_INDEX).sum()) / max(1, self.counted)
        return Batch(
            self.inputs_BT[rows], targets_BT, self.starts_BT[rows], self.carry, share, self.counted
        )

    def to(self, device: torch.device) -> Batch:
        """Return the same on a device."""
        return replace(
            self,
            inputs_BT=self.inputs_BT.to(device),
            targets_BT=self.targets_BT.to(device),
            starts_BT=self.starts_BT.to(device),
        )


@dataclass(frozen=True)
class BatchPlan:
    """What the order of batches depends on, besides the data and the batch index."""

    batching: Batching
    seq_len: int
    batch_size: int
    seed: int
    end_id: int
    long_documents: LongDocuments = "carry"


def batches_per_epoch(data: TokenShard, plan: BatchPlan) -> int:
    """Return the number of batches after which every token was an input at least once.

    With documents, after which every row was read; R / batch_size of them, rounded up.
    """
    _check(data, plan)
    if plan.batching == "documents":
        rows = document_rows(data, plan.seq_len, plan.long_documents)
        return -(-rows.packing.n_rows // plan.batch_size)
    if plan.batching == "shuffled":
        return -(-_n_windows(data, plan) // plan.batch_size)
    return _n_pieces(data, plan)


def batch_at(data: TokenShard, plan: BatchPlan, index: int) -> Batch:
    """Return batch number `index`, from 0: a pure function of its arguments, in O(1).

    shuffled: sample s = index * batch_size + row is window `permute_keyed(s mod n)` of epoch
    s // n, with n = ceil(M / seq_len). A batch may span two epochs, so no partial batch is dropped.
    contiguous: row b begins at floor(b M / batch_size), and the batch is its piece k = index mod K,
    K = ceil(M / (batch_size seq_len)); `carry` is false for the first piece of an epoch only.
    In both, an offset drawn from (seed, epoch) rotates the ring, so borders move every epoch.
    documents: see `document_rows.py`. Columns without a document are inputs of `<end>` with the
    target IGNORE_INDEX.

    Raises UserError if the data is shorter than one window, or a single document where rows begin
    at documents.
    """
    _check(data, plan)
    if plan.batching == "documents":
        return _document_batch(data, plan, index)
    if plan.batching == "shuffled":
        begins, carry = _window_begins(data, plan, index), False
    else:
        begins, carry = _contiguous_begins(data, plan, index)
    positions = (begins[:, None] + np.arange(plan.seq_len + 1)) % data.n_inputs
    inputs = data.tokens[positions[:, :-1]].astype(np.int64)
    starts = data.begins(positions[:, :-1])
    return _batch(inputs, data.targets(positions[:, 1:]), starts, carry=carry)


def evaluation_span(data: TokenShard, *, max_tokens: int) -> tuple[int, int]:
    """Return (predictions, bytes) of the part that is evaluated under this limit.

    The part is the longest run of whole documents from the front with at most `max_tokens` tokens,
    but at least one document; 0 means all. It depends on nothing else, so that evaluations of
    different models can be compared.
    """
    if max_tokens <= 0 or data.n_inputs <= max_tokens:
        return data.n_inputs, data.n_bytes
    ends = np.append(data.document_offsets[1:], data.n_inputs)
    n_documents = max(1, int(np.searchsorted(ends, max_tokens, side="right")))
    return int(ends[n_documents - 1]), int(data.document_bytes[:n_documents].sum())


def evaluation_batches(
    data: TokenShard, *, seq_len: int, batch_size: int, max_tokens: int = 0
) -> Iterator[Batch]:
    """Yield contiguous batches, state carried over, that predict every token exactly once.

    Row b scores [floor(b n / B), floor((b + 1) n / B)) and begins to read `seq_len` tokens
    earlier, so that the first predictions of a row have context too. Targets that are not scored
    (this run-up, and the end of rows shorter than the longest) are IGNORE_INDEX. The last batch may
    be shorter than `seq_len`.
    """
    n_tokens, _ = evaluation_span(data, max_tokens=max_tokens)
    # A row shorter than a window would spend more on its run-up than on its own tokens.
    n_rows = max(1, min(batch_size, n_tokens // seq_len))
    borders = np.arange(n_rows + 1, dtype=np.int64) * n_tokens // n_rows
    firsts = np.maximum(borders[:-1] - seq_len, 0)
    longest = int((borders[1:] - firsts).max())
    for done in range(0, longest, seq_len):
        columns = np.arange(done, min(done + seq_len, longest))
        positions = firsts[:, None] + columns
        scored = (positions >= borders[:-1, None]) & (positions < borders[1:, None])
        inside = np.minimum(positions, n_tokens - 1)  # targets beyond are IGNORE_INDEX
        inputs = data.tokens[inside].astype(np.int64)
        targets = np.where(scored, data.targets(inside + 1), IGNORE_INDEX)
        yield _batch(inputs, targets, data.begins(inside), carry=done > 0)


def joined(first: Batch, second: Batch) -> Batch:
    """Return the rows of both, of one length; those of the second continue nothing."""
    batch = Batch(
        torch.cat([first.inputs_BT, second.inputs_BT]),
        torch.cat([first.targets_BT, second.targets_BT]),
        torch.cat([first.starts_BT, second.starts_BT]),
        carry=first.carry,
    )
    batch.starts_BT[len(first.inputs_BT) :, 0] = True  # a window begins anywhere
    return batch


def _batch(
    inputs: Int64Array, targets: Int64Array, starts: npt.NDArray[np.bool_], *, carry: bool
) -> Batch:
    numpy = torch.from_numpy
    return Batch(numpy(inputs), numpy(targets), numpy(starts), carry)


def _document_batch(data: TokenShard, plan: BatchPlan, index: int) -> Batch:
    rows = document_rows(data, plan.seq_len, plan.long_documents)
    positions, is_first_B = rows.positions(index, batch_size=plan.batch_size, seed=plan.seed)
    is_empty = positions == EMPTY
    inputs = np.where(is_empty, plan.end_id, data.tokens[positions].astype(np.int64))
    targets = np.where(is_empty, IGNORE_INDEX, data.targets(positions + 1))
    carry = plan.long_documents == "carry" and index > 0
    batch = _batch(inputs, targets, is_empty | data.begins(positions), carry=carry)
    batch.starts_BT[:, 0] |= torch.from_numpy(is_first_B)
    return batch


def _check(data: TokenShard, plan: BatchPlan) -> None:
    if plan.batching == "documents" and len(data.document_offsets) == 1:
        raise UserError(
            "data.batching is documents, and the training text is one document",
            "Type --set data.batching=shuffled, or --set data.batching=contiguous, which reads it "
            "in order.",
        )
    if data.n_inputs < plan.seq_len:
        raise UserError(
            f"The training split has {len(data.tokens):,} tokens, and train.seq_len: "
            f"{plan.seq_len} needs at least {plan.seq_len + 1:,}",
            f"Add text, or type --set train.seq_len={max(1, data.n_inputs)} or less.",
        )


def _n_windows(data: TokenShard, plan: BatchPlan) -> int:
    return -(-data.n_inputs // plan.seq_len)


def _n_pieces(data: TokenShard, plan: BatchPlan) -> int:
    return -(-data.n_inputs // (plan.batch_size * plan.seq_len))


def _window_begins(data: TokenShard, plan: BatchPlan, index: int) -> Int64Array:
    n = _n_windows(data, plan)
    samples = index * plan.batch_size + np.arange(plan.batch_size, dtype=np.int64)
    epochs = samples // n
    begins = np.empty(plan.batch_size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        windows = permute_keyed(
            (samples[rows] % n).astype(np.uint64), n, seed=plan.seed, epoch=epoch
        )
        offset = int(draw("offset", plan.seed, epoch)[0]) % plan.seq_len
        begins[rows] = offset + windows.astype(np.int64) * plan.seq_len
    return begins


def _contiguous_begins(data: TokenShard, plan: BatchPlan, index: int) -> tuple[Int64Array, bool]:
    epoch, piece = divmod(index, _n_pieces(data, plan))
    offset = int(draw("offset", plan.seed, epoch)[0]) % data.n_inputs
    rows = np.arange(plan.batch_size, dtype=np.int64)
    begins = offset + rows * data.n_inputs // plan.batch_size + piece * plan.seq_len
    return begins, piece > 0
