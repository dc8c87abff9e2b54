"""How much of a token's probability was copied, and from which tokens (`model/copy_tier.py`).

    p(v) = (1 - g) softmax(head)_v + sum_s share_s [token_s = v]

The share of token s in p(v) is share_s / p(v), for the tokens s that are v; the rest is the head's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ys_llm.model.copy_tier import CopyTier, Reading

N_SOURCES = 3


@dataclass(frozen=True)
class Source:
    """A token that was copied: its position in the text, from 0, and its part of the share.

    The position of a token that was kept for its surprise, from long before, is not known: None.
    """

    position: int | None
    share: float


@dataclass(frozen=True)
class Copied:
    """The share of a token's probability that was copied, 0 to 1, and the largest sources of it."""

    share: float
    sources: tuple[Source, ...] = ()


class Copyable:
    """What each of the next tokens of one text can be copied from.

    `n_read` is the number of tokens of the text up to the last one of `reading`.
    """

    def __init__(self, tier: CopyTier, reading: Reading, n_read: int) -> None:
        self._shares_TN = tier.shares(reading)[1][0].to("cpu")
        self._ids_N = (reading.tokens_BN[0] - 1).to("cpu")
        n_latest = tier.window if tier.room is None else tier.room.n_recent
        n_latest += reading.query_BTK.shape[1]
        self._first = n_read - len(self._ids_N)
        self._first_known = n_read - n_latest  # tokens from here on follow each other

    def of(self, query: int, id: int, logprob: float) -> Copied:
        """What of this probability of the token after query number `query` was copied."""
        found_N = (self._ids_N == id).nonzero()[:, 0]
        parts: Tensor = self._shares_TN[query, found_N] / math.exp(logprob)
        best, where = parts.topk(min(N_SOURCES, len(parts)))
        positions = (self._first + found_N[where]).tolist()
        sources = tuple(
            Source(position if position >= self._first_known else None, share)
            for position, share in zip(positions, best.tolist(), strict=True)
            if share > 0
        )
        return Copied(min(1.0, float(parts.sum())), sources)
