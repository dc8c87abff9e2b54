"""What `ys plan` computes is near what was measured, and its page shows both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.networks import are_possible, two_networks
from benchmarks.plan import CASES, EXCEPTIONS, FILE, NEAR, compared, markdown
from benchmarks.plan_runs import Placing, told

ROOT = Path(__file__).resolve().parents[2]
RESULTS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    assert "\n".join(markdown(RESULTS)) in page


def test_every_case_was_measured_in_one_go() -> None:
    assert RESULTS["measured"].keys() == {case.name for case in CASES}
    assert len({case["commit"] for case in RESULTS["measured"].values()}) == 1
    assert not any("dirty" in case["commit"] for case in RESULTS["measured"].values())


def test_plans_are_near_what_was_measured() -> None:
    gaps = {(case.name, what): plan / run - 1 for case, what, plan, run in compared(RESULTS)}
    far = {key for key, gap in gaps.items() if abs(gap) > NEAR}
    assert far == set(EXCEPTIONS), gaps


@pytest.mark.slow
@pytest.mark.skipif(not are_possible(), reason="networks of their own need root and iproute2")
def test_a_link_sends_as_fast_as_it_may(tmp_path: Path) -> None:
    with two_networks() as link:
        link.limit(100)
        (found,) = told(link, Placing(2, 2, 1), ["reduce", "2"], tmp_path)
        assert 0.1 < found["seconds"] < 0.5  # 0.16 s at best
        assert found["sent_bytes"] > 7 * 2 * 2e6
