"""An evaluation whose rows several processes share."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ys_llm.data.batches import IGNORE_INDEX, Batch, evaluation_batches, evaluation_span
from ys_llm.data.shards import TokenShard
from ys_llm.evaluation.bits_per_byte import (
    EVALUATION_ROWS,
    Evaluation,
    evaluation_of,
    nats_of_batches,
)
from ys_llm.training.ranks.group import Ranks
from ys_llm.training.trainer import Run


def evaluate_together(run: Run, data: TokenShard, *, max_tokens: int) -> Evaluation:
    """Loss and bits per byte of the run's model as it is; the same on every process."""
    batches = evaluation_batches(
        data,
        seq_len=run.config.train.plan[-1].seq_len,
        batch_size=EVALUATION_ROWS,
        max_tokens=max_tokens,
    )
    own = batches if run.ranks.is_alone else _own(batches, run.ranks)
    reset = run.config.data.reset_at_document
    with run.compute.autocast():
        nats = nats_of_batches(run.model, own, reset_at_document=reset)
    n_inputs, n_bytes = evaluation_span(data, max_tokens=max_tokens)
    return evaluation_of(run.ranks.total(nats), data.n_counted(n_inputs), n_bytes)


def _own(batches: Iterator[Batch], ranks: Ranks) -> Iterator[Batch]:
    """This process' rows; where there are fewer rows than processes, one of which nothing counts.

    So every process goes through as many batches, and a sharded model is asked by all.
    """
    for batch in batches:
        rows = ranks.rows(len(batch.inputs_BT))
        if rows.start < rows.stop:
            yield batch.part(rows)
        else:
            part = batch.part(slice(0, 1))
            yield replace(part, targets_BT=torch.full_like(part.targets_BT, IGNORE_INDEX))
