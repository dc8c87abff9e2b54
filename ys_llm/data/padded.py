"""Batches of one document a row, each from its own beginning, filled up to the longest of them.

What reads a document from a learned state, or compares whole documents, needs such rows: nothing
stands before a document, and nothing after it.
"""

import numpy as np
import torch

from ys_llm.data.batches import IGNORE_INDEX, Batch
from ys_llm.data.permutation import permute_keyed
from ys_llm.data.shards import Int64Array, TokenShard

_MULTIPLE = 16  # lengths of rows: few of them, so that backends choose few times


def documents_of_batch(n_documents: int, batch_size: int, index: int, seed: int) -> Int64Array:
    """Return which documents batch `index` reads: all, in another order in each epoch."""
    samples = index * batch_size + np.arange(batch_size, dtype=np.int64)
    documents = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(samples // n_documents).tolist():
        rows = samples // n_documents == epoch
        asked = (samples[rows] % n_documents).astype(np.uint64)
        found = permute_keyed(asked, n_documents, seed=seed, epoch=epoch)
        documents[rows] = found.astype(np.int64)
    return documents


def padded_batch(data: TokenShard, documents: Int64Array, seq_len: int) -> Batch:
    """Return these documents, at most `seq_len` tokens of each, as the rows of a batch.

    No row has a start: the model begins each from its initial state.
    """
    ends = np.append(data.document_offsets[1:], data.n_inputs)
    begins = data.document_offsets[documents]
    lengths = np.minimum(ends[documents] - begins, seq_len)
    width = min(seq_len, -(-int(lengths.max()) // _MULTIPLE) * _MULTIPLE)
    columns = np.arange(width, dtype=np.int64)[None]
    is_inside = columns < lengths[:, None]
    positions = np.where(is_inside, begins[:, None] + columns, 0)  # elsewhere <end>
    inputs = data.tokens[positions].astype(np.int64)
    targets = np.where(is_inside, data.targets(positions + 1), IGNORE_INDEX)
    starts = np.zeros(inputs.shape, dtype=np.bool_)
    numpy = torch.from_numpy
    return Batch(numpy(inputs), numpy(targets), numpy(starts), carry=False)
