"""Experimental, Triton: steps for wide heads, the columns of one head over many programs.

LN needs statistics over columns that other programs compute. *Deferred* LN: each program publishes
its tile before normalisation, with the tile's share of the statistics, and each program that reads
the tile normalises it. So one wait a step is enough: for the programs of the same head and rows.
Forward, tile i of n_i columns having the mean m_i:

    published = pre - m_i        shares m_i and q_i = sum((pre - m_i)^2)
    mean = sum(n_i m_i) / P      P var = sum(q_i + n_i (m_i - mean)^2)      no difference of squares
    h    = (published + m_i - mean) rstd gain + bias

Backward, with d = dh gain, the tile's mean of d being m_i:

    published = d - m_i and x_hat                 shares m_i and q_i = sum(d x_hat)
    dpre = (published + m_i - mean - x_hat sum(q_i) / P) rstd

Published tiles have the operands' dtype, and are rounded to it only after their mean has been
subtracted: a mean far above the spread costs no digits. Two slots alternate, because the wait
lets a program be one step ahead of the slowest reader, and no more.

A launch takes all steps of a window, with a barrier between them: all programs must be resident at
once, which a cooperative launch ensures. Or it takes one step, and its end is the barrier: for more
programs than the device can hold, and for the interpreter, which runs them one after the other.
Imported only where a kernel is about to run.
"""

import triton
import triton.language as tl

from ys_llm.ops.three_tier import types as tiers
from ys_llm.ops.three_tier.gpu.triton_heads import matmul

EPS = tl.constexpr(tiers.EPS)


@triton.jit
def _wait(counter, TILES: tl.constexpr):
    """Return once all programs of the group have arrived: the top bit flips with the last of them.

    Their stores before it are seen by loads after it that go through L2.
    """
    tl.debug_barrier()
    share = tl.where(tl.program_id(0) % TILES == 0, 0x80000000 - (TILES - 1), 1).to(tl.uint32)
    before = tl.atomic_add(counter, share, sem="release")
    flipped = False
    while not flipped:
        now = tl.atomic_add(counter, share * 0, sem="acquire")
        flipped = ((before ^ now) & 0x80000000) != 0
    tl.debug_barrier()


@triton.jit
def _place(batch_size, WIDTH: tl.constexpr, N_HEADS: tl.constexpr, ROWS: tl.constexpr,
           COLUMNS: tl.constexpr):  # fmt: skip
    """This program's rows, head, columns within the head, and its tile's number among all heads'.

    Programs of the same rows and head are neighbours and form a group; groups are independent.
    """
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    group, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    rows = (group // N_HEADS) * ROWS + tl.arange(0, ROWS)
    head = group % N_HEADS
    return rows, head, tile * COLUMNS + tl.arange(0, COLUMNS), head * TILES + tile


@triton.jit
def _shares(means_BN, sums_BN, rows, in_rows, head, WIDTH: tl.constexpr, N_HEADS: tl.constexpr,
            COLUMNS: tl.constexpr):  # fmt: skip
    """Means and sums of a head's tiles (rows x tiles), and how many columns each tile has.

    `.cg` goes through L2, where other programs' stores arrive; L1 may hold an older line.
    """
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    tiles = tl.arange(0, triton.next_power_of_2(TILES))
    here = in_rows[:, None] & (tiles < TILES)[None, :]
    at = rows[:, None] * (N_HEADS * TILES) + head * TILES + tiles[None, :]
    counts = tl.minimum(tl.maximum(WIDTH - tiles * COLUMNS, 0), COLUMNS)[None, :]
    means = tl.load(means_BN + at, mask=here, other=0.0, cache_modifier=".cg")
    return means, tl.load(sums_BN + at, mask=here, other=0.0, cache_modifier=".cg"), counts


@triton.jit
def _forward_tile(
    t, tensors, batch_size, WIDTH: tl.constexpr, N_HEADS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    """One tile of pre_t += keep_t h_{t-1} A; h_{t-1} is `before` at the FIRST step."""
    pre_TBS, before_BS, published_2BS, means_2BN, sums_2BN, matrix_HPP, gain_S, bias_S, keep_TB = (
        tensors
    )
    rows, head, columns, own = _place(batch_size, WIDTH, N_HEADS, ROWS, COLUMNS)
    in_rows, in_columns = rows < batch_size, columns < WIDTH
    here = in_rows[:, None] & in_columns[None, :]
    STATE: tl.constexpr = N_HEADS * WIDTH
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    N: tl.constexpr = N_HEADS * TILES
    at = rows[:, None] * STATE + head * WIDTH + columns[None, :]
    step = pre_TBS + t * (batch_size.to(tl.int64) * STATE)
    old, new = ((t + 1) % 2) * batch_size, (t % 2) * batch_size
    pre = tl.load(step + at, mask=here, other=0.0)
    keep = tl.full([ROWS], 1.0, pre.dtype)
    if MASKED:
        keep = tl.load(keep_TB + t * batch_size + rows, mask=in_rows, other=0.0)
    if not FIRST:
        m, q, n = _shares(means_2BN + old * N, sums_2BN + old * N, rows, in_rows, head,
                          WIDTH, N_HEADS, COLUMNS)  # fmt: skip
        mean = tl.sum(m * n, 1) / WIDTH
        apart = m - mean[:, None]
        rstd = 1.0 / tl.sqrt(tl.sum(q + n * apart * apart, 1) / WIDTH + EPS)
    for k in range(0, WIDTH, DEPTH):
        deep = k + tl.arange(0, DEPTH)
        in_deep = deep < WIDTH
        read = in_rows[:, None] & in_deep[None, :]
        source = rows[:, None] * STATE + head * WIDTH + deep[None, :]
        if FIRST:
            h = tl.load(before_BS + source, mask=read, other=0.0)
        else:
            h = tl.load(published_2BS + old * STATE + source, mask=read, other=0.0,
                        cache_modifier=".cg").to(pre.dtype)  # fmt: skip
            owner = (old + rows)[:, None] * N + head * TILES + (deep // COLUMNS)[None, :]
            near = tl.load(means_2BN + owner, mask=read, other=0.0, cache_modifier=".cg")
            gain = tl.load(gain_S + head * WIDTH + deep, mask=in_deep, other=0.0)
            bias = tl.load(bias_S + head * WIDTH + deep, mask=in_deep, other=0.0)
            h = (h + (near - mean[:, None])) * rstd[:, None] * gain[None, :] + bias[None, :]
        block = matrix_HPP + (head * WIDTH + deep[:, None]) * WIDTH + columns[None, :]
        matrix = tl.load(block, mask=in_deep[:, None] & in_columns[None, :], other=0.0)
        pre += matmul(h * keep[:, None], matrix, WIDEN)
    tl.store(step + at, pre, mask=here)
    own_mean = tl.sum(tl.where(here, pre, 0.0), 1) / tl.sum(in_columns.to(pre.dtype), 0)
    centred = tl.where(here, pre - own_mean[:, None], 0.0)
    rounded = centred.to(published_2BS.dtype.element_ty)
    tl.store(published_2BS + new * STATE + at, rounded, mask=here)
    tl.store(means_2BN + (new + rows) * N + own, own_mean, mask=in_rows)
    tl.store(sums_2BN + (new + rows) * N + own, tl.sum(centred * centred, 1), mask=in_rows)


@triton.jit
def _backward_tile(
    t, tensors, batch_size, WIDTH: tl.constexpr, N_HEADS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    """One tile of dh_t += keep_{t+1} dpre_{t+1} A^T; at the FIRST step that factor is `after`."""
    d_h_TBS, pre_TBS, mean_TBH, rstd_TBH, after_BS = tensors[:5]
    published_22BS, means_2BN, sums_2BN, matrix_HPP, gain_S, keep_TB = tensors[5:]
    rows, head, columns, own = _place(batch_size, WIDTH, N_HEADS, ROWS, COLUMNS)
    in_rows, in_columns = rows < batch_size, columns < WIDTH
    here = in_rows[:, None] & in_columns[None, :]
    STATE: tl.constexpr = N_HEADS * WIDTH
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    N: tl.constexpr = N_HEADS * TILES
    at = rows[:, None] * STATE + head * WIDTH + columns[None, :]
    step, now = t * (batch_size.to(tl.int64) * STATE), (t * batch_size + rows) * N_HEADS + head
    old, new = ((t + 1) % 2) * batch_size, (t % 2) * batch_size
    hats_2BS = published_22BS + 2 * batch_size * STATE
    d_h = tl.load(d_h_TBS + step + at, mask=here, other=0.0)
    if not FIRST:
        m, q, n = _shares(means_2BN + old * N, sums_2BN + old * N, rows, in_rows, head,
                          WIDTH, N_HEADS, COLUMNS)  # fmt: skip
        d_mean, along = tl.sum(m * n, 1) / WIDTH, tl.sum(q, 1) / WIDTH
        scale = tl.load(rstd_TBH + now + batch_size * N_HEADS, mask=in_rows, other=0.0)
        if MASKED:
            scale *= tl.load(keep_TB + (t + 1) * batch_size + rows, mask=in_rows, other=0.0)
    for k in range(0, WIDTH, DEPTH):
        deep = k + tl.arange(0, DEPTH)
        in_deep = deep < WIDTH
        read = in_rows[:, None] & in_deep[None, :]
        source = rows[:, None] * STATE + head * WIDTH + deep[None, :]
        if FIRST:
            d_pre = tl.load(after_BS + source, mask=read, other=0.0)
        else:
            d_hat = tl.load(published_22BS + old * STATE + source, mask=read, other=0.0,
                            cache_modifier=".cg").to(d_h.dtype)  # fmt: skip
            x_hat = tl.load(hats_2BS + old * STATE + source, mask=read, other=0.0,
                            cache_modifier=".cg").to(d_h.dtype)  # fmt: skip
            owner = (old + rows)[:, None] * N + head * TILES + (deep // COLUMNS)[None, :]
            near = tl.load(means_2BN + owner, mask=read, other=0.0, cache_modifier=".cg")
            d_pre = d_hat + (near - d_mean[:, None]) - x_hat * along[:, None]
            d_pre *= scale[:, None]
        block = matrix_HPP + (head * WIDTH + columns[:, None]) * WIDTH + deep[None, :]
        matrix = tl.load(block, mask=in_columns[:, None] & in_deep[None, :], other=0.0)
        d_h += matmul(d_pre, tl.trans(matrix), WIDEN)
    tl.store(d_h_TBS + step + at, d_h, mask=here)
    mean = tl.load(mean_TBH + now, mask=in_rows, other=0.0)
    rstd = tl.load(rstd_TBH + now, mask=in_rows, other=0.0)
    own_hat = (tl.load(pre_TBS + step + at, mask=here, other=0.0) - mean[:, None]) * rstd[:, None]
    own_d = d_h * tl.load(gain_S + head * WIDTH + columns, mask=in_columns, other=0.0)[None, :]
    own_mean = tl.sum(tl.where(here, own_d, 0.0), 1) / tl.sum(in_columns.to(d_h.dtype), 0)
    rounded = published_22BS.dtype.element_ty
    tl.store(published_22BS + new * STATE + at, (own_d - own_mean[:, None]).to(rounded), mask=here)
    tl.store(hats_2BS + new * STATE + at, own_hat.to(rounded), mask=here)
    tl.store(means_2BN + (new + rows) * N + own, own_mean, mask=in_rows)
    own_sum = tl.sum(tl.where(here, own_d * own_hat, 0.0), 1)
    tl.store(sums_2BN + (new + rows) * N + own, own_sum, mask=in_rows)


@triton.jit(do_not_specialize=["begin", "end", "batch_size"])
def forward(
    begin, end, counters, pre_TBS, before_BS, published_2BS, means_2BN, sums_2BN, matrix_HPP,
    gain_S, bias_S, keep_TB, batch_size, WIDTH: tl.constexpr, N_HEADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MASKED: tl.constexpr,
    WIDEN: tl.constexpr, BEGINS: tl.constexpr,
):  # fmt: skip
    """Steps begin to end - 1 of a window; BEGINS: the first of them is the window's own first."""
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    tensors = (
        pre_TBS, before_BS, published_2BS, means_2BN, sums_2BN, matrix_HPP, gain_S, bias_S, keep_TB
    )  # fmt: skip
    if BEGINS:
        _forward_tile(begin, tensors, batch_size, WIDTH, N_HEADS, ROWS, COLUMNS, DEPTH, MASKED,
                      WIDEN, True)  # fmt: skip
    for t in range(begin + BEGINS, end):
        if t > begin:
            _wait(counters + tl.program_id(0) // TILES, TILES)
        _forward_tile(t, tensors, batch_size, WIDTH, N_HEADS, ROWS, COLUMNS, DEPTH, MASKED,
                      WIDEN, False)  # fmt: skip


@triton.jit(do_not_specialize=["begin", "end", "batch_size"])
def backward(
    begin, end, counters, d_h_TBS, pre_TBS, mean_TBH, rstd_TBH, after_BS, published_22BS, means_2BN,
    sums_2BN, matrix_HPP, gain_S, keep_TB, batch_size, WIDTH: tl.constexpr, N_HEADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MASKED: tl.constexpr,
    WIDEN: tl.constexpr, BEGINS: tl.constexpr,
):  # fmt: skip
    """Steps end - 1 down to begin of a window; BEGINS: step end - 1 is the window's own last."""
    TILES: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    tensors = (
        d_h_TBS, pre_TBS, mean_TBH, rstd_TBH, after_BS, published_22BS, means_2BN, sums_2BN,
        matrix_HPP, gain_S, keep_TB,
    )  # fmt: skip
    if BEGINS:
        _backward_tile(end - 1, tensors, batch_size, WIDTH, N_HEADS, ROWS, COLUMNS, DEPTH, MASKED,
                       WIDEN, True)  # fmt: skip
    for done in range(BEGINS, end - begin):
        if done > 0:
            _wait(counters + tl.program_id(0) // TILES, TILES)
        _backward_tile(end - 1 - done, tensors, batch_size, WIDTH, N_HEADS, ROWS, COLUMNS, DEPTH,
                       MASKED, WIDEN, False)  # fmt: skip
