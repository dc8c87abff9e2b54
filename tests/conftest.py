"""What every test may rely on."""

from __future__ import annotations

import gc
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from support.forked import ForkServer, fork_server
from support.training_runs import TrainRun, sentences, settings, write_corpus

from ys_llm.config.sources import load_config
from ys_llm.csrc import loader
from ys_llm.ops import choices
from ys_llm.runs.folder import list_removals, remove
from ys_llm.system import machine
from ys_llm.training.loop import TrainSummary, train

# A busy machine is slow, and no example is wrong for that. The examples are the same in each run,
# so that a check that passed passes again; `scripts/check --slow` looks for new ones.
hypothesis.settings.register_profile("ys", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("ys")


# What a shell ignores in commands behind `&`, and what nohup ignores; tests send both, also to
# processes that inherit this.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Files that take long, the longest first: what begins last must not keep one core busy alone.
LONG = (
    *("test_docs.py", "test_kill.py", "test_resume.py", "test_hostile_files.py", "test_cpp.py"),
    *("test_stop.py", "test_mixers.py", "test_ops.py", "test_memory.py", "test_adding_a_mixer.py"),
    *("test_decoder.py", "test_lifecycle.py", "test_ranks.py", "test_cli.py", "test_compare.py"),
    *("test_wheel.py", "test_corpus_is_right.py", "test_prefix_cache.py", "test_copy_tier.py"),
    *("test_bench.py", "test_doctor.py", "test_forecast.py", "test_damaged_checkpoints.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, each file's tests in their order."""
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def pytest_collection_finish() -> None:
    """What is there now stays: the collector of garbage need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def folders_of_records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("records")
    return (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_records(folders_of_records: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measured choices are kept per test: they neither come from nor go to the user's cache."""
    folder = next(folders_of_records)
    monkeypatch.setattr(choices, "records_folder", lambda: folder)
    return folder


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other work, whatever runs beside the tests."""
    monkeypatch.setattr(machine, "waiting_seconds", lambda: 0.0)


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Compile what can be compiled, as a training does; the loader lets one process compile."""
    loader.build()


@pytest.fixture(autouse=True)
def memory_filled_with_nan() -> Iterator[None]:
    """Fill what `torch.empty` hands out with NaN, so that a read before the write is seen.

    Only deterministic mode obeys `fill_uninitialized_memory`; `test_ops.py` proves that it does.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", sentences(40))
    return tmp_path / "corpus"


@pytest.fixture
def train_run(tmp_path: Path, corpus: Path, threads_as_they_were: None) -> TrainRun:
    """`train` with these settings on top of SMALL; `runs` names the folder of runs."""

    def run(
        *changes: str, runs: str = "runs", clean: Any = "", resume_step: int | None = None
    ) -> TrainSummary:
        resolved = load_config(None, overrides=settings(corpus, changes))
        run = tmp_path / runs / resolved.config.run
        if clean:
            remove(list_removals(run, clean, corpus=corpus))
        return train(resolved, runs_dir=tmp_path / runs, resume_step=resume_step)

    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """`ys` commands in processes of their own, forked from one that has imported torch."""
    with fork_server(tmp_path_factory.mktemp("output")) as server:
        yield server
