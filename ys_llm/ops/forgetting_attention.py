"""Softmax attention whose weights decay, over a cache of keys.

    y_t = sum_s w_ts v_s / sum_s w_ts     w_ts = exp(q_t . k_s + A_{s+1} + ... + A_t)

over s <= t of t's own document, t - s < window; A <= 0 is the logarithm of the decay. The queries
are those of the last T of N keys. The logarithms are summed in float64 and subtracted around a
token nearby, so that a long text costs no digits.
"""

import torch
from torch import Tensor

from ys_llm.ops.attention import visible
from ys_llm.ops.linear_scan import linear_scan

BLOCK = 128  # queries computed together


def forgetting_attention(
    query_BTHK: Tensor,
    keys_values: tuple[Tensor, Tensor],
    sums_BNH: Tensor,
    document_BN: Tensor,
    window: int,
    block: int = BLOCK,
) -> Tensor:
    """y_BTHV in float32 or wider; `sums_BNH` as `decay_sums` returns them."""
    n_queries, n_keys = query_BTHK.shape[1], document_BN.shape[1]
    past, outputs = n_keys - n_queries, []
    dtype = torch.promote_types(query_BTHK.dtype, torch.float32)
    with torch.autocast(query_BTHK.device.type, enabled=False):
        query, keys, values = (x.to(dtype).transpose(1, 2) for x in (query_BTHK, *keys_values))
        for first in range(0, n_queries, block):
            end = past + min(first + block, n_queries)
            seen = slice(max(0, past + first + 1 - window) if window else 0, end)
            q = query[:, :, first : end - past]
            view = visible(document_BN[:, seen], q.shape[2], window)[:, None]
            decay = _between(sums_BNH[:, seen], q.shape[2], dtype)
            scores = (q @ keys[:, :, seen].mT + decay).masked_fill(~view, -torch.inf)
            outputs.append(scores.softmax(-1) @ values[:, :, seen])
    return torch.cat(outputs, 2).transpose(1, 2)


def decay_sums(log_decay_BTH: Tensor, ages_BNH: Tensor, starts_BT: Tensor | None) -> Tensor:
    """Sums of A in float64, of past and new keys, from any point of a document that they share.

    `ages_BNH` holds A_{s+1} + ... of past keys up to the last token before the first new one.
    """
    # A scan, as of another document not even what cancels out may take part in a gradient.
    log_decay_TBH = log_decay_BTH.transpose(0, 1).double()
    keep_TBH = torch.ones_like(log_decay_TBH)
    if starts_BT is not None:
        starts_TB1 = starts_BT.t().unsqueeze(2)
        log_decay_TBH = log_decay_TBH.masked_fill(starts_TB1, 0)
        keep_TBH = keep_TBH.masked_fill(starts_TB1, 0)
    new = linear_scan(keep_TBH, log_decay_TBH, torch.zeros_like(log_decay_TBH[0]))
    return torch.cat([-ages_BNH.double(), new.transpose(0, 1)], 1)


def _between(sums_BNH: Tensor, n_queries: int, dtype: torch.dtype) -> Tensor:
    """B x H x C x N, the sum from each key to each of the last C; anything for later keys."""
    sums = sums_BNH.transpose(1, 2)
    base = sums[:, :, -n_queries, None].detach()
    to_query, to_key = (sums[:, :, -n_queries:] - base).to(dtype), (base - sums).to(dtype)
    return to_query.unsqueeze(3) + to_key.unsqueeze(2)
