"""The search of a learning rate: it stops inside, and follows the best a little way outside."""

from __future__ import annotations

import math

import pytest

from ys_llm.training.rate_search import search_rate


@pytest.mark.parametrize(
    ("best", "found", "tried"),
    [
        (1.0, 1.0, [0.5, 1, 2]),
        (2.0, 2.0, [0.5, 1, 2, 4]),
        (0.25, 0.25, [0.125, 0.25, 0.5, 1, 2]),
        (100.0, 8.0, [0.5, 1, 2, 4, 8]),  # it ends somewhere
    ],
)
def test_it_tries_halves_and_doubles_until_the_best_lies_inside(
    best: float, found: float, tried: list[float]
) -> None:
    search = search_rate(lambda rate: abs(math.log(rate / best)), 1.0)
    assert (search.rate, sorted(search.tried)) == (found, tried)
    assert ("at the end" in search.text) == (best == 100)


def test_a_rate_that_diverges_is_not_the_best() -> None:
    search = search_rate(lambda rate: math.inf if rate > 0.5 else 1 - rate, 1.0)
    assert search.rate == 0.5
    assert search.text == "learning rate 0.5, the best of 4 from 0.25 to 2"
