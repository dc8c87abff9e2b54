"""How far a backend of an op may be from its reference: one table, and how an error is measured.

The probe that chooses a backend, the tests of every op and the benchmarks all use it.
"""

from collections.abc import Sequence

from torch import Tensor

# Largest error of a tensor allowed, as a share of its own largest entry.
TOLERANCES = {
    # Another order of the same sums: 130 steps lose 2 of 16 digits (2.3e-14 measured).
    "float64": 1e-12,
    # eps is 1.2e-7; 3.9e-6 measured in the worst setting. A wrong term shows as 1e-2 or more.
    "float32": 2e-5,
    # Operands keep 8 bits, 4e-3 each, in matmuls after the loop: 1.1e-2 measured, of gradients.
    "bf16 after the loop": 2e-2,
    # Rounded at every step of a recurrence, too. A summary updated every 3 steps magnifies most:
    # 8.4e-2 measured, 7.3e-2 of `reference` with rounded operands.
    "bf16 in the loop": 1.5e-1,
}
FLOOR = 1e-3  # of a tensor's scale, so that rounding of what is exactly 0 is not divided by 0


def largest_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest error of any tensor as a share of its largest entry; NaN if any value is NaN."""
    errors = [
        ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(FLOOR)).item()
        for ours, theirs in zip(values, expected, strict=True)
        if theirs.numel()
    ]
    return max(errors, key=lambda error: (error != error, error), default=0.0)
