"""A run killed at any point and resumed ends bit for bit as an uninterrupted one.

By SIGKILL or a power cut, at file operations and steps drawn by seed, most of them inside a
checkpoint's writing, in processes of their own.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any

import pytest
from support.harmed_runs import CONFIGURATIONS, HarmedRun, Runs, moment_of, points

KILL_POINTS = 20
POWER_CUTS = 7  # of each kind: one per part of a training


def every_second(count: int) -> list[Any]:
    """The numbers below `count`, each second one for the slow tests."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n % 2 else []) for n in range(count)]


def test_kill_points_cover_every_part_of_a_training(whole_runs: Runs) -> None:
    hit = set()
    for name in CONFIGURATIONS:
        whole = whole_runs.run(name)
        drawn = points(whole, seed=name, count=KILL_POINTS)
        operations = [whole.operations[number] for number in drawn]
        moments = {moment_of(operation) for operation in operations}
        assert moments == {moment_of(operation) for operation in whole.operations}
        assert len(moments) == 7
        hit |= {operation[0] for operation in operations}
    assert {"write", "fsync", "replace", "step"} <= hit


@pytest.mark.parametrize("number", every_second(KILL_POINTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    harmed: Callable[..., HarmedRun], name: str, number: int
) -> None:
    run = harmed(name)
    at = points(run.whole, seed=name, count=KILL_POINTS)[number]
    assert run.harm("kill", at).code == -signal.SIGKILL
    assert "damaged" not in run.resume().stderr
    run.assert_as_uninterrupted()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_killed_repeatedly_ends_as_an_uninterrupted_one(
    harmed: Callable[..., HarmedRun], name: str
) -> None:
    run, draw = harmed(name), random.Random(name)
    for _ in range(6):
        kind = draw.choice(("kill", "kill", "power cut", "unlucky power cut"))
        run.harm(kind, draw.randrange(len(run.whole.operations)))
    run.resume()
    run.assert_as_uninterrupted()


@pytest.mark.parametrize("kind", ["power cut", "unlucky power cut"])
@pytest.mark.parametrize("number", every_second(POWER_CUTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_after_a_power_cut_ends_as_an_uninterrupted_one(
    harmed: Callable[..., HarmedRun], name: str, number: int, kind: str
) -> None:
    run = harmed(name)
    at = points(run.whole, seed=f"{name} {kind}", count=POWER_CUTS)[number]
    assert run.harm(kind, at).code == -signal.SIGKILL
    assert "damaged" not in run.resume().stderr
    run.assert_as_uninterrupted()
