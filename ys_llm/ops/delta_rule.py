"""The gated delta rule: a matrix that is read by a key, corrected there, and forgotten.

    kept_t = a_t M_{t-1}                               a_t = exp(log_decay_t)
    M_t    = kept_t + k_t^T b_t (v_t - k_t kept_t)
    y_t    = q_t M_t

H matrices M of K x V; q and k are vectors of K numbers, v and y of V; 0 <= b_t <= 1 is the rate.
Where a document starts, a_t is 0. `memory_BHKV` is M before the first token; every backend returns
y and M after the last.

Chunked (Yang et al. 2024): u_t = b_t (v_t - k_t kept_t) is what token t writes. Of C tokens after
M, with g_t = a_1 ... a_t and D_ts = g_t / g_s, both 0 where a document starts in between,

    (I + L) U = diag(b) (V - diag(g) K M)      L_ts = b_t D_ts k_t . k_s for s < t, else 0
    Y  = diag(g) Q M + (D o Q K^T) U           D_ts = 0 for s > t
    M' = g_C M + (diag(D_C) K)^T U

so that all chunks are computed at once, but for one product a chunk that takes M to M'.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ys_llm.ops.chunks import decays, in_chunks

CHUNK = 64  # tokens; 2^n times _BASE
STEPWISE = 8  # fewer tokens than these are read one by one
_BASE = 8  # size of the blocks of a triangle that powers invert: larger ones lose digits


class Writes(NamedTuple):
    """What each token writes: key, value, logarithm of the decay (<= 0) and rate."""

    key_BTHK: Tensor
    value_BTHV: Tensor
    log_decay_BTH: Tensor
    rate_BTH: Tensor


def delta_rule(
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
        query, (key, value, log_decay, rate), memory = _widened(query_BTHK, writes, memory_BHKV)
        decay = log_decay.exp()
        if starts_BT is not None:
            decay = decay.masked_fill(starts_BT.unsqueeze(2), 0)
        outputs = []
        for t in range(query.shape[1]):
            kept = decay[:, t, :, None, None] * memory
            k = key[:, t, :, None]
            written = rate[:, t, :, None, None] * (value[:, t, :, None] - k @ kept)
            memory = kept + k.transpose(2, 3) @ written
            outputs.append((query[:, t, :, None] @ memory).squeeze(2))
    return torch.stack(outputs, 1), memory


def chunked(
    query_BTHK: Tensor, writes: Writes, memory_BHKV: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `reference`, in matmuls over chunks."""
    n_tokens, size = query_BTHK.shape[1], _chunk_size(query_BTHK.shape[1])
    with torch.autocast(query_BTHK.device.type, enabled=False):
        query, wide, memory = _widened(query_BTHK, writes, memory_BHKV)
        q, k, v = (in_chunks(x, size) for x in (query, wide.key_BTHK, wide.value_BTHV))
        log_decay, rate = (in_chunks(x.unsqueeze(3), size) for x in wide[2:])
        fresh, ratio = decays(log_decay, starts_BT)  # g and D
        rated = rate * k
        inverse = inverse_of_unit_triangle((rated @ k.mT * ratio).tril(-1))
        own, of_memory = inverse @ (rate * v), inverse @ (fresh * rated)  # U = own - of_memory M
        kept_keys = (ratio[..., -1, :, None] * k).mT
        through = torch.diag_embed(fresh[..., -1, :].expand(*k.shape[:3], k.shape[4]))
        through = through - kept_keys @ of_memory
        memories, memory = _carried(memory, through, kept_keys @ own)
        y = (fresh * q) @ memories + (q @ k.mT * ratio) @ (own - of_memory @ memories)
    return y.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :n_tokens], memory


def _widened(query: Tensor, writes: Writes, memory: Tensor) -> tuple[Tensor, Writes, Tensor]:
    """All in one dtype, float32 or wider: errors of a recurrence add up."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.to(dtype), Writes(*(x.to(dtype) for x in writes)), memory.to(dtype)


def _chunk_size(n_tokens: int) -> int:
    size = _BASE
    while size < min(n_tokens, CHUNK):
        size *= 2
    return size


def _carried(memory: Tensor, through: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """M before each chunk and after the last: M' = through M + written."""
    memories = []
    for chunk in range(through.shape[2]):
        memories.append(memory)
        memory = through[:, :, chunk] @ memory + written[:, :, chunk]
    return torch.stack(memories, 2), memory


def inverse_of_unit_triangle(low: Tensor) -> Tensor:
    """(I + low)^-1 of strictly lower triangles, ... x C x C, by blocks as in substitution."""
    inverse: Tensor = _Inverse.apply(low)  # type: ignore[no-untyped-call]
    return inverse


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor) -> Tensor:
        """X; the blocks on the diagonal by powers, then pairs of blocks, larger and larger.

        (I + l)^-1 = (I - l) (I + l^2) (I + l^4) ...;   X_21 = -X_22 low_21 X_11
        """
        blocks = _diagonal_blocks(low, _BASE)
        inverse = torch.eye(_BASE, dtype=low.dtype, device=low.device) - blocks
        power, exponent = blocks, 2
        while exponent < _BASE:
            power = power @ power
            inverse, exponent = inverse + inverse @ power, 2 * exponent
        while inverse.shape[-1] < low.shape[-1]:
            size = inverse.shape[-1]
            between = _diagonal_blocks(low, 2 * size)[:, size:, :size]
            first, second = inverse.unflatten(0, (-1, 2)).unbind(1)
            inverse = torch.zeros(
                len(first), 2 * size, 2 * size, dtype=low.dtype, device=low.device
            )
            inverse[:, :size, :size], inverse[:, size:, size:] = first, second
            inverse[:, size:, :size] = -(second @ between @ first)
        inverse = inverse.view(low.shape)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """-X^T dX X^T, below the diagonal."""
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ grads[0] @ inverse.mT).tril(-1)


def _diagonal_blocks(x: Tensor, size: int) -> Tensor:
    """M x size x size, those on the diagonals, one matrix after the other."""
    n_blocks = x.shape[-1] // size
    grid = x.reshape(-1, n_blocks, size, n_blocks, size)
    return grid.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, size, size)


BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": reference,
    "chunked": chunked,
}
