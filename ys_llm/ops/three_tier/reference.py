"""The three-tier recurrence as its equation, step by step: what every backend is tested against.

    f_t = tanh(gate_t + gate_bias), or 1 where there is no gate_bias
    h_t = LN((f_t * h_{t-1}) state_controller + drive_t + drive_bias + summary_scale * (L + G))
    y_t = h_t output_shaper                                  (y_t = h_t without an output shaper)
    if t mod E_G == E_G - 1:  G <- LN(G A_G + y_t B_G) C_G   A, B, C of the global summary
    if t mod E_L == E_L - 1:  L <- LN(L A_L + y_t B_L) C_L   A, B, C of the local summary

Row vectors. h, L and G start at 0. An update fires after output t and acts from t + 1 on. LN takes
its statistics over each head. Where `starts_TB` marks the first token of a document, h, L and G are
0 before it; the clock t continues. LN makes the recurrence non-linear in h, so it is sequential in
time.

Source: Hyrkas, "Why Snakes" v0.3 (2024). The mixer computes the drive, x_t in_proj, and the gate,
x_t state_gate: one matmul, side by side in `drive_TBS`, which is 2 S wide then.
"""

from typing import cast

import torch
from torch import Tensor

from ys_llm.ops.precision import Precision
from ys_llm.ops.three_tier.types import EPS, State, Summary, Weights


def reference(
    drive_TBS: Tensor,
    weights: Weights,
    state: State,
    *,
    starts_TB: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, State]:
    """Every h (T x B x S) and the state after the last token.

    `state.position` is one clock for all rows, or one per row (batched generation).
    `precision="bf16"` rounds matmul operands to bfloat16 and nothing else.
    """
    h, local, glob, position = state
    n_heads, outputs = weights.n_heads, []
    drive_TBS, gate_TBS = drive_and_gate(drive_TBS, weights)
    for step, drive_BS in enumerate(drive_TBS):
        t = position + step
        if starts_TB is not None:
            keep_B1 = (~starts_TB[step]).unsqueeze(1).to(h.dtype)
            h, local, glob = h * keep_B1, local * keep_B1, glob * keep_B1
        kept = h if gate_TBS is None else h * gate_TBS[step]
        pre = _matmul(kept, weights.state_controller, precision) + drive_BS
        pre = pre + (
            local + glob
            if weights.summary_scale is None
            else weights.summary_scale * (local + glob)
        )
        pre = pre if weights.drive_bias is None else pre + weights.drive_bias
        h = _layer_norm(pre, weights.gain, weights.bias, n_heads)
        y = h if weights.output_shaper is None else _matmul(h, weights.output_shaper, precision)
        glob = _updated(glob, y, weights.global_summary, t, n_heads, precision)
        local = _updated(local, y, weights.local_summary, t, n_heads, precision)
        outputs.append(h)
    return torch.stack(outputs), State(h, local, glob, position + len(outputs))


def drive_and_gate(drive_TBS: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """The drive, and f where the state is gated."""
    if weights.gate_bias is None:
        return drive_TBS, None
    drive_TBS, gate_TBS = drive_TBS.chunk(2, -1)
    return drive_TBS, torch.tanh(gate_TBS + weights.gate_bias)


def _updated(
    old_BS: Tensor,
    y_BS: Tensor,
    summary: Summary | None,
    t: int | Tensor,
    n_heads: int,
    precision: Precision,
) -> Tensor:
    """LN(old A + y B) C in the rows where an interval ends at t, else the old summary."""
    if summary is None:
        return old_BS
    is_due_B = torch.as_tensor(t % summary.every == summary.every - 1)
    if not is_due_B.any():
        return old_BS
    pre = _matmul(old_BS, summary.state_controller, precision)
    pre = pre + _matmul(y_BS, summary.input_influencer, precision)
    normed = _layer_norm(pre, summary.gain, summary.bias, n_heads)
    new_BS = _matmul(normed, summary.output_shaper, precision)
    return torch.where(is_due_B.view(-1, 1).to(new_BS.device), new_BS, old_BS)


def _matmul(x_BS: Tensor, matrix: Tensor, precision: Precision) -> Tensor:
    """x @ matrix, block-diagonal where the matrix has three dimensions (heads)."""
    if precision == "bf16":
        x_BS, matrix = x_BS.bfloat16().float(), matrix.bfloat16().float()
    if matrix.dim() == 2:
        return x_BS @ matrix
    x_heads = x_BS.unflatten(-1, (len(matrix), -1)).transpose(-3, -2)
    return cast(Tensor, (x_heads @ matrix).transpose(-3, -2).flatten(-2))


def _layer_norm(x_BS: Tensor, gain_S: Tensor, bias_S: Tensor, n_heads: int) -> Tensor:
    """LayerNorm with statistics over each head."""
    width = x_BS.shape[-1] // n_heads
    x_hat = torch.nn.functional.layer_norm(x_BS.unflatten(-1, (n_heads, width)), [width], eps=EPS)
    return x_hat.flatten(-2) * gain_S + bias_S
