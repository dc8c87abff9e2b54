"""One small model, served once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.served import Served, served, train_small

from ys_llm.inference.engine import Engine
from ys_llm.runs.model_files import load_run
from ys_llm.serving.server import Serving


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("served"), "run=small")


@pytest.fixture(scope="session")
def server(small_run: Path) -> Iterator[Served]:
    with served(Serving({"small": small_run, "second": small_run}, load_run)) as running:
        yield running


@pytest.fixture(scope="session")
def engine(server: Served) -> Engine:
    return server.engine("small")


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
