"""Fixtures of the tests that interrupt runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.forked import ForkServer
from support.harmed_runs import HarmedRun, Runs


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Runs:
    return Runs(tmp_path_factory.mktemp("whole"), forks)


@pytest.fixture
def harmed(tmp_path: Path, whole_runs: Runs) -> Callable[..., HarmedRun]:
    """A run of the named configuration, not started yet."""
    return lambda name="shuffled": HarmedRun(whole_runs, name, tmp_path / "run")
