"""Attention that copies: how much probability each query gives to one token, its target.

    a_ts = softmax_s(q_t . k_s / sqrt(K))   over the s that `View` lets t see
    mass_t = sum_s a_ts [token_s = target_t]
    d mass_t / d score_ts = a_ts ([token_s = target_t] - mass_t)

The queries are those of the last T of N keys of width K. A loss needs the mass of its target alone,
so that no B x T x V numbers are ever in memory: `tiled` and `cpp` compute a tile of queries against
the keys that any of them sees, and keep the derivative above for the backward pass, which is then
two matmuls a tile. `cpp` fills in a tile by one kernel, in place.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ys_llm.ops import rowwise
from ys_llm.ops.attention import visible
from ys_llm.ops.precision import compute_dtype

TILE = 128  # queries: larger tiles compute more that is masked, smaller ones are smaller matmuls

# Masses of a tile, from its scores, which become d mass / d score.
_Fill = Callable[["Tile", Tensor, Tensor, Tensor, Tensor], Tensor]


class View(NamedTuple):
    """Which keys a query sees: of its own document, itself and earlier ones, `window` at most.

    `document_BN` numbers the documents of a row in ascending order; `window` 0 is no limit. With
    `expires_BN` key s of row b is seen by query t, counted from 0, only while t < expires_bs.
    """

    document_BN: Tensor
    window: int
    expires_BN: Tensor | None = None

    def first(self, n_queries: int) -> Tensor:
        """B x T, the first key that each query sees, as far as documents and window decide."""
        n_keys = self.document_BN.shape[1]
        own_BT = self.document_BN[:, n_keys - n_queries :].contiguous()
        start_BT = torch.searchsorted(self.document_BN.contiguous(), own_BT)
        if not self.window:
            return start_BT
        oldest_T = torch.arange(n_keys - n_queries, n_keys, device=start_BT.device)
        return torch.maximum(start_BT, oldest_T - (self.window - 1))

    def expired(self, queries: slice, keys: slice) -> Tensor | None:
        """B x C x K of these queries and keys; None where no key expires."""
        if self.expires_BN is None:
            return None
        query_C = torch.arange(queries.start, queries.stop, device=self.expires_BN.device)
        return self.expires_BN[:, None, keys] <= query_C[:, None]


class Tile(NamedTuple):
    """Queries `first` to `end`, with the keys `oldest` to `last` that any of them sees."""

    first: int
    end: int
    oldest: int
    last: int


def copied_mass(
    query_BTK: Tensor, keys_BNK: Tensor, tokens_BN: Tensor, targets_BT: Tensor, view: View
) -> Tensor:
    """B x T, by the compiled kernel where there is one; 0 for a target that is in no view."""
    op = cpp if rowwise.is_available(query_BTK) else tiled
    return op(query_BTK, keys_BNK, tokens_BN, targets_BT, view)


def copy_weights(query_BTK: Tensor, keys_BNK: Tensor, view: View) -> Tensor:
    """a, B x T x N, in float32 or wider."""
    n_queries, n_keys = query_BTK.shape[1], keys_BNK.shape[1]
    scores_BTN = query_BTK @ keys_BNK.transpose(1, 2)
    scores_BTN = scores_BTN.to(torch.promote_types(scores_BTN.dtype, torch.float32))
    hidden_BTN = ~visible(view.document_BN, n_queries, view.window)
    expired_BTN = view.expired(slice(0, n_queries), slice(0, n_keys))
    hidden_BTN = hidden_BTN if expired_BTN is None else hidden_BTN | expired_BTN
    scores_BTN = scores_BTN / math.sqrt(query_BTK.shape[2])
    return scores_BTN.masked_fill(hidden_BTN, -math.inf).softmax(-1)


def reference(
    query_BTK: Tensor, keys_BNK: Tensor, tokens_BN: Tensor, targets_BT: Tensor, view: View
) -> Tensor:
    """The equation, with all weights in memory."""
    weights_BTN = copy_weights(query_BTK, keys_BNK, view)
    return (weights_BTN * (tokens_BN[:, None] == targets_BT[:, :, None])).sum(-1)


def tiled(
    query_BTK: Tensor, keys_BNK: Tensor, tokens_BN: Tensor, targets_BT: Tensor, view: View
) -> Tensor:
    """As `reference`, a tile of queries at a time."""
    return _in_tiles(query_BTK, keys_BNK, tokens_BN, targets_BT, view, _filled)


def cpp(
    query_BTK: Tensor, keys_BNK: Tensor, tokens_BN: Tensor, targets_BT: Tensor, view: View
) -> Tensor:
    """As `tiled`, with the compiled kernel between the matmuls."""
    known = rowwise.supports("copied_mass", compute_dtype(query_BTK))
    fill = _filled_by_kernel if known else _filled
    return _in_tiles(query_BTK, keys_BNK, tokens_BN, targets_BT, view, fill)


def _in_tiles(
    query_BTK: Tensor,
    keys_BNK: Tensor,
    tokens_BN: Tensor,
    targets_BT: Tensor,
    view: View,
    fill: _Fill,
) -> Tensor:
    dtype = compute_dtype(query_BTK)
    query_BTK = (query_BTK * query_BTK.shape[2] ** -0.5).to(dtype)
    arguments = (query_BTK, keys_BNK.to(dtype), tokens_BN, targets_BT, view, fill)
    with torch.autocast(query_BTK.device.type, enabled=False):
        mass_BT: Tensor = _Tiled.apply(*arguments)  # type: ignore[no-untyped-call]
    return mass_BT


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        tokens: Tensor,
        targets: Tensor,
        view: View,
        fill: _Fill,
    ) -> Tensor:
        """The masses; the derivatives are kept where a backward pass will need them."""
        first_BT = view.first(query.shape[1])
        tiles, masses, kept = _tiles(first_BT, keys.shape[1]), [], []
        for tile in tiles:
            queries, part = slice(tile.first, tile.end), slice(tile.oldest, tile.last)
            scores = query[:, queries] @ keys[:, part].transpose(1, 2)
            if (expired := view.expired(queries, part)) is not None:
                scores.masked_fill_(expired, -math.inf)
            first = first_BT[:, queries] - tile.oldest
            masses.append(fill(tile, scores, first, tokens[:, part], targets[:, queries]))
            if any(ctx.needs_input_grad[:2]):
                kept.append(scores)
        ctx.save_for_backward(query, keys, *kept)
        ctx.tiles = tiles
        return torch.cat(masses, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of query and keys, with d_ts = d mass_t / d score_ts.

        dq_t = dm_t sum_s d_ts k_s;   dk_s = sum_t d_ts dm_t q_t
        """
        query, keys, *kept = ctx.saved_tensors
        d_query, d_keys = torch.empty_like(query), torch.zeros_like(keys)
        d_mass = grads[0].to(query.dtype).unsqueeze(2)
        weighted = query * d_mass
        for tile, d_scores in zip(ctx.tiles, kept, strict=True):
            queries, part = slice(tile.first, tile.end), slice(tile.oldest, tile.last)
            d_query[:, queries] = torch.bmm(d_scores, keys[:, part])
            d_keys[:, part] += torch.bmm(d_scores.transpose(1, 2), weighted[:, queries])
        return d_query.mul_(d_mass), d_keys, None, None, None, None


def _filled(tile: Tile, scores: Tensor, first: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    key_K = torch.arange(scores.shape[2], device=scores.device)
    last_C = torch.arange(tile.end - tile.first, device=scores.device) + 1
    last_C += scores.shape[2] - len(last_C)
    hidden = (key_K < first.unsqueeze(2)) | (key_K >= last_C[:, None])
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = exact.masked_fill(hidden, -math.inf).softmax(-1)
    found = (tokens.unsqueeze(1) == targets.unsqueeze(2)).to(weights.dtype)
    mass = (weights * found).sum(-1)
    scores.copy_(weights * (found - mass.unsqueeze(2)))
    return mass


def _filled_by_kernel(
    tile: Tile, scores: Tensor, first: Tensor, tokens: Tensor, targets: Tensor
) -> Tensor:
    return rowwise.copied_mass(scores, first, tokens, targets)


def _tiles(first_BT: Tensor, n_keys: int) -> list[Tile]:
    """Tiles of at most TILE queries, the same for all rows."""
    n_queries = first_BT.shape[1]
    firsts = list(range(0, n_queries, TILE))
    oldest = torch.stack([first_BT[:, first].min() for first in firsts]).tolist()
    ends = [*firsts[1:], n_queries]
    past = n_keys - n_queries
    return [
        Tile(first, end, old, past + end)
        for first, end, old in zip(firsts, ends, oldest, strict=True)
    ]


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference,
    "tiled": tiled,
    "cpp": cpp,
}
