"""Charts: what is drawn, what is left out, and what is said to those who cannot see it."""

from __future__ import annotations

import math
import xml.etree.ElementTree as xml

import pytest

from ys_llm.system.charts import Level, Scale, Series, histogram, line_chart


def drawn(*series: Series, **options: object) -> xml.Element:
    return xml.fromstring(line_chart(series, title="Loss", axis="step", **options))  # type: ignore[arg-type]


def test_a_chart_says_in_words_what_it_shows() -> None:
    chart = drawn(Series("a <b>", ((1.0, 4.0), (200.0, 0.5))), levels=[Level("xz", 1.5)])
    said = chart.attrib["aria-label"]
    assert said == "Loss. a <b>: from 4 at step 1 to 0.5 at step 200; xz: 1.5."
    assert {"xz", "a <b>"} <= {text.text for text in chart.iter("text")}


def test_what_no_scale_has_is_left_out() -> None:
    chart = drawn(Series("a", ((1.0, math.nan), (2.0, 0.0), (3.0, 2.0), (4.0, 1.0))), kind="log")
    (line,) = chart.iter("polyline")
    assert len(line.attrib["points"].split()) == 2
    assert "Nothing was recorded" in line_chart(
        [Series("a", ((1.0, math.inf),))], title="Loss", axis="step"
    )


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [(0.2, 0.9, 0.2, 0.5), (1e-6, 1e6, 1e-6, 1e5), (0.31, 0.33, 0.31, 0.32), (3.0, 3.0, 3.0, 3.0)],
)
def test_marks_of_a_logarithmic_axis_are_few_and_inside(
    low: float, high: float, first: float, last: float
) -> None:
    ticks = Scale(low, high, 0, 100, is_log=True).ticks()
    assert 1 <= len(ticks) <= 8
    assert ticks[0] == pytest.approx(first) and ticks[-1] >= last * 0.999
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)


def test_a_histogram_draws_a_bar_for_each_count_that_is_not_zero() -> None:
    chart = xml.fromstring(histogram([3, 0, 1], [0, 10, 20, 30], title="Lengths"))
    assert len(list(chart.iter("rect"))) == 2
