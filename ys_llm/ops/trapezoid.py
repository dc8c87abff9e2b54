"""Linear attention by the trapezoidal rule: each token's write counts at it and at the next one.

    M_t = a_t (M_{t-1} + c_t K_{t-1}^T V_{t-1}) + b_t K_t^T V_t      a_t = exp(log_decay_t)
    Y_t = Q_t M_t

One matrix M of F x V for each head; Q_t and K_t are R x F, V_t is R x V: a token writes and reads R
rows. Where a document starts, a_t is 0. `memory` is M before the first token, with the latest K
and V, whose second half is still to be written; every backend returns Y and the memory after the
last token.

Of C tokens, with g and D of `ops/chunks` and M* = M + c_1 K_0^T V_0,

    Y  = diag(g) Q M* + (D o W o Q K^T) V       W_ts = b_s + c_{s+1} for s < t, b_t for s = t
    M' = g_C M* + K^T (diag(D_C o W_C) V)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ys_llm.ops.chunks import decays

CHUNK = 64  # rows of a chunk: fewer tokens, the more rows each writes
STEPWISE = 8  # fewer tokens than these are read one by one


class Steps(NamedTuple):
    """Of each token: log a (<= 0), and c and b, the weights of the write before and its own."""

    log_decay_BTH: Tensor
    earlier_BTH: Tensor
    own_BTH: Tensor


class Memory(NamedTuple):
    """M, and what the latest token wrote, half of which the next one adds."""

    matrix_BHFV: Tensor
    key_BHRF: Tensor
    value_BHRV: Tensor


class Rows(NamedTuple):
    """Q, K and V of each token, R rows a head."""

    query_BTHRF: Tensor
    key_BTHRF: Tensor
    value_BTHRV: Tensor


Result = tuple[Tensor, Memory]


def trapezoid(rows: Rows, steps: Steps, memory: Memory, starts_BT: Tensor | None) -> Result:
    """Y_BTHRV and the memory, in float32 or wider."""
    op = reference if rows.key_BTHRF.shape[1] < STEPWISE else chunked
    return op(rows, steps, memory, starts_BT)


def reference(rows: Rows, steps: Steps, memory: Memory, starts_BT: Tensor | None) -> Result:
    """The equations, token by token."""
    with torch.autocast(rows.key_BTHRF.device.type, enabled=False):
        rows, steps, (matrix, key, value) = _widened(rows, steps, memory)
        decay_BTH, outputs = steps.log_decay_BTH.exp(), []
        if starts_BT is not None:
            decay_BTH = decay_BTH.masked_fill(starts_BT.unsqueeze(2), 0)
        for t in range(decay_BTH.shape[1]):
            a, c, b = (x[:, t, :, None, None] for x in (decay_BTH, *steps[1:]))
            matrix = a * (matrix + key.mT @ (c * value))
            query, key, value = (x[:, t] for x in rows)
            matrix = matrix + key.mT @ (b * value)
            outputs.append(query @ matrix)
    return torch.stack(outputs, 1), Memory(matrix, key, value)


def parallel(rows: Rows, steps: Steps, memory: Memory, starts_BT: Tensor | None) -> Result:
    """As `reference`, in matmuls over all pairs of tokens."""
    return _by_chunks(rows, steps, memory, starts_BT, rows.key_BTHRF.shape[1])


def chunked(rows: Rows, steps: Steps, memory: Memory, starts_BT: Tensor | None) -> Result:
    """As `reference`, in matmuls over chunks."""
    return _by_chunks(rows, steps, memory, starts_BT, max(1, CHUNK // rows.key_BTHRF.shape[3]))


def _by_chunks(
    rows: Rows, steps: Steps, memory: Memory, starts_BT: Tensor | None, size: int
) -> Result:
    outputs = []
    with torch.autocast(rows.key_BTHRF.device.type, enabled=False):
        rows, steps, memory = _widened(rows, steps, memory)
        for first in range(0, rows.key_BTHRF.shape[1], size):
            part = slice(first, first + size)
            starts = None if starts_BT is None else starts_BT[:, part]
            ours = Rows(*(x[:, part] for x in rows)), Steps(*(x[:, part] for x in steps))
            y, memory = _chunk(*ours, memory, starts)
            outputs.append(y)
    return (torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]), memory


def _chunk(rows: Rows, steps: Steps, memory: Memory, starts_BC: Tensor | None) -> Result:
    """Y_BCHRV of one chunk, and the memory after it."""
    n_rows = rows.key_BTHRF.shape[3]
    q, k, v = (x.transpose(1, 2).flatten(2, 3) for x in rows)  # B x H x (C R) x F or V
    log_decay, earlier, own = (x.transpose(1, 2) for x in steps)
    left = decays(log_decay[:, :, None, :, None], starts_BC)
    fresh, ratio = (x.squeeze(2) for x in left)  # g and D
    weighted = ratio * _weights(earlier, own)
    if n_rows > 1:
        fresh = fresh.repeat_interleave(n_rows, 2)
        weighted = weighted.repeat_interleave(n_rows, 2).repeat_interleave(n_rows, 3)
    first_BH11 = earlier[:, :, :1, None]
    matrix = memory.matrix_BHFV + memory.key_BHRF.mT @ (first_BH11 * memory.value_BHRV)
    y = (q @ k.mT * weighted) @ v + fresh * (q @ matrix)
    matrix = fresh[:, :, -1:] * matrix + k.mT @ (weighted[:, :, -1, :, None] * v)
    y_BCHRV = y.unflatten(2, (-1, n_rows)).transpose(1, 2)
    return y_BCHRV, Memory(matrix, rows.key_BTHRF[:, -1], rows.value_BTHRV[:, -1])


def _weights(earlier_BHC: Tensor, own_BHC: Tensor) -> Tensor:
    """W, B x H x C x C, where s <= t; its diagonal does not read the next token's c."""
    later_BHC = own_BHC + torch.nn.functional.pad(earlier_BHC[:, :, 1:], (0, 1))
    size = own_BHC.shape[2]
    diagonal = torch.eye(size, dtype=torch.bool, device=own_BHC.device)
    return own_BHC.unsqueeze(2).where(diagonal, later_BHC.unsqueeze(2))


def _widened(rows: Rows, steps: Steps, memory: Memory) -> tuple[Rows, Steps, Memory]:
    """All in one dtype, float32 or wider: errors of a recurrence add up."""
    dtype = torch.promote_types(rows.key_BTHRF.dtype, torch.float32)
    return (
        Rows(*(x.to(dtype) for x in rows)),
        Steps(*(x.to(dtype) for x in steps)),
        Memory(*(x.to(dtype) for x in memory)),
    )


BACKENDS: dict[str, Callable[[Rows, Steps, Memory, Tensor | None], Result]] = {
    "reference": reference,
    "parallel": parallel,
    "chunked": chunked,
}
