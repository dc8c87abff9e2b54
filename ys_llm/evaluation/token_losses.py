"""The loss of every token of documents, each read from its own start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ys_llm.data.shards import Int64Array
from ys_llm.evaluation.bits_per_byte import evaluating
from ys_llm.model.language_model import Model
from ys_llm.model.state import select_rows

Float64Array = npt.NDArray[np.float64]
_LOGITS = 1 << 22  # numbers at a time: 16 MiB in float32
_ROWS = 32  # documents read in parallel
_COLUMNS = 256  # most tokens of each in one pass


def losses_of_documents(
    model: Model, documents: Sequence[Int64Array], *, first_id: int
) -> list[Float64Array]:
    """Nats of each token of each document, after `first_id` (`<end>`) and the tokens before it.

    The state is carried through a document, so memory does not grow with its length. Documents of
    similar lengths are read together.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]), reverse=True)
    found: dict[int, Float64Array] = {}
    with evaluating(model):
        for begin in range(0, len(order), _ROWS):
            numbers = order[begin : begin + _ROWS]
            losses = _losses_of_rows(model, [documents[i] for i in numbers], first_id)
            found.update(zip(numbers, losses, strict=True))
    return [found[i] for i in range(len(documents))]


def _losses_of_rows(
    model: Model, rows: Sequence[Int64Array], first_id: int
) -> Iterator[Float64Array]:
    """`rows` are sorted by length, the longest first: those that have ended are the last."""
    device, lengths = next(model.parameters()).device, [len(row) for row in rows]
    losses: list[list[Float64Array]] = [[] for _ in rows]
    step = min(_COLUMNS, max(1, _LOGITS // (len(rows) * model.vocab_size)))
    state, active = None, len(rows)
    for begin in range(0, lengths[0], step):
        still_active = sum(length > begin for length in lengths)
        if state is not None and still_active < active:
            state = select_rows(state, slice(0, still_active))
        active = still_active
        tokens_BT = _columns(rows[:active], begin, step, first_id).to(device)
        targets_BT = tokens_BT[:, 1:]
        logits_BTV, state = model(tokens_BT[:, :-1], state)
        nats_BT = token_nats(logits_BTV, targets_BT)
        for row, nats in enumerate(nats_BT.cpu().numpy()):
            losses[row].append(nats[: lengths[row] - begin])
    return (np.concatenate(parts) if parts else np.zeros(0) for parts in losses)


def token_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-log softmax(logits) at the targets, B x T in float64."""
    nats_N = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none"
    )
    return nats_N.view(targets_BT.shape).double()


def _columns(rows: Sequence[Int64Array], begin: int, step: int, first_id: int) -> Tensor:
    """The token before `begin` and up to `step` tokens from there on; ended rows are filled."""
    width = min(step, len(rows[0]) - begin)
    tokens = np.full((len(rows), width + 1), first_id, dtype=np.int64)
    for filled, row in zip(tokens, rows, strict=True):
        part = row[max(0, begin - 1) : begin + width]
        at = 1 if begin == 0 else 0
        filled[at : at + len(part)] = part
    return torch.from_numpy(tokens)
