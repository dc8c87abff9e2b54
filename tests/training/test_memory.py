"""Forecast memory against that of real trainings, and what `batch_size: auto` makes of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import ROOT, TrainRun, write_corpus

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config, to_yaml
from ys_llm.data.split_cache import load_split
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.system import machine
from ys_llm.training import memory, setup
from ys_llm.training.compute import Compute
from ys_llm.training.memory import (
    FORECAST_ERROR,
    MemoryForecast,
    available_bytes,
    check_fits,
    forecast_memory,
    largest_batch_size,
)
from ys_llm.training.memory_probe import ENOUGH_GROWTH

CPU = torch.device("cpu")
ATTENTION = ("model.layers=[softmax_attention]", "train.batch_size=16")
TRAININGS: dict[str, tuple[str, ...]] = {
    "three tiers": ("train.seq_len=128",),
    "three tiers in bf16": ("train.seq_len=128", "train.dtype=bf16"),
    "a copy tier": ("model.copy.window=128", "train.seq_len=128"),
    "attention": ATTENTION,
    "attention in a window": (*ATTENTION, "model.options.softmax_attention.window=128"),
    "contiguous, accumulated, dropout": (
        "data.batching=contiguous",
        "model.dropout=0.2",
        "train.seq_len=64",
        "train.grad_accum_steps=2",
    ),
    "wide": (
        "model.d_model=512",
        "model.d_mlp=1376",
        "model.n_layers=5",
        "train.seq_len=32",
        "train.batch_size=8",
    ),
    "many words": ("tokenizer.kind=words", "tokenizer.vocab_size=8192", "train.seq_len=64"),
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of many different words."""
    folder = tmp_path_factory.mktemp("texts") / "words"
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrst"
    texts = [
        " ".join("".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(400))
        for _ in range(30)
    ]
    write_corpus(folder, texts)
    return folder


def config_of(corpus: Path, *changes: str) -> Config:
    """The defaults with `changes`, on one thread of a CPU."""
    common = ("run=mine", "data.validation_fraction=0.2", "tokenizer.kind=bytes")
    common += ("train.device=cpu", "train.dtype=fp32", "train.threads=1", "train.max_steps=4")
    common += ("train.eval_interval=2", "train.checkpoint_interval=2", "train.sample_interval=0")
    overrides = [*common, f"data.path={corpus}", *changes]
    return load_config(None, overrides=overrides).config


def small_config(corpus: Path, *changes: str) -> Config:
    small = ("model.d_model=32", "model.d_mlp=80", "model.n_layers=1", "train.seq_len=32")
    return config_of(corpus, *small, *changes)


@pytest.fixture(scope="module")
def growth(words: Path) -> MemoryForecast:
    """That of the small model, with as many sizes as the child wants."""
    return forecast_memory(small_config(words), Compute(CPU), vocab_size=258, seq_len=32)


def measured_peak(config: Config, folder: Path) -> int:
    """The peak of a process that trains this configuration."""
    (folder / "mine.yaml").write_text(to_yaml(config))
    script = ROOT / "tests" / "support" / "memory_of_training.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "mine.yaml"), str(folder / "runs")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return int(done.stdout)


def held_out_tokens(config: Config) -> int:
    """Of a tokenizer of bytes; a cache of keys and values grows with them during an evaluation."""
    return sum(document.n_bytes + 1 for document in load_split(config.data).validation)


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_the_forecast_is_within_its_stated_error(
    training: str, words: Path, tmp_path: Path, threads_as_they_were: None
) -> None:
    torch.set_num_threads(1)
    config = config_of(words, *TRAININGS[training])
    (stage,) = config.train.plan
    forecast = forecast_memory(
        config,
        Compute(CPU),
        vocab_size=8192 if config.tokenizer.kind == "words" else 258,
        seq_len=stage.seq_len,
        sizes=(1, stage.batch_size),
        validation_tokens=held_out_tokens(config),
    )
    measured = measured_peak(config, tmp_path)
    assert forecast.peak_bytes(stage.batch_size) == pytest.approx(measured, rel=FORECAST_ERROR)


def test_peaks_are_extrapolated_linearly_from_the_last_two_sizes() -> None:
    forecast = MemoryForecast(100, ((1, 990), (2, 1000), (4, 1200)), other_bytes=1500)
    assert forecast.bytes_per_row == 100
    assert forecast.peak_bytes(4) == forecast.peak_bytes(7) == 1500, "evaluation needs more"
    assert forecast.peak_bytes(20) == 2800
    assert MemoryForecast(100, ((1, 400),), 0).peak_bytes(3) == 1000


def test_the_child_stops_where_it_has_seen_enough(growth: MemoryForecast) -> None:
    sizes = [size for size, _ in growth.steps]
    peaks = [peak for _, peak in growth.steps]
    assert sizes == [2**i for i in range(len(sizes))]
    assert peaks == sorted(peaks)
    assert peaks[-1] - peaks[-2] >= ENOUGH_GROWTH > peaks[-2] - peaks[-3]


def test_the_child_stops_at_the_largest_size_and_imports_nothing_from_the_current_folder(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.py", "json.py", "ys_llm.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the current folder')\n")
    monkeypatch.chdir(tmp_path)
    capped = forecast_memory(
        small_config(words), Compute(CPU), vocab_size=258, seq_len=32, sizes=(1, 3)
    )
    assert [size for size, _ in capped.steps] == [1, 2, 3]


def test_a_child_that_fails_is_reported_in_one_line(words: Path) -> None:
    with pytest.raises(UserError, match=r"memory could not be measured.*\(.*\)"):
        forecast_memory(
            small_config(words), Compute(torch.device("xla:0")), vocab_size=258, seq_len=32
        )


def test_auto_takes_the_largest_batch_whose_forecast_is_within_the_limit(
    words: Path, growth: MemoryForecast
) -> None:
    auto = small_config(words, "train.batch_size=auto")
    limit = growth.peak_bytes(1) + 4 * ENOUGH_GROWTH
    config = replace(auto, train=replace(auto.train, memory_limit_gb=limit / 1e9))
    before = torch.get_rng_state()
    size = largest_batch_size(config, Compute(CPU), vocab_size=258)
    assert torch.equal(torch.get_rng_state(), before)
    assert size >= 8
    assert size % 8 == 0
    assert growth.peak_bytes(size) == pytest.approx(limit, rel=FORECAST_ERROR)


def test_a_run_trains_with_the_batch_size_that_was_found(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Compute] = []

    def find(config: Config, compute: Compute, **_: Any) -> int:
        seen.append(compute)
        return 8

    monkeypatch.setattr(setup, "largest_batch_size", find)
    run = train_run("train.batch_size=auto", "train.max_steps=2", "train.dtype=bf16").run
    assert load_config(run / "config.yaml").config.train.batch_size == 8
    assert (seen[0].dtype, seen[0].backends.keys()) == ("bf16", {"three_tier"})


def test_the_header_says_where_a_choice_that_is_kept_was_made(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the batch size is found, dtype and backends are chosen before it."""
    monkeypatch.setattr(setup, "largest_batch_size", lambda *_, **__: 8)
    choosing = ("train.dtype=auto", "train.backend={three_tier: auto}", "train.deterministic=true")
    headers = []
    for settings in ((), ("train.max_steps=4",)):
        train_run("train.batch_size=auto", "train.max_steps=2", *choosing, *settings)
        headers.append(capsys.readouterr().err)
    first, resumed = headers
    assert first.count("(chosen above, before the batch size)") == 2
    assert "when the run began" not in first
    assert resumed.count("(as when the run began)") == 2
    assert "chosen above" not in resumed


def test_on_cuda_a_batch_that_does_not_run_is_halved(
    words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that runs out of memory above 300 rows, whatever was forecast."""
    tried: list[int] = []

    def forecast(*_: Any, sizes: tuple[int, int] = (1, 0), **__: Any) -> MemoryForecast:
        if sizes[0] > 1:
            tried.append(sizes[0])
            if sizes[0] > 300:
                raise UserError("out of memory", "")
        return MemoryForecast(0, ((1, 1_000_000), (2, 2_000_000)), 0)

    monkeypatch.setattr(memory, "forecast_memory", forecast)
    config = small_config(words, "train.batch_size=auto", "train.memory_limit_gb=1")
    assert largest_batch_size(config, Compute(torch.device("cuda")), vocab_size=258) == 248
    assert tried == [1000, 500, 250]


@pytest.fixture
def measured_before(growth: MemoryForecast, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forecast of the small model is not measured again."""
    monkeypatch.setattr(memory, "forecast_memory", lambda *_, **__: growth)


@pytest.mark.usefixtures("measured_before")
def test_one_sequence_that_does_not_fit_is_refused_with_both_figures(words: Path) -> None:
    config = small_config(words, "train.batch_size=auto", "train.memory_limit_gb=0.01")
    with pytest.raises(UserError, match=r"needs 0\.\d GB, but only 0\.0 GB may be used") as caught:
        largest_batch_size(config, Compute(CPU), vocab_size=258)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.fixture
def unknown_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that does not tell how much memory is free."""
    here: Any = machine.inspect_machine()
    monkeypatch.setattr(machine, "inspect_machine", lambda: replace(here, free_bytes=None))


@pytest.mark.usefixtures("unknown_memory", "measured_before")
def test_where_free_memory_is_unknown_auto_asks_for_a_limit(words: Path) -> None:
    assert available_bytes(CPU) is None
    check_fits(config_of(words, "train.batch_size=1000000"), vocab_size=258, device=CPU)
    config = small_config(words, "train.batch_size=auto")
    with pytest.raises(UserError, match=r"unknown here.*train\.memory_limit_gb") as caught:
        largest_batch_size(config, Compute(CPU), vocab_size=258)
    assert caught.value.exit_code == EXIT_USAGE
    limited = replace(config, train=replace(config.train, memory_limit_gb=2.0))
    assert 8 <= largest_batch_size(limited, Compute(CPU), vocab_size=258) < 100_000


def test_where_free_memory_is_unknown_training_still_runs(
    train_run: TrainRun, unknown_memory: None
) -> None:
    assert train_run().steps == 6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.d_model=1000000", "the model has [0-9,]{13,} parameters"),
        ("train.batch_size=1000000", "batches of 1,000,000 x 256 tokens"),
        ("train.seq_len=1000000", "batches of 32 x 1,000,000 tokens"),
    ],
)
def test_what_can_never_fit_is_refused_at_no_cost(change: str, named: str, words: Path) -> None:
    config = config_of(words, change)
    with pytest.raises(UserError, match=named + r".* GB of memory, but .* GB is free") as caught:
        check_fits(config, vocab_size=258, device=CPU)
    assert caught.value.exit_code == EXIT_USAGE
    check_fits(config_of(words), vocab_size=258, device=CPU)
