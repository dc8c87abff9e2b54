"""How large each part of the state is after so many tokens, and how much of it still changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ys_llm.data.shards import Int64Array, TokenShard
from ys_llm.evaluation.bits_per_byte import evaluating
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten

MOMENTS = (16, 64, 256, 1024)  # tokens
_SEARCHED = 200  # documents, for a long one


@dataclass(frozen=True)
class StatePart:
    """One part of the state of one layer after `tokens` tokens.

    `rms` is the root mean square of its `numbers`; `change` the norm of its difference to the
    moment before, as a share of its own norm; None at the first moment, and where it has grown.
    """

    layer: str
    part: str
    numbers: int
    tokens: int
    rms: float
    change: float | None


def state_statistics(
    model: Model, data: TokenShard, moments: Sequence[int] = MOMENTS
) -> list[StatePart]:
    """Every part of the state at these moments of the longest document among the first ones.

    Later moments than its end are replaced by its end.
    """
    longest = _long_document(data, max(moments))
    ends = sorted({min(moment, len(longest)) for moment in moments})
    found: list[StatePart] = []
    state, before, begin = None, dict[str, Tensor](), 0
    with evaluating(model):
        for end in ends:
            _, state = model(_row(model, longest[begin:end]), state)
            parts = {
                name: tensor.detach().double().cpu()
                for name, tensor in flatten(state).items()
                if tensor.is_floating_point() and tensor.numel()
            }
            found += [_part(name, parts[name], before.get(name), end) for name in parts]
            before, begin = parts, end
    return found


def _long_document(data: TokenShard, most: int) -> Int64Array:
    """The longest of the first documents, up to its token `most`."""
    begins = data.document_offsets[: _SEARCHED + 1]
    lengths = np.diff(np.append(begins, data.n_inputs) if len(begins) <= _SEARCHED else begins)
    begin = begins[int(lengths.argmax())] + 1  # after the <end> before it
    return data.tokens[begin : begin + min(most, int(lengths.max()))].astype(np.int64)


def _row(model: Model, ids: Int64Array) -> Tensor:
    device = next(model.parameters()).device
    return torch.from_numpy(ids).long()[None].to(device)


def _part(name: str, tensor: Tensor, before: Tensor | None, tokens: int) -> StatePart:
    norm, change = tensor.norm().item(), None
    if before is not None and before.shape == tensor.shape and norm > 0:
        change = (tensor - before).norm().item() / norm
    layer, part = _names(name)
    count = tensor.numel()
    return StatePart(layer, part, count, tokens, norm / math.sqrt(count), change)


def _names(path: str) -> tuple[str, str]:
    """`layers.0.main` as ("layer 1", "main"), `copy.keys` as ("copy tier", "keys")."""
    first, *rest = path.split(".")
    if first == "layers":
        number, *rest = rest
        return f"layer {int(number) + 1}", ".".join(rest) or "state"
    return f"{first} tier", ".".join(rest) or "state"
