"""Attention that copies: how much probability each query gives to one token, its target.

    (a_t0, a_t.) = softmax(z_t, score_t.)   score_ts = q_t . k_s / sqrt(K), for the s in view of t
    mass_t = sum_s a_ts [token_s = target_t]
    rest_t = a_t0                           what is not copied at all; 0 where z_t = -inf

    c_t = mass_t dmass_t + rest_t drest_t   of the gradients dmass and drest
    dscore_ts = a_ts ([token_s = target_t] dmass_t - c_t)
    dz_t = rest_t (drest_t - c_t)

The queries are those of the last T of N keys of width K. A loss needs the mass of its target alone,
so that no B x T x V numbers are ever in memory: `tiled` and `cpp` compute a tile of queries against
the keys that any of them sees, and keep its a for the backward pass, negative where the token is
not the target. `cpp` computes a tile and its gradients by one kernel each.
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


class _Steps(NamedTuple):
    """Forward: rest and mass of a tile from its scores, which become a with its signs.

    Backward: the gradient of the scores from these, dmass and c.
    """

    forward: Callable[["Tile", Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


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
    query_BTK: Tensor,
    keys_BNK: Tensor,
    sentinel_BT: Tensor,
    tokens_BN: Tensor,
    targets_BT: Tensor,
    view: View,
) -> tuple[Tensor, Tensor]:
    """rest and mass, B x T, by the compiled kernel where there is one.

    `sentinel_BT` is z, float32 or wider. The mass is 0 for a target that is in no view.
    """
    op = cpp if rowwise.is_available(query_BTK) else tiled
    return op(query_BTK, keys_BNK, sentinel_BT, tokens_BN, targets_BT, view)


def copy_weights(
    query_BTK: Tensor, keys_BNK: Tensor, sentinel_BT: Tensor, view: View
) -> tuple[Tensor, Tensor]:
    """rest, B x T, and a, B x T x N, in float32 or wider."""
    n_queries, n_keys = query_BTK.shape[1], keys_BNK.shape[1]
    scores_BTN = query_BTK @ keys_BNK.transpose(1, 2)
    scores_BTN = scores_BTN.to(torch.promote_types(scores_BTN.dtype, torch.float32))
    hidden_BTN = ~visible(view.document_BN, n_queries, view.window)
    expired_BTN = view.expired(slice(0, n_queries), slice(0, n_keys))
    hidden_BTN = hidden_BTN if expired_BTN is None else hidden_BTN | expired_BTN
    scores_BTN = (scores_BTN / math.sqrt(query_BTK.shape[2])).masked_fill(hidden_BTN, -math.inf)
    return _softmax(sentinel_BT, scores_BTN)


def _softmax(sentinel_BT: Tensor, scores_BTN: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.cat([sentinel_BT.unsqueeze(2).to(scores_BTN.dtype), scores_BTN], 2).softmax(-1)
    return weights[..., 0], weights[..., 1:]


def reference(
    query_BTK: Tensor,
    keys_BNK: Tensor,
    sentinel_BT: Tensor,
    tokens_BN: Tensor,
    targets_BT: Tensor,
    view: View,
) -> tuple[Tensor, Tensor]:
    """The equation, with all weights in memory."""
    rest_BT, weights_BTN = copy_weights(query_BTK, keys_BNK, sentinel_BT, view)
    return rest_BT, (weights_BTN * (tokens_BN[:, None] == targets_BT[:, :, None])).sum(-1)


def tiled(
    query_BTK: Tensor,
    keys_BNK: Tensor,
    sentinel_BT: Tensor,
    tokens_BN: Tensor,
    targets_BT: Tensor,
    view: View,
) -> tuple[Tensor, Tensor]:
    """As `reference`, a tile of queries at a time."""
    steps = _Steps(_filled, _gradients)
    return _in_tiles((query_BTK, keys_BNK, sentinel_BT), tokens_BN, targets_BT, view, steps)


def cpp(
    query_BTK: Tensor,
    keys_BNK: Tensor,
    sentinel_BT: Tensor,
    tokens_BN: Tensor,
    targets_BT: Tensor,
    view: View,
) -> tuple[Tensor, Tensor]:
    """As `tiled`, with the compiled kernels between the matmuls."""
    if not rowwise.supports("copied_mass", compute_dtype(query_BTK)):
        return tiled(query_BTK, keys_BNK, sentinel_BT, tokens_BN, targets_BT, view)
    steps = _Steps(_filled_by_kernel, rowwise.copied_mass_backward)
    return _in_tiles((query_BTK, keys_BNK, sentinel_BT), tokens_BN, targets_BT, view, steps)


def _in_tiles(
    scored: tuple[Tensor, Tensor, Tensor],
    tokens_BN: Tensor,
    targets_BT: Tensor,
    view: View,
    steps: _Steps,
) -> tuple[Tensor, Tensor]:
    query_BTK, keys_BNK, sentinel_BT = scored
    dtype = compute_dtype(query_BTK)
    sentinel_BT = sentinel_BT.to(torch.promote_types(dtype, torch.float32))
    operands = (query_BTK.to(dtype), keys_BNK.to(dtype), sentinel_BT)
    arguments = (*operands, tokens_BN, targets_BT, view, steps)
    with torch.autocast(query_BTK.device.type, enabled=False):
        rest_BT, mass_BT = _Tiled.apply(*arguments)  # type: ignore[no-untyped-call]
    return rest_BT, mass_BT


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        sentinel: Tensor,
        tokens: Tensor,
        targets: Tensor,
        view: View,
        steps: _Steps,
    ) -> tuple[Tensor, Tensor]:
        """Rest and mass; the weights are kept where a backward pass will need them."""
        first_BT, scale = view.first(query.shape[1]), query.shape[2] ** -0.5
        tiles, found, kept = _tiles(first_BT, keys.shape[1]), [], []
        for tile in tiles:
            queries, part = slice(tile.first, tile.end), slice(tile.oldest, tile.last)
            keys_BKC, unused = keys[:, part].transpose(1, 2), query.new_empty(())
            scores = torch.baddbmm(unused, query[:, queries], keys_BKC, beta=0, alpha=scale)
            if (expired := view.expired(queries, part)) is not None:
                scores.masked_fill_(expired, -math.inf)
            first, ids = first_BT[:, queries] - tile.oldest, (tokens[:, part], targets[:, queries])
            found.append(steps.forward(tile, scores, sentinel[:, queries], first, *ids))
            if any(ctx.needs_input_grad[:3]):
                kept.append(scores)
        rest, mass = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        ctx.save_for_backward(query, keys, rest, mass, *kept)
        ctx.tiles, ctx.steps = tiles, steps
        return rest, mass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of query, keys and z; see the top of this file.

        dq_t = sum_s dscore_ts k_s / sqrt(K);   dk_s = sum_t dscore_ts q_t / sqrt(K)
        """
        query, keys, rest, mass, *kept = ctx.saved_tensors
        d_rest, d_mass = grads
        common = mass * d_mass + rest * d_rest
        d_query, d_keys = torch.empty_like(query), torch.zeros_like(keys)
        scale = query.shape[2] ** -0.5
        scaled = (d_mass * scale, common * scale)
        for tile, weights in zip(ctx.tiles, kept, strict=True):
            queries, part = slice(tile.first, tile.end), slice(tile.oldest, tile.last)
            d_scores = ctx.steps.backward(weights, *(part_BT[:, queries] for part_BT in scaled))
            d_query[:, queries] = torch.bmm(d_scores, keys[:, part])
            d_keys[:, part] += torch.bmm(d_scores.transpose(1, 2), query[:, queries])
        return d_query, d_keys, rest * (d_rest - common), None, None, None, None


def _filled(
    tile: Tile, scores: Tensor, sentinel: Tensor, first: Tensor, tokens: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    key_K = torch.arange(scores.shape[2], device=scores.device)
    last_C = torch.arange(tile.end - tile.first, device=scores.device) + 1
    last_C += scores.shape[2] - len(last_C)
    hidden = (key_K < first.unsqueeze(2)) | (key_K >= last_C[:, None])
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
    rest, weights = _softmax(sentinel, exact.masked_fill(hidden, -math.inf))
    found = tokens.unsqueeze(1) == targets.unsqueeze(2)
    scores.copy_(torch.where(found, weights, -weights))
    return rest, (weights * found).sum(-1)


def _gradients(weights: Tensor, d_mass: Tensor, common: Tensor) -> Tensor:
    exact = weights.to(common.dtype)
    d_target = torch.where(exact > 0, d_mass.unsqueeze(2), 0)
    return (exact.abs() * (d_target - common.unsqueeze(2))).to(weights.dtype)


def _filled_by_kernel(
    tile: Tile, scores: Tensor, sentinel: Tensor, first: Tensor, tokens: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    return rowwise.copied_mass(scores, sentinel, first, tokens, targets)


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


BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": reference,
    "tiled": tiled,
    "cpp": cpp,
}
