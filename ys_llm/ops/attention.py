"""Causal softmax attention within documents.

    a_ts = softmax_s(q_t . k_s / sqrt(P))   over s <= t of t's own document, t - s < window
    y_t  = sum_s a_ts v_s

The queries are those of the last T of N keys. `document_BN` numbers the documents of a row in
ascending order; `window` 0 is no limit. G key/value heads, each for H / G query heads.

Two paths besides `reference`. `sdpa` is torch's fused attention: its causal form where a row is one
document that begins with its first query, else with a mask. `tiled` computes only what is in view:
each document's queries in tiles, one tile against the keys that any of its queries sees. Where rows
hold several documents, that is a small part of what the masked form computes. Layers that pass the
same `document_BN` share its mask and its tiles.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ys_llm.ops.precision import compute_dtype
from ys_llm.ops.shared_by_layers import shared_by_layers

TILED_QUERIES = 32  # fewest queries a row for `tiled`; below, all rows are one call
TILED_THREADS = 8  # most threads for `tiled`, whose matmuls are small; timed with two
# Queries of a tile: larger ones compute more that is masked, smaller ones are smaller matmuls.
_TILE = {torch.bfloat16: 256}
_TILE_OTHERWISE = 128
_KEPT_KEYS = 512  # weights of a tile with more keys are computed again by the backward pass


class Tile(NamedTuple):
    """Queries `first` to `end` of a row and the keys `oldest` to `end` that any of them sees."""

    row: int
    first: int
    end: int
    oldest: int

    def queries(self, x_BTHP: Tensor, past: int) -> Tensor:
        """H x C x P, a view; `past` is the number of keys before the first query of a row."""
        return x_BTHP[self.row, self.first - past : self.end - past].transpose(0, 1)

    def keys(self, x_BNHP: Tensor) -> Tensor:
        """H x K x P, a view."""
        return x_BNHP[self.row, self.oldest : self.end].transpose(0, 1)


def attention(
    query_BTHP: Tensor, keys_BNGP: Tensor, values_BNGP: Tensor, document_BN: Tensor, window: int
) -> Tensor:
    """B x T x H x P, by the faster path for this device, number of queries and of threads."""
    on_cpu, n_queries = query_BTHP.device.type == "cpu", query_BTHP.shape[1]
    pays = n_queries >= TILED_QUERIES and torch.get_num_threads() <= TILED_THREADS
    path = tiled if on_cpu and pays else sdpa
    return path(query_BTHP, keys_BNGP, values_BNGP, document_BN, window)


def reference(
    query_BTHP: Tensor, keys_BNGP: Tensor, values_BNGP: Tensor, document_BN: Tensor, window: int
) -> Tensor:
    """The equation, one query at a time."""
    n_queries, n_heads = query_BTHP.shape[1:3]
    keys_BHNP, values_BHNP = (
        _every_head(x, n_heads).transpose(1, 2) for x in (keys_BNGP, values_BNGP)
    )
    past, mixed = keys_BHNP.shape[2] - n_queries, []
    for t in range(n_queries):
        end = past + t + 1
        view = slice(max(0, end - window) if window else 0, end)
        scores_BHN = (keys_BHNP[:, :, view] @ query_BTHP[:, t, :, :, None])[..., 0]
        foreign_BN = document_BN[:, view] != document_BN[:, end - 1, None]
        scores_BHN = scores_BHN / math.sqrt(query_BTHP.shape[3])
        weights_BHN = scores_BHN.masked_fill(foreign_BN[:, None], -math.inf).softmax(-1)
        mixed.append(weights_BHN[:, :, None] @ values_BHNP[:, :, view])
    return torch.cat(mixed, dim=2).transpose(1, 2)


def sdpa(
    query_BTHP: Tensor, keys_BNGP: Tensor, values_BNGP: Tensor, document_BN: Tensor, window: int
) -> Tensor:
    """As `reference`, by torch's fused attention."""
    n_queries, n_keys = query_BTHP.shape[1], keys_BNGP.shape[1]
    grouped = keys_BNGP.shape[2] != query_BTHP.shape[2]
    query, keys, values = (x.transpose(1, 2) for x in (query_BTHP, keys_BNGP, values_BNGP))
    is_causal = n_queries == n_keys and not 0 < window < n_keys and _is_whole(document_BN)
    mask = None if is_causal else _shared_mask(document_BN, n_queries, window)[:, None]
    mixed = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )
    return mixed.transpose(1, 2)


def tiled(
    query_BTHP: Tensor, keys_BNGP: Tensor, values_BNGP: Tensor, document_BN: Tensor, window: int
) -> Tensor:
    """As `reference`, tile by tile: matmuls and a softmax of which only corners are masked."""
    dtype, n_heads = compute_dtype(query_BTHP), query_BTHP.shape[2]
    keys, values = (_every_head(x, n_heads).to(dtype) for x in (keys_BNGP, values_BNGP))
    query = (query_BTHP * query_BTHP.shape[3] ** -0.5).to(dtype)
    tiles = _tiles(document_BN, query.shape[1], window, _TILE.get(dtype, _TILE_OTHERWISE))
    with torch.autocast(query.device.type, enabled=False):
        mixed: Tensor = _Tiled.apply(query, keys, values, tiles, window)  # type: ignore[no-untyped-call]
    return mixed


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, tiles: list[Tile], window: int
    ) -> Tensor:
        """The output; the weights of tiles with few keys are kept for the backward pass."""
        out, kept = torch.empty(query.shape, dtype=query.dtype), []
        past = keys.shape[1] - query.shape[1]
        for tile in tiles:
            a_HCK = _weights(tile.queries(query, past), tile.keys(keys), window)
            tile.queries(out, past).copy_(torch.bmm(a_HCK, tile.keys(values)))
            kept.append(a_HCK if a_HCK.shape[2] <= _KEPT_KEYS else None)
        ctx.save_for_backward(query, keys, values, *kept)
        ctx.tiles, ctx.window = tiles, window
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of query, keys and values.

        dv = a^T dy;   da = dy v^T;   ds = a (da - sum_s a da);   dq = ds k;   dk = ds^T q
        """
        query, keys, values, *kept = ctx.saved_tensors
        past = keys.shape[1] - query.shape[1]
        d_query = torch.empty(query.shape, dtype=query.dtype)
        d_keys, d_values = (torch.zeros(keys.shape, dtype=query.dtype) for _ in range(2))
        for tile, a_HCK in zip(ctx.tiles, kept, strict=True):
            q_HCP, k_HKP = tile.queries(query, past), tile.keys(keys)
            dy_HCP = tile.queries(grads[0], past)
            if a_HCK is None:
                a_HCK = _weights(q_HCP, k_HKP, ctx.window)
            da_HCK = torch.bmm(dy_HCP, tile.keys(values).transpose(1, 2))
            ds_HCK = torch._softmax_backward_data(da_HCK, a_HCK, -1, a_HCK.dtype)
            tile.queries(d_query, past).copy_(torch.bmm(ds_HCK, k_HKP))
            tile.keys(d_keys).add_(torch.bmm(ds_HCK.transpose(1, 2), q_HCP))
            tile.keys(d_values).add_(torch.bmm(a_HCK.transpose(1, 2), dy_HCP))
        return d_query, d_keys, d_values, None, None


def _weights(q_HCP: Tensor, k_HKP: Tensor, window: int) -> Tensor:
    """H x C x K, the softmax of each query over the keys that it sees; the last C keys are its own.

    Hidden are later keys, a corner above the diagonal of the last C columns, and outgrown ones, a
    corner below the diagonal of the first K - window columns.
    """
    scores_HCK = torch.bmm(q_HCP, k_HKP.transpose(1, 2))
    n_queries, n_keys = scores_HCK.shape[1:]
    hidden = scores_HCK.new_full((n_queries, n_queries), -math.inf)
    scores_HCK[:, :, n_keys - n_queries :] += hidden.triu(1)
    outgrown = n_keys - window
    if window and outgrown > 0:
        corner = scores_HCK[:, n_queries - outgrown :, :outgrown]
        corner += hidden[:outgrown, :outgrown].tril()
    return torch.softmax(scores_HCK, -1, out=scores_HCK)


@shared_by_layers
def _tiles(document_BN: Tensor, n_queries: int, window: int, size: int) -> list[Tile]:
    """Tiles of at most `size` queries, of one row and one document each, as even as can be."""
    return [*_tiles_of(document_BN.tolist(), n_queries, window, size)]


def _tiles_of(documents: list[list[int]], n_queries: int, window: int, size: int) -> Iterator[Tile]:
    for row, document_N in enumerate(documents):
        n_keys = len(document_N)
        begin = n_keys - n_queries
        while begin < n_keys:
            start = bisect_left(document_N, document_N[begin])
            end = bisect_right(document_N, document_N[begin])
            n_tiles = -(-(end - begin) // size)
            borders = [begin + (end - begin) * i // n_tiles for i in range(n_tiles + 1)]
            for first, last in pairwise(borders):
                oldest = max(start, first + 1 - window) if window else start
                yield Tile(row, first, last, oldest)
            begin = end


def _every_head(x_BNGP: Tensor, n_heads: int) -> Tensor:
    """B x N x H x P: a key/value head for each query head."""
    share = n_heads // x_BNGP.shape[2]
    return x_BNGP if share == 1 else x_BNGP.repeat_interleave(share, dim=2)


def _is_whole(document_BN: Tensor) -> bool:
    """Whether each row is one document, stored once or, on a CPU, by its first and last number.

    On a GPU the numbers are not read, as the answer would be waited for.
    """
    if document_BN.stride(1) == 0:
        return True
    return document_BN.device.type == "cpu" and torch.equal(document_BN[:, 0], document_BN[:, -1])


def visible(document_BN: Tensor, n_queries: int, window: int) -> Tensor:
    """B x T x N, whether a query sees a key."""
    n_keys = document_BN.shape[1]
    key_N = torch.arange(n_keys, device=document_BN.device)
    age_TN = key_N[n_keys - n_queries :, None] - key_N
    in_view_TN = (age_TN >= 0) & (age_TN < window) if window else age_TN >= 0
    own_BTN = document_BN[:, n_keys - n_queries :, None] == document_BN[:, None]
    return own_BTN & in_view_TN


_shared_mask = shared_by_layers(visible)


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference,
    "sdpa": sdpa,
    "tiled": tiled,
}
