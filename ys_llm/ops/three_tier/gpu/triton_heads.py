"""Experimental, Triton: steps for heads that fit into one program each; no program waits.

One program holds one head's block of the state controller and a tile of batch rows, and loops
over the steps of a window: matmul, LayerNorm, store; h never leaves it. LN takes its statistics
over a head, so programs are independent. Imported only where a kernel is about to run.

Operands have the controller's dtype; sums, statistics and all that is stored have that of `pre`.
Shapes as in `window_steps.py`, H heads of width P, columns past P and rows past
the batch are masked.
"""

import triton
import triton.language as tl

from ys_llm.ops.three_tier import types as tiers

EPS = tl.constexpr(tiers.EPS)


@triton.jit
def matmul(x, matrix, WIDEN: tl.constexpr):
    """x @ matrix with x rounded to the matrix's dtype; sums in float32, of float64 in float64.

    WIDEN: widen the rounded values to float32, for the same sum: Triton's interpreter mistakes
    bfloat16 for integers in tl.dot.
    """
    x = x.to(matrix.dtype)
    if WIDEN:
        x, matrix = x.to(tl.float32), matrix.to(tl.float32)
    return tl.dot(x, matrix, input_precision="ieee")


@triton.jit(do_not_specialize=["steps"])
def forward(
    pre_TBS,  # in: the drive and what the summaries add; out: the LayerNorm's input
    h_TBS,
    mean_TBH,
    rstd_TBH,
    before_BS,  # h before the first of these steps
    controller_HPP,
    gain_S,
    bias_S,
    keep_TB,  # 0 where a document starts, else 1; read only if MASKED
    steps,
    batch_size,
    width,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    MASKED: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """h_t = LN(keep_t h_{t-1} A + pre_t) for one head and one tile of rows."""
    head, n_heads = tl.program_id(0), tl.num_programs(0)
    rows, columns = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    in_rows, in_columns = rows < batch_size, columns < width
    here = in_rows[:, None] & in_columns[None, :]
    state = n_heads * width
    at = rows[:, None] * state + head * width + columns[None, :]
    square = columns[:, None] * width + columns[None, :]
    inside = in_columns[:, None] & in_columns[None, :]
    controller = tl.load(controller_HPP + head * width * width + square, mask=inside, other=0.0)
    gain = tl.load(gain_S + head * width + columns, mask=in_columns, other=0.0)
    bias = tl.load(bias_S + head * width + columns, mask=in_columns, other=0.0)
    h = tl.load(before_BS + at, mask=here, other=0.0)
    ahead = tl.load(pre_TBS + at, mask=here, other=0.0)
    wide, narrow = tl.zeros([], tl.int64), rows * n_heads + head
    for t in range(steps):
        addend = ahead
        # Loaded one step early, so that the load overlaps with this step's matmul.
        on = tl.minimum(t + 1, steps - 1).to(tl.int64) * batch_size * state
        ahead = tl.load(pre_TBS + on + at, mask=here, other=0.0)
        if MASKED:
            h *= tl.load(keep_TB + t * batch_size + rows, mask=in_rows, other=0.0)[:, None]
        pre = addend + matmul(h, controller, WIDEN)
        mean = tl.sum(pre, 1) / width
        centred = tl.where(here, pre - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + EPS)
        h = centred * rstd[:, None] * gain[None, :] + bias[None, :]
        tl.store(pre_TBS + wide + at, pre, mask=here)
        tl.store(h_TBS + wide + at, h, mask=here)
        tl.store(mean_TBH + narrow, mean, mask=in_rows)
        tl.store(rstd_TBH + narrow, rstd, mask=in_rows)
        wide += batch_size * state
        narrow += batch_size * n_heads


@triton.jit(do_not_specialize=["steps"])
def backward(
    d_h_TBS,  # in: the gradient from outside; out: the full gradient of h
    d_pre_TBS,
    pre_TBS,
    mean_TBH,
    rstd_TBH,
    after_BS,  # keep d_pre of the step after the last of these: 0 where there is none
    controller_HPP,
    gain_S,
    keep_TB,
    steps,
    batch_size,
    width,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    MASKED: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """dh_t += keep_{t+1} dpre_{t+1} A^T;  dpre_t = LN'(dh_t), from the last step to the first."""
    head, n_heads = tl.program_id(0), tl.num_programs(0)
    rows, columns = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    in_rows, in_columns = rows < batch_size, columns < width
    here = in_rows[:, None] & in_columns[None, :]
    state = n_heads * width
    at = rows[:, None] * state + head * width + columns[None, :]
    square = columns[:, None] * width + columns[None, :]
    inside = in_columns[:, None] & in_columns[None, :]
    controller = tl.load(controller_HPP + head * width * width + square, mask=inside, other=0.0)
    back = tl.trans(controller)
    gain = tl.load(gain_S + head * width + columns, mask=in_columns, other=0.0)
    d_after = tl.load(after_BS + at, mask=here, other=0.0)
    for i in range(steps):
        t = (steps - 1 - i).to(tl.int64)
        wide, narrow = t * batch_size * state + at, t * batch_size * n_heads + rows * n_heads + head
        # These loads wait for nothing that this step computes.
        d_h = tl.load(d_h_TBS + wide, mask=here, other=0.0)
        pre = tl.load(pre_TBS + wide, mask=here, other=0.0)
        mean = tl.load(mean_TBH + narrow, mask=in_rows, other=0.0)
        rstd = tl.load(rstd_TBH + narrow, mask=in_rows, other=0.0)
        d_h += matmul(d_after, back, WIDEN)
        x_hat = tl.where(here, (pre - mean[:, None]) * rstd[:, None], 0.0)
        d_hat = d_h * gain[None, :]
        along = tl.sum(d_hat * x_hat, 1) / width
        d_pre = d_hat - (tl.sum(d_hat, 1) / width)[:, None] - x_hat * along[:, None]
        d_pre = tl.where(here, d_pre * rstd[:, None], 0.0)
        tl.store(d_h_TBS + wide, d_h, mask=here)
        tl.store(d_pre_TBS + wide, d_pre, mask=here)
        d_after = d_pre
        if MASKED:
            keep = tl.load(keep_TB + t * batch_size + rows, mask=in_rows, other=0.0)
            d_after *= keep[:, None]
