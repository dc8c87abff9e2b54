"""The tests of significance: exact where that can be counted, symmetric, uniform under the null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.evaluation.significance import (
    FLIPS,
    MOST_EXACT,
    pooled_deviation,
    pooled_t_p,
    sign_flip_p,
    student_t_p,
)

FEW = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=6)


@given(FEW)
def test_all_signs_of_few_differences_are_tried(values: list[float]) -> None:
    signs = list(itertools.product((-1, 1), repeat=len(values)))
    sums = [abs(sum(s * d for s, d in zip(row, values, strict=True))) for row in signs]
    reached = sum(one >= abs(sum(values)) for one in sums)
    assert sign_flip_p(np.array(values)) == reached / len(signs)


@given(FEW, st.randoms(use_true_random=False))
def test_neither_direction_nor_order_nor_unit_matters(values: list[float], draw: object) -> None:
    p = sign_flip_p(np.array(values))
    shuffled = sorted(values, key=lambda _: draw.random())  # type: ignore[attr-defined]
    assert sign_flip_p(-np.array(values)) == p
    assert sign_flip_p(1024 * np.array(shuffled)) == p


def test_no_difference_is_no_evidence_and_a_steady_one_is() -> None:
    assert sign_flip_p(np.zeros(0)) == 1
    assert sign_flip_p(np.zeros(50)) == 1
    assert sign_flip_p(np.ones(10)) == 2 / 2**10
    assert sign_flip_p(np.ones(50)) == 1 / (1 + FLIPS)


def test_drawn_signs_agree_with_all_of_them() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, MOST_EXACT)
    with_nothing_added = np.append(values, 0.0)  # one more than is tried exactly
    assert sign_flip_p(with_nothing_added) == pytest.approx(sign_flip_p(values), abs=0.02)


@pytest.mark.parametrize("n", [MOST_EXACT - 3, 60])
def test_where_nothing_differs_p_is_below_a_tenth_in_one_of_ten(n: int) -> None:
    draw = np.random.default_rng(n)
    found = [sign_flip_p(draw.standard_t(3, n)) for _ in range(100)]
    for level in (0.1, 0.5):
        # Five standard errors of a share among 100.
        assert abs(np.mean(np.array(found) <= level) - level) < 5 * math.sqrt(level / 100)


@pytest.mark.parametrize(
    ("freedom", "five_percent"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423)],
)
def test_student_t_has_the_critical_values_of_the_tables(freedom: int, five_percent: float) -> None:
    assert student_t_p(five_percent, freedom) == pytest.approx(0.05, abs=2e-5)
    assert student_t_p(0.0, freedom) == 1
    assert 0 <= student_t_p(1e9, freedom) < 1e-8


def test_student_t_nears_the_normal_distribution() -> None:
    assert student_t_p(1.5, 1000) == pytest.approx(math.erfc(1.5 / math.sqrt(2)), abs=5e-4)


def test_the_spread_is_pooled_over_all_groups() -> None:
    groups = [[1.0, 3.0], [10.0, 10.0], [5.0]]
    assert pooled_deviation(groups) == (1.0, 2)  # 1 + 1 + 0 + 0 over two degrees of freedom
    t = 8 / (1.0 * math.sqrt(1 / 2 + 1 / 2))
    assert pooled_t_p(groups, 0, 1) == pooled_t_p(groups, 1, 0) == student_t_p(t, 2)


def test_one_value_a_group_tells_nothing_about_spread() -> None:
    assert pooled_t_p([[1.0], [2.0]], 0, 1) is None
    assert pooled_t_p([[1.0, 1.0], [1.0, 1.0]], 0, 1) == 1
    assert pooled_t_p([[1.0, 1.0], [2.0, 2.0]], 0, 1) == 0
