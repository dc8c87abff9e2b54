"""The generalised delta rule: a matrix that decays by rows and is corrected where a key points.

    u_t = z_t M_{t-1}
    M_t = diag(w_t) M_{t-1} + b_t^T u_t + k_t^T v_t        w_t = exp(log_decay_t), K of them
    y_t = q_t M_t

H matrices M of K x V; q, z, b and k are vectors of K numbers, v, u and y of V. Where a document
starts, M_{t-1} is 0. `memory_BHKV` is M before the first token; every backend returns y and M
after the last.

Chunked: of C tokens after M, with g_t = w_1 ... w_t, so that g_t / g_s is what is left at t of what
token s wrote, and with products taken over one document alone,

    U  = (z g_{t-1}) M + tril((z g_{t-1}) (b / g)^T, -1) U + tril((z g_{t-1}) (k / g)^T, -1) V
    Y  = (q g) M + tril((q g) (b / g)^T) U + tril((q g) (k / g)^T) V
    M' = diag(g_C) M + (b g_C / g)^T U + (k g_C / g)^T V

Division by g sets the size of a chunk: at the fastest decay of RWKV-7, exp(-0.607), g_16 is 6e-5.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ys_llm.ops.delta_rule import inverse_of_unit_triangle

CHUNK = 16  # tokens; 2^n times 8
STEPWISE = 8  # fewer tokens than these are read one by one


class Writes(NamedTuple):
    """What each token corrects and writes: z, b, k, v and the logarithm of w (<= 0)."""

    aim_BTHK: Tensor
    correction_BTHK: Tensor
    key_BTHK: Tensor
    value_BTHV: Tensor
    log_decay_BTHK: Tensor


def vector_delta_rule(
    query_BTHK: Tensor, writes: Writes, memory_BHKV: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_BTHV and the memory, in float32 or wider."""
    op = reference if query_BTHK.shape[1] < STEPWISE else chunked
    return op(query_BTHK, writes, memory_BHKV, starts_BT)


def reference(
    query_BTHK: Tensor, writes: Writes, memory_BHKV: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The equations, token by token."""
    with torch.autocast(query_BTHK.device.type, enabled=False):
        (query, *wide), memory = _widened(query_BTHK, writes, memory_BHKV)
        outputs = []
        for t in range(query.shape[1]):
            if starts_BT is not None:
                memory = memory.masked_fill(starts_BT[:, t, None, None, None], 0)
            q, z, b, k, v, log_decay = (x[:, t, :, None] for x in (query, *wide))
            kept = log_decay.exp().mT * memory
            memory = kept + b.mT @ (z @ memory) + k.mT @ v
            outputs.append((q @ memory).squeeze(2))
    return torch.stack(outputs, 1), memory


def chunked(
    query_BTHK: Tensor, writes: Writes, memory_BHKV: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `reference`, in matmuls over chunks."""
    n_tokens = query_BTHK.shape[1]
    with torch.autocast(query_BTHK.device.type, enabled=False):
        inputs, memory = _widened(query_BTHK, writes, memory_BHKV)
        padding = -n_tokens % CHUNK  # zeros, which neither decay nor write anything
        padded = [F.pad(x.transpose(1, 2), (0, 0, 0, padding)) for x in inputs]
        starts = F.pad(starts_BT, (0, padding)) if starts_BT is not None else None
        outputs = []
        for first in range(0, n_tokens, CHUNK):
            chunk = slice(first, first + CHUNK)
            of_chunk = None if starts is None else starts[:, chunk]
            y, memory = _chunk(tuple(x[:, :, chunk] for x in padded), memory, of_chunk)
            outputs.append(y)
    return torch.cat(outputs, 2)[:, :, :n_tokens].transpose(1, 2), memory


def _chunk(
    inputs: tuple[Tensor, ...], memory: Tensor, starts_BC: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_BHCV of one chunk, and the memory after it."""
    q, z, b, k, v, log_decay = inputs
    together, begun = _documents(starts_BC, q)
    if starts_BC is not None:
        log_decay = log_decay.masked_fill(starts_BC[:, None, :, None], 0)
    sums = together @ log_decay
    left, before = sums.exp(), (sums - log_decay).exp()  # g_t and g_{t-1}
    earlier, aimed, asked = together.tril(-1), z * before, q * left
    b_before, k_before = b / left, k / left
    inverse = inverse_of_unit_triangle(-(aimed @ b_before.mT * earlier))
    fresh = (aimed * begun) @ memory  # what is read of M
    u = inverse @ (fresh + (aimed @ k_before.mT * earlier) @ v)
    y = (asked * begun) @ memory + (asked @ b_before.mT * together) @ u
    y = y + (asked @ k_before.mT * together) @ v
    kept = together[..., -1, :, None] * left[:, :, -1:]
    written = (b_before * kept).mT @ u + (k_before * kept).mT @ v
    return y, (left[:, :, -1:] * begun[:, :, -1:]).mT * memory + written


def _documents(starts_BC: Tensor | None, like_BHCK: Tensor) -> tuple[Tensor, Tensor]:
    """Which s <= t are of t's document, ... x C x C, and which t are of that of M, ... x C x 1."""
    size = like_BHCK.shape[2]
    together = torch.ones(1, 1, size, size, dtype=like_BHCK.dtype, device=like_BHCK.device).tril()
    if starts_BC is None:
        return together, together[..., :1]
    document = starts_BC.cumsum(1)[:, None, :, None]
    return together * (document == document.mT), (document == 0).to(like_BHCK.dtype)


def _widened(query: Tensor, writes: Writes, memory: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """All in one dtype, float32 or wider: errors of a recurrence add up."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return tuple(x.to(dtype) for x in (query, *writes)), memory.to(dtype)


BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": reference,
    "chunked": chunked,
}
