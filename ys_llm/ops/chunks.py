"""Time cut into chunks, and what is left inside a chunk of what was there before.

    g_t  = a_1 ... a_t          of the memory before the chunk, at its token t
    D_ts = a_{s+1} ... a_t      of what token s wrote, at token t; 0 for s > t

Both are 0 where a document starts in between; a_t = exp(log_decay_t).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def in_chunks(x_BTHX: Tensor, size: int) -> Tensor:
    """B x H x N x C x X; zeros after the last token, which keep and write nothing new."""
    padding = -x_BTHX.shape[1] % size
    padded = F.pad(x_BTHX, (0, 0, 0, 0, 0, padding)) if padding else x_BTHX
    chunks: Tensor = padded.unflatten(1, (-1, size))
    return chunks.permute(0, 3, 1, 2, 4).contiguous()


def decays(log_decay_BHNC1: Tensor, starts_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """g, B x H x N x C x 1, and D, B x H x N x C x C."""
    log_decay, size = log_decay_BHNC1, log_decay_BHNC1.shape[3]
    hidden = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)
    if starts_BT is None:
        sums = log_decay.cumsum(3)
        return sums.exp(), (sums - sums.mT).masked_fill(hidden, -torch.inf).exp()
    starts = in_chunks(starts_BT[:, :, None, None], size)
    document = starts.cumsum(3)  # how many have started in a token's chunk, up to the token
    hidden = hidden | (document != document.mT)
    # By a product, so that no decay of another document takes part, not even to cancel out.
    sums = (~hidden).to(log_decay.dtype) @ log_decay.masked_fill(starts, 0)
    ratio = (sums - sums.mT).masked_fill(hidden, -torch.inf).exp()
    return sums.exp().masked_fill(document > 0, 0), ratio
