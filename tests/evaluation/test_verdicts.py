"""When a configuration is called better, and how that is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ys_llm.evaluation.compare_page import page
from ys_llm.evaluation.learning_curves import Curve
from ys_llm.evaluation.verdicts import (
    Comparison,
    Contender,
    ContenderRun,
    RunResult,
    TriedRate,
    compare,
)
from ys_llm.system.charts import short

DOCUMENTS = 20
BYTES = 1000


def result(
    nats: Sequence[float], *, tokenizer: str = "t", documents: Sequence[int] = ()
) -> RunResult:
    return RunResult(
        weights="w",
        tokenizer=tokenizer,
        held_out="h",
        training="t",
        commit="c",
        hardware="a <machine>",
        parameters=1000,
        state_bytes=64,
        flops_per_token=2000,
        steps=10,
        tokens=5000,
        seconds=2.5,
        peak_bytes=3_000_000,
        generated_per_second=400.0,
        names_again=1.5,
        bytes=BYTES,
        documents=tuple(documents or range(len(nats))),
        nats=tuple(nats),
    )


def contender(run: str, levels: Sequence[float]) -> Contender:
    """Its documents cost `levels[i]` nats each with seed i, more or less, however it is called."""
    runs = [
        ContenderRun(f"{run}-s{i}", i, f"ys train --run {run}", result(documents(level)))
        for i, level in enumerate(levels)
    ]
    return Contender(run, "1 min_gru", 1e-3, tuple(runs))


def documents(level: float) -> list[float]:
    return [level + 0.1 * (number % 3) for number in range(DOCUMENTS)]


def compared(*contenders: Contender) -> Comparison:
    return compare(contenders, budget=None, more_seeds="ys compare a b --seeds 6")


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ([9.0, 9.1, 8.9], "better"),
        ([11.0, 11.1, 10.9], "worse"),
        ([9.9, 11.0, 8.5], "not shown"),  # seeds scatter by more
        ([10.0, 10.1, 9.9], "not shown"),
        ([9.0], "not shown"),  # one seed says nothing about the next
    ],
)
def test_the_verdict_needs_documents_and_seeds(levels: list[float], verdict: str) -> None:
    first = contender("a", [10.0, 10.1, 9.9][: len(levels)])
    (found,) = compared(first, contender("b", levels)).verdicts
    assert found.verdict == verdict
    mean = sum(levels) / len(levels) - 10.0
    assert found.difference == pytest.approx(mean * DOCUMENTS / math.log(2) / BYTES)
    assert (found.p_over_seeds is None) == (len(levels) == 1)


def test_a_difference_in_one_document_alone_is_not_shown() -> None:
    first, other = contender("a", [10.0, 10.01]), contender("b", [10.0, 10.01])
    for one in other.runs:
        nats = [one.result.nats[0] - 5, *one.result.nats[1:]]
        object.__setattr__(one, "result", result(nats))
    (found,) = compared(first, other).verdicts
    assert found.p_over_seeds is not None
    assert found.p_over_seeds < 0.01
    assert (found.verdict, found.p_over_documents) == ("not shown", 1)


def test_parts_of_a_document_are_added_up_where_the_tokenizers_differ() -> None:
    one, other = result([1, 2, 3], documents=[0, 0, 1]), result([2, 2], tokenizer="u")
    runs = [
        Contender(n, "", 1, (ContenderRun(n, 1, "", r),)) for n, r in (("a", one), ("b", other))
    ]
    (found,) = compared(*runs).verdicts
    assert found.documents == 2
    assert found.difference == pytest.approx(-2 / math.log(2) / BYTES)


def test_the_conclusion_names_the_best_and_its_costs() -> None:
    levels = {"a": 10.0, "b": 9.0, "c": 8.0, "d": 12.0}
    found = compared(*(contender(run, [x, x + 0.1]) for run, x in levels.items()))
    text = "\n".join(found.conclusion)
    assert text.startswith("Use c: it needs 0.0577 bits per byte")
    assert "fewer than a" in text
    assert "It trains 1.00 times as fast as a and generates 1.00 times as fast" in text
    assert "its state takes 64 bytes (there 64)" in text
    assert "d is worse" in text
    assert "c is better than b, too: it needs 0.0289" in text
    assert (found.verdicts[-1].run, found.verdicts[-1].against) == ("c", "b")


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"a": [8.0, 8.1], "b": [9.0, 9.1]}, "Use a: every other configuration was shown"),
        ({"a": [8.0], "b": [7.0]}, "Nothing was shown to be better than a."),
    ],
)
def test_the_conclusion_says_where_nothing_is_better(
    levels: dict[str, list[float]], said: str
) -> None:
    found = compared(*(contender(run, values) for run, values in levels.items()))
    assert found.conclusion[0].startswith(said)
    if len(levels["a"]) == 1:
        assert found.conclusion[1].startswith("Costs may decide: of a, b, a trains fastest")
        assert "one seed cannot tell whether another would turn it" in found.conclusion[2]
        assert found.conclusion[-1].endswith(": ys compare a b --seeds 6")


@pytest.mark.parametrize(("seconds", "warns"), [(2.6, False), (3.0, True)])
def test_unequal_times_are_said_where_seconds_are_the_budget(seconds: float, warns: bool) -> None:
    slow = replace(result(documents(9.0)), seconds=seconds)  # the other one took 2.5
    other = Contender("b", "", 1, (ContenderRun("b", 0, "", slow),))
    for budget in ("seconds=3", "tokens=5000", None):
        found = compare([contender("a", [10.0]), other], budget=budget, more_seeds="")
        said = "took 3.0 s in b and 2.5 s in a-s0" in "\n".join(found.conclusion)
        assert said == (warns and budget == "seconds=3")


class Balanced(HTMLParser):
    """Fails where tags are not closed in order; collects what the page loads and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_loads_nothing() -> None:
    found = compared(contender("a", [10.0, 10.1]), contender("b", [9.0, 9.1]))
    curves = [
        Curve(run, (1e5, 2e5, 3e5), (1, 2, 3), (1e9, 2e9, 3e9), (5.0, 4.0 - at, 3.0 - at))
        for at, run in enumerate("ab")
    ]
    html = page(found, curves, measure="Loss")
    reader = Balanced()
    reader.feed(html)
    assert (reader.open, reader.loaded) == ([], [])
    assert "<script" not in html
    assert html.count("<svg") == 3
    assert html.count("<polyline") == 6
    for said in (*found.conclusion, "a <machine>", "ys train --run b", "better"):
        assert said in reader.text
    assert "200k" in reader.text
    for shown in ("tokens/s generated", "400 ± 0", "3.0 MB", "FLOPs a token", "2,000"):
        assert shown in reader.text


def test_the_page_and_the_figures_have_every_rate_that_was_tried() -> None:
    rates = [TriedRate("a", 0.001, None, chosen=False), TriedRate("a", 0.0005, 2.5, chosen=True)]
    runs = [contender("a", [10.0]), contender("b", [9.0])]
    found = compare(runs, budget=None, more_seeds="", rates=rates)
    assert found.rates == tuple(rates)
    reader = Balanced()
    reader.feed(page(found, [], measure="Loss"))
    assert "Learning rates that were tried" in reader.text
    for shown in ("0.0005", "2.5000", "yes", "0.001", "-", "no"):
        assert shown in reader.text
    assert "that were tried" not in page(compared(*runs), [], measure="Loss")


def test_curves_of_a_single_point_or_none_are_drawn_too() -> None:
    found = compared(contender("a", [10.0]), contender("b", [9.0]))
    one = Curve("a", (5.0,), (0.0,), (0.0,), (2.0,))
    assert page(found, [one], measure="Loss").count("<circle") == 3
    empty = Curve("a", (), (), (), ())
    assert "Nothing was recorded" in page(found, [empty], measure="Loss")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.5, "3.5"), (1500, "1.5k"), (2e6, "2M"), (3e9, "3G"), (1.2e15, "1.2e15")],
)
def test_large_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text
