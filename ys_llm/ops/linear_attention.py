"""Linear attention with decay: a matrix a head, written under keys and read by queries.

    M_t = a_t M_{t-1} + phi(k_t)^T v_t        a_t = exp(log_decay_t)
    y_t = phi(q_t) M_t

H matrices M of F x V, in G groups: the H / G heads of one share its q and k, vectors of K numbers;
v and y have V. Of power p, phi(q) . phi(k) = (q . k)^p. With p = 1, phi is the identity and F = K;
with p = 2 it is all products of two, F = K (K + 1) / 2. Where a document starts, a_t is 0.
`memory_BHFV` is M before the first token; every backend returns y and M after the last.

Of C tokens after M, with g and D of `ops/chunks`,

    Y  = diag(g) phi(Q) M + (D o (Q K^T)^p) V
    M' = g_C M + phi(K)^T (diag(D_C) V)

`chunked` takes chunk after chunk, so that its cost grows with T alone; `parallel` takes all T as
one chunk. With p = 2 the backward pass computes phi again: it is far wider than q and k.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ys_llm.ops.chunks import decays

CHUNK = {1: 64, 2: 256}  # tokens, by power: the wider M is, the fewer of them should be kept
STEPWISE = 8  # fewer tokens than these are read one by one


class Writes(NamedTuple):
    """What each token writes: key, value and logarithm of the decay (<= 0)."""

    key_BTGK: Tensor
    value_BTHV: Tensor
    log_decay_BTH: Tensor


Attention = Callable[[Tensor, Writes, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]


def linear_attention(
    query_BTGK: Tensor, writes: Writes, memory_BHFV: Tensor, starts_BT: Tensor | None, power: int
) -> tuple[Tensor, Tensor]:
    """y_BTHV and the memory, in float32 or wider."""
    op = reference if query_BTGK.shape[1] < STEPWISE else chunked
    return op(query_BTGK, writes, memory_BHFV, starts_BT, power)


def reference(
    query_BTGK: Tensor, writes: Writes, memory_BHFV: Tensor, starts_BT: Tensor | None, power: int
) -> tuple[Tensor, Tensor]:
    """The equations, token by token."""
    with torch.autocast(query_BTGK.device.type, enabled=False):
        query, (key, value, log_decay), memory = _widened(query_BTGK, writes, memory_BHFV)
        n_groups = query.shape[2]
        decay = log_decay.exp()
        if starts_BT is not None:
            decay = decay.masked_fill(starts_BT.unsqueeze(2), 0)
        outputs, memory = [], _grouped(memory, n_groups)
        for t in range(query.shape[1]):
            k, q = (features(x[:, t, ..., None], power)[:, :, None] for x in (key, query))
            v = _grouped(value[:, t], n_groups).unsqueeze(3)
            memory = _grouped(decay[:, t], n_groups)[..., None, None] * memory + k @ v
            outputs.append((q.mT @ memory).squeeze(3).flatten(1, 2))
    return torch.stack(outputs, 1), memory.flatten(1, 2)


def parallel(
    query_BTGK: Tensor, writes: Writes, memory_BHFV: Tensor, starts_BT: Tensor | None, power: int
) -> tuple[Tensor, Tensor]:
    """As `reference`, in matmuls over all pairs of tokens."""
    return _by_chunks(query_BTGK, writes, memory_BHFV, (starts_BT, power, query_BTGK.shape[1]))


def chunked(
    query_BTGK: Tensor, writes: Writes, memory_BHFV: Tensor, starts_BT: Tensor | None, power: int
) -> tuple[Tensor, Tensor]:
    """As `reference`, in matmuls over chunks."""
    return _by_chunks(query_BTGK, writes, memory_BHFV, (starts_BT, power, CHUNK[power]))


def _by_chunks(
    query: Tensor, writes: Writes, memory: Tensor, how: tuple[Tensor | None, int, int]
) -> tuple[Tensor, Tensor]:
    """`how`: the starts, the power and the size of a chunk."""
    starts_BT, power, size = how
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        query, writes, memory = _widened(query, writes, memory)
        for first in range(0, query.shape[1], size):
            chunk = slice(first, first + size)
            starts = None if starts_BT is None else starts_BT[:, chunk]
            arguments = (query[:, chunk], *(x[:, chunk] for x in writes), starts)
            y, memory = _chunk(arguments, memory, power)
            outputs.append(y)
    return (torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]), memory


def _chunk(arguments: tuple[Any, ...], memory_BHFV: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """y_BCHV of one chunk, and the memory after it."""
    query_BCGK, key_BCGK, value_BCHV, log_decay_BCH, starts_BC = arguments
    n_groups = query_BCGK.shape[2]
    q, k = (x.permute(0, 2, 3, 1).contiguous() for x in (query_BCGK, key_BCGK))  # B x G x K x C
    v, memory = (_grouped(x, n_groups) for x in (value_BCHV.transpose(1, 2), memory_BHFV))
    left = decays(log_decay_BCH.transpose(1, 2)[:, :, None, :, None], starts_BC)
    fresh, ratio = (_grouped(x.squeeze(2), n_groups) for x in left)  # g and D
    y = ((q.mT @ k)[:, :, None] ** power * ratio) @ v
    if power == 1 or not _is_empty(memory):
        y = y + fresh * _again(power, _read, q, memory, power)
    written = _again(power, _written, k, ratio[..., -1, :, None] * v, power)
    memory = fresh[..., -1:, :] * memory + written
    return y.flatten(1, 2).transpose(1, 2), memory.flatten(1, 2)


def _read(q_BGKC: Tensor, memory: Tensor, power: int) -> Tensor:
    return _apart(features(q_BGKC, power).mT @ _wide(memory), memory)


def _written(k_BGKC: Tensor, values: Tensor, power: int) -> Tensor:
    return _apart(features(k_BGKC, power) @ _wide(values), values)


def _again(power: int, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The result; where phi is wide, the backward pass computes it again instead of keeping it."""
    if power == 1 or not torch.is_grad_enabled():
        return function(*arguments)
    y: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return y


def _is_empty(memory: Tensor) -> bool:
    """Whether nothing was written, as before the first token; a GPU would be waited for."""
    return memory.device.type == "cpu" and not memory.requires_grad and not bool(memory.any())


def _wide(x_BGRNV: Tensor) -> Tensor:
    """B x G x N x (R V): what the R heads of a group have in common is multiplied with all."""
    return x_BGRNV.transpose(2, 3).flatten(3)


def _apart(x: Tensor, like_BGRNV: Tensor) -> Tensor:
    """The inverse of `_wide`."""
    n_heads, n_values = like_BGRNV.shape[2], like_BGRNV.shape[4]
    apart: Tensor = x.unflatten(3, (n_heads, n_values)).transpose(2, 3)
    return apart


def _grouped(x_BHX: Tensor, n_groups: int) -> Tensor:
    """B x G x R x ...: the heads by their groups."""
    grouped: Tensor = x_BHX.unflatten(1, (n_groups, -1))
    return grouped


def _widened(query: Tensor, writes: Writes, memory: Tensor) -> tuple[Tensor, Writes, Tensor]:
    """All in one dtype, float32 or wider: errors of a recurrence add up."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.to(dtype), Writes(*(x.to(dtype) for x in writes)), memory.to(dtype)


def n_features(n_keys: int, power: int) -> int:
    """F, the rows of the memory."""
    return n_keys if power == 1 else n_keys * (n_keys + 1) // 2


def features(x_KC: Tensor, power: int) -> Tensor:
    """phi, ... x F x C, of C vectors: x_a x_b for a <= b, row by row, times sqrt(2) where a < b."""
    if power == 1:
        return x_KC
    products: Tensor = _Products.apply(x_KC)  # type: ignore[no-untyped-call]
    return products


class _Products(torch.autograd.Function):
    """One operation a row of the triangle: to gather both factors would take longer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """phi(x)."""
        ctx.save_for_backward(x)
        out = x.new_empty(*x.shape[:-2], n_features(x.shape[-2], 2), x.shape[-1])
        scaled = x * 2**0.5
        for a, row in enumerate(_rows(out, x.shape[-2])):
            torch.mul(x[..., a : a + 1, :], scaled[..., a:, :], out=row)
            torch.mul(x[..., a, :], x[..., a, :], out=row[..., 0, :])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """dx_a = 2 d_aa x_a + sqrt(2) sum_b d_ab x_b, b on either side of a."""
        (x,) = ctx.saved_tensors
        d_x, scaled = torch.zeros_like(x), x * 2**0.5
        for a, row in enumerate(_rows(grads[0], x.shape[-2])):
            d_x[..., a, :] += 2 * row[..., 0, :] * x[..., a, :]
            d_x[..., a, :] += (row[..., 1:, :] * scaled[..., a + 1 :, :]).sum(-2)
            d_x[..., a + 1 :, :].addcmul_(row[..., 1:, :], scaled[..., a : a + 1, :])
        return d_x


def _rows(triangle: Tensor, n_keys: int) -> tuple[Tensor, ...]:
    """The rows of an upper triangle that is stored row by row."""
    rows: tuple[Tensor, ...] = triangle.split(list(range(n_keys, 0, -1)), -2)
    return rows


BACKENDS: dict[str, Attention] = {
    "reference": reference,
    "parallel": parallel,
    "chunked": chunked,
}
