"""More tokens for a trained model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_EMBEDDING, _HEAD = "embedding.weight", ("output.weight", "output.bias")


@torch.no_grad()
def with_more_tokens(tensors: Mapping[str, Tensor], like: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of a model with `len(like)` more tokens; the logits of others stay.

    The embedding of new token n begins as that of token `like[n]`. Its row of the head begins as
    the mean of all rows, so that its logit is the mean logit: a trained model all but excludes it.
    Where the head is the embedding, both begin as the mean.
    """
    grown = dict(tensors)
    is_tied = _HEAD[0] not in tensors
    for name in (_EMBEDDING, *_HEAD):
        if name in tensors:
            rows = tensors[name]
            as_another = name == _EMBEDDING and not is_tied
            new = rows[list(like)] if as_another else _means(rows, len(like))
            grown[name] = torch.cat([rows, new])
    return grown


def _means(rows: Tensor, n: int) -> Tensor:
    """The mean of rows, n times."""
    return rows.mean(0, keepdim=True).expand(n, *rows.shape[1:])
