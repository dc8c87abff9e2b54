"""Cases of the three-tier recurrence; also for the tests of single backends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from support.op_cases import Case, leaf, tensors_in
from ys_llm.ops.three_tier.types import State, Summary, Weights


class Setting(NamedTuple):
    """A shape of the recurrence. Interval 0: no such tier; d_summary 0: as wide as the state."""

    d_state: int = 16
    d_summary: int = 0
    n_heads: int = 1
    shaper: bool = False
    summary_scale: bool = False
    drive_bias: bool = False
    shared_norm: bool = False
    gate: bool = False
    local_interval: int = 16
    global_interval: int = 64


BF16_ROWS = {"cpp": "bf16 in the loop"}  # `windowed` rounds no operand of its loop on a CPU
RECURRENCES = {
    "preset": Setting(shaper=True, shared_norm=True),
    "default": Setting(summary_scale=True, drive_bias=True),
    "heads-local": Setting(n_heads=2, summary_scale=True, local_interval=5, global_interval=0),
    "odd-periods": Setting(d_state=24, n_heads=3, shaper=True, local_interval=3, global_interval=7),
    "narrow-summaries": Setting(
        drive_bias=True, d_state=24, d_summary=12, n_heads=2, shaper=True, local_interval=5
    ),
    "gate": Setting(d_state=24, n_heads=3, summary_scale=True, gate=True, local_interval=5),
    "gate-default": Setting(d_summary=8, summary_scale=True, drive_bias=True, gate=True),
    "one-tier": Setting(shaper=True, local_interval=0, global_interval=64),
    "no-summaries": Setting(local_interval=0, global_interval=0),
    # Wide enough for oneDNN in `windowed` (gemm.ONEDNN_SMALLEST).
    "wide": Setting(d_state=136, d_summary=128, summary_scale=True, drive_bias=True),
}


def recurrence_weights(setting: Setting, dtype: torch.dtype) -> Weights:
    s, p = setting.d_state, setting.d_state // setting.n_heads
    r = setting.d_summary or s

    def matrix(*shape: int) -> Tensor:
        # Below 1 / sqrt(width), where narrow heads turn chaotic and magnify any rounding.
        return leaf(*shape, dtype=dtype, scale=0.6 * shape[-1] ** -0.5)

    def norm(width: int) -> tuple[Tensor, Tensor]:
        return leaf(width, dtype=dtype, scale=0.3, around=1.0), leaf(width, dtype=dtype, scale=0.3)

    gain, bias = norm(s)
    tiers = [
        Summary(
            *(matrix(s, r), matrix(s, r), matrix(r, s)),
            *((gain, bias) if setting.shared_norm else norm(r)),
            every,
        )
        if every
        else None
        for every in (setting.local_interval, setting.global_interval)
    ]
    return Weights(
        matrix(s, s) if setting.n_heads == 1 else matrix(setting.n_heads, p, p),
        gain,
        bias,
        matrix(s, s) if setting.shaper else None,
        leaf(s, dtype=dtype, scale=0.3) if setting.summary_scale else None,
        leaf(s, dtype=dtype, scale=0.3) if setting.drive_bias else None,
        leaf(s, dtype=dtype, scale=0.3) if setting.gate else None,
        *tiers,
    )


def recurrence_case(
    setting: Setting,
    length: int,
    *,
    position: int,
    with_state: bool,
    starts: bool,
    dtype: torch.dtype,
) -> Case:
    """`with_state`: the state before the first token is not 0; `starts`: documents start inside."""
    torch.manual_seed(length)
    weights = recurrence_weights(setting, dtype)
    scale = 1.0 if with_state else 0.0
    state = [leaf(3, setting.d_state, dtype=dtype, scale=scale) for _ in range(3)]
    drive_TBI = leaf(length, 3, setting.d_state * (1 + setting.gate), dtype=dtype)
    starts_TB = torch.rand(length, 3) < 0.1 if starts else None
    leaves = {id(tensor): tensor for tensor in tensors_in([drive_TBI, weights, state])}
    arguments = (drive_TBI, weights, State(*state, position))
    return Case(arguments, {"starts_TB": starts_TB}, list(leaves.values()))


def cases(length: int, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Half of the combinations with each recurrence, the other half at the next length."""
    choices = product(enumerate(RECURRENCES.items()), (0, 5), (False, True), (False, True))
    for (number, (name, setting)), position, with_state, starts in choices:
        if (number + length + position + with_state + starts) % 2:
            continue
        label = f"{name}, clock {position}, {with_state=}, {starts=}"
        case = recurrence_case(
            setting, length, position=position, with_state=with_state, starts=starts, dtype=dtype
        )
        yield label, case
