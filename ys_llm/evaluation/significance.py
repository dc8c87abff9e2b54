"""Is a difference more than chance? Over documents by flipping signs, over seeds by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FLIPS = 10_000  # sign vectors that are drawn where there are more than MOST_EXACT differences
MOST_EXACT = 13  # differences of which all sign vectors are tried: 2^13 < FLIPS
_AT_ONCE = 1 << 22  # signs in memory
_ROUNDING = 1e-12  # two sums of the same numbers in another order are equal within this share

Float64Array = npt.NDArray[np.float64]


def sign_flip_p(differences: Float64Array) -> float:
    """The p-value of paired differences d: how often chance alone gives a sum as far from 0.

    Where the two sides are alike, each d_i is as likely to have the other sign, so that

        T(s) = |sum_i s_i d_i|,  p = share of the s in {-1, +1}^n with T(s) >= T(1, ..., 1)

    All 2^n sign vectors are tried for n <= MOST_EXACT. Else FLIPS are drawn, always the same ones,
    and p = (1 + those with T(s) >= T(1)) / (1 + FLIPS), which is never too small (Phipson & Smyth
    2010). The test is Fisher's (1935, The Design of Experiments, section 21). 1 for no differences.
    """
    n = len(differences)
    least = abs(math.fsum(differences)) * (1 - _ROUNDING)
    if n <= MOST_EXACT:
        bits = np.arange(1 << n)[:, None] >> np.arange(n) & 1
        return float(np.mean(_sums(bits, differences) >= least))
    draw, reached, left = np.random.default_rng(0), 0, FLIPS
    while left:
        rows = min(left, max(1, _AT_ONCE // n))
        bits = draw.integers(0, 2, (rows, n), dtype=np.int8)
        reached += int((_sums(bits, differences) >= least).sum())
        left -= rows
    return (1 + reached) / (1 + FLIPS)


def _sums(bits: npt.NDArray[np.integer], differences: Float64Array) -> Float64Array:
    """T of each row, whose bits say which signs are +."""
    sums: Float64Array = np.abs((2.0 * bits - 1.0) @ differences)
    return sums


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within the groups, s, and its degrees of freedom; 0 and 0 without any.

        s^2 = sum_g sum_i (x_gi - mean_g)^2 / df,  df = sum_g (n_g - 1)

    Of few values a group, it says much more than the deviation of one group alone.
    """
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.square(np.subtract(group, np.mean(group))).sum()) for group in groups)
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)


def pooled_t_p(groups: Sequence[Sequence[float]], left: int, right: int) -> float | None:
    """The two-sided p-value of the difference between the means of two of the groups.

        t = (mean_l - mean_r) / (s sqrt(1 / n_l + 1 / n_r))

    with s and df of all groups (`pooled_deviation`), which are taken to scatter alike (Student
    1908; Fisher 1935). None where no group has two values.
    """
    deviation, freedom = pooled_deviation(groups)
    if not freedom:
        return None
    one, other = groups[left], groups[right]
    difference = abs(float(np.mean(one)) - float(np.mean(other)))
    error = deviation * math.sqrt(1 / len(one) + 1 / len(other))
    if not error:
        return 1.0 if not difference else 0.0
    return student_t_p(difference / error, freedom)


def student_t_p(t: float, freedom: int) -> float:
    """P(|T| >= t) of Student's distribution, for t >= 0 and whole degrees of freedom.

    With theta = atan(t / sqrt(df)), P(|T| < t) is (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)

        df odd   2 / pi (theta + sin(theta) (cos + 2/3 cos^3 + 2/3 4/5 cos^5 + ... + cos^(df-2)))
        df even  sin(theta) (1 + 1/2 cos^2 + 1/2 3/4 cos^4 + ... + cos^(df-2))
    """
    theta = math.atan2(t, math.sqrt(freedom))
    cosine, odd = math.cos(theta), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    inside = math.sin(theta) * total
    if odd:
        inside = 2 / math.pi * (theta + inside)
    return max(0.0, 1.0 - inside)
