"""Predicted memory against that of real trainings, and against the bytes torch really holds."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training_runs import ROOT, write_corpus

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config, to_yaml
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.evaluation import bits_per_byte
from ys_llm.inference import generate
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.runs.checkpoint import save_model
from ys_llm.training import memory
from ys_llm.training.loop import gradients
from ys_llm.training.memory import (
    Predictor,
    check_fits,
    largest_batch_size,
    peak_of,
    resident_bytes,
)
from ys_llm.training.setup import set_up
from ys_llm.training.traces import LARGE, SMALL, LiveTensors, Step, Trace, Tracer, drawn_on

CPU = torch.device("cpu")
linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process its own peak"
)

ATTENTION = ("model.mixer=softmax_attention",)
SNAKES = (
    "model.block=plain",
    "model.n_layers=1",
    "model.d_mlp=0",
    "model.dropout=0.1",
    "model.options={d_state: 512, d_summary: 0, factored: true, shared_norm: true, "
    "summary_scale: fixed}",
)
TRAININGS: dict[str, tuple[str, ...]] = {
    "three tiers": ("train.seq_len=128",),
    "three tiers in bf16": ("train.seq_len=128", "train.dtype=bf16"),
    "attention": (*ATTENTION, "train.batch_size=16"),
    "attention in bf16": (*ATTENTION, "train.batch_size=16", "train.dtype=bf16"),
    "attention in a window": (*ATTENTION, "train.batch_size=16", "model.options.window=128"),
    "contiguous": ("data.batching=contiguous", "train.seq_len=64", "train.batch_size=64"),
    "dropout, accumulated": (
        "model.d_model=128",
        "model.d_mlp=344",
        "model.dropout=0.2",
        "train.grad_accum_steps=2",
        "train.seq_len=128",
    ),
    "snakes": (*SNAKES, "train.seq_len=128", "train.grad_accum_steps=2"),
    "wide": (
        "model.d_model=512",
        "model.d_mlp=1376",
        "model.n_layers=5",
        "train.seq_len=32",
        "train.batch_size=8",
    ),
    "many words, two stages": (
        "tokenizer.kind=words",
        "tokenizer.vocab_size=8192",
        "model.tie_embeddings=true",
        "train.stages=[{seq_len: 32, batch_size: 64, steps: 2}, "
        "{seq_len: 128, batch_size: 24, steps: 4}]",
    ),
}
LARGE_TRAININGS: dict[str, tuple[str, ...]] = {
    "the defaults": (),
    "the defaults in bf16": ("train.dtype=bf16",),
    "the Llama block": ("model.d_mlp=732", *ATTENTION, "model.options.window=256"),
    "long rows": ("train.seq_len=1024", "train.batch_size=8"),
    "ys_v0_3": (
        *SNAKES,
        "model.d_model=768",
        "model.options.d_state=2048",
        "train.seq_len=64",
        "train.batch_size=4",
    ),
}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Text of many different words."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrst"
    texts = [
        " ".join("".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(400))
        for _ in range(30)
    ]
    write_corpus(tmp_path / "words", texts)
    return tmp_path / "words"


def config_of(corpus: Path, *changes: str) -> Config:
    """The defaults with `changes`, on one thread of a CPU."""
    common = ("run=mine", "data.validation_fraction=0.2", "tokenizer.kind=bytes")
    common += ("train.device=cpu", "train.dtype=fp32", "train.threads=1", "train.max_steps=4")
    common += ("train.eval_interval=2", "train.checkpoint_interval=2", "train.sample_interval=0")
    overrides = [*common, f"data.path={corpus}", *changes]
    return load_config(None, overrides=overrides).config


def said_by(script: str, *arguments: Path) -> str:
    """What a script of this folder says, run in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    ).stdout


def trained(config: Config, folder: Path) -> dict[str, int]:
    """Predicted and measured peak of this training, and the parts of the prediction."""
    (folder / "mine.yaml").write_text(to_yaml(config))
    said = said_by("memory_of_training.py", folder / "mine.yaml", folder / "runs")
    figures: dict[str, int] = json.loads(said)
    return figures


def fresh_process_bytes() -> int:
    """What a process holds that has imported ys and nothing else; this one has run many tests."""
    code = (
        "import ys_llm.training.loop; from ys_llm.training.memory import resident_bytes; "
        "print(resident_bytes())"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=100)
    return int(done.stdout)


def assert_predicted_well(figures: dict[str, int]) -> None:
    assert figures["predicted"] == pytest.approx(figures["measured"], rel=0.1), figures


@linux
@pytest.mark.parametrize(
    "training",
    [pytest.param(name, marks=[] if name == "snakes" else pytest.mark.slow) for name in TRAININGS],
)
def test_the_peak_of_a_training_is_predicted(training: str, words: Path, tmp_path: Path) -> None:
    assert_predicted_well(trained(config_of(words, *TRAININGS[training]), tmp_path))


@linux
@pytest.mark.slow
@pytest.mark.parametrize("training", LARGE_TRAININGS)
def test_the_peak_of_a_large_training_is_predicted(
    training: str, words: Path, tmp_path: Path
) -> None:
    assert_predicted_well(trained(config_of(words, *LARGE_TRAININGS[training]), tmp_path))


@linux
@pytest.mark.parametrize("training", ["three tiers", "attention", "wide"])
def test_the_peak_of_using_a_model_is_predicted(training: str, tmp_path: Path, words: Path) -> None:
    config = config_of(words, *TRAININGS[training])
    tokenizer = train_tokenizer(["x"], kind="bytes", vocab_size=258)
    model = Model(config.model, vocab_size=tokenizer.vocab_size)
    facts = {
        "step": 1,
        "tokens": 1,
        "parameters": 1,
        "val_bits_per_byte": 1.0,
        "has_records": False,
    }
    save_model(tmp_path, config, model, tokenizer, facts)
    tokenizer.save(tmp_path / "tokenizer.json")
    figures = json.loads(said_by("memory_of_using.py", tmp_path))
    assert figures["predicted"] == pytest.approx(figures["measured"], rel=0.1), figures


KINDS = {
    "shuffled": (),
    "bf16": ("train.dtype=bf16",),
    "documents joined": ("data.reset_at_document=false",),
    "accumulated": ("train.grad_accum_steps=2",),
    "dropout, tied": ("model.dropout=0.1", "model.tie_embeddings=true"),
    "plain": ("model.block=plain", "model.d_mlp=0"),
    "many words": ("tokenizer.kind=words", "tokenizer.vocab_size=8192", "train.batch_size=24"),
}


@pytest.mark.parametrize("mixer", mixer_names())
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_at_two_and_three_rows_tells_what_a_real_step_holds(
    kind: str, mixer: str, words: Path, tmp_path: Path, threads_as_they_were: None
) -> None:
    small = ("model.d_model=32", "model.d_mlp=80", "model.n_layers=2", f"model.mixer={mixer}")
    small += ("train.seq_len=64", "train.batch_size=12")
    config = config_of(words, *small, *KINDS[kind])
    training = set_up(config, tmp_path / "mine")
    live = LiveTensors(CPU)
    with live:
        gradients(training)
    tracer = Tracer(
        training.model, precision=config.train.dtype, resets=config.data.reset_at_document
    )
    accumulated = config.train.grad_accum_steps > 1
    step = Step(tracer, config.train.seq_len, carried=False, accumulated=accumulated)
    predicted = step.trace(config.train.plan[0].batch_size).peak()
    assert predicted == pytest.approx(live.trace().peak(), rel=0.03)


def test_tensors_are_counted_from_their_making_until_the_last_of_them_goes() -> None:
    live = LiveTensors(CPU)
    with live:
        first = torch.zeros(1000)
        view = first[10:20]
        second = torch.ones(500)
        del first, second
        third = torch.ones(250)
    assert live.trace().peak() == 4 * 1500
    assert live.trace().sizes.tolist() == [4000, 2000, 0, 1000]
    assert view.sum() + third.sum() == 250


def trace_of(*events: tuple[int, int]) -> Trace:
    names, sizes = np.array(events, dtype=np.int64).T
    return Trace(names, sizes)


def test_sizes_are_drawn_on_each_by_its_own_growth() -> None:
    small, large = trace_of((0, 100), (1, 20), (0, 0)), trace_of((0, 100), (1, 30), (0, 0))
    assert drawn_on(small, large, 10).sizes.tolist() == [100, 20 + 8 * 10, 0]
    assert drawn_on(small, large, SMALL).sizes.tolist() == small.sizes.tolist()
    assert drawn_on(small, large, LARGE).sizes.tolist() == large.sizes.tolist()


def test_other_tensors_at_another_batch_size_are_taken_to_grow_with_it() -> None:
    small, large = trace_of((0, 100)), trace_of((0, 90), (1, 60), (0, 0))
    assert drawn_on(small, large, 30).sizes.tolist() == [900, 600, 0]


@linux
def test_the_largest_batch_fits_and_a_larger_one_would_not(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resident_bytes", fresh_process_bytes)
    small = ("model.d_model=128", "model.d_mlp=344", "model.n_layers=2", "train.seq_len=64")
    config = config_of(words, *small, "train.batch_size=auto", "train.memory_limit_gb=0.75")
    figures = []
    size = largest_batch_size(config, vocab_size=258, device=CPU)
    assert size % 8 == 0
    for name, rows in ("fits", size), ("beyond", size * 13 // 10):
        (tmp_path / name).mkdir()
        fixed = config_of(words, *small, f"train.batch_size={rows}")
        figures.append(trained(fixed, tmp_path / name)["measured"])
    # Within the error of the prediction.
    assert figures[0] < 0.75e9 * 1.1
    assert figures[1] > 0.75e9 * 0.9
    assert figures[0] < figures[1]


def test_the_largest_batch_is_predicted_to_fit_and_the_next_one_not(words: Path) -> None:
    small = ("model.d_model=32", "model.d_mlp=80", "model.n_layers=1", "train.seq_len=32")
    limit = resident_bytes() / 1e9 + 0.4
    auto = ("train.batch_size=auto", f"train.memory_limit_gb={limit}")
    config = config_of(words, *small, *auto)
    before = torch.get_rng_state()
    size = largest_batch_size(config, vocab_size=258, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
    predictor = Predictor(config, Model(config.model, vocab_size=258), dtype="fp32")
    assert size >= 8
    assert size % 8 == 0
    assert peak_of(predictor.parts(32, size)) < 1.03 * limit * 1e9
    assert peak_of(predictor.parts(32, size * 13 // 10)) > limit * 1e9


def test_no_room_for_one_sequence_is_refused_with_both_figures(
    words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resident_bytes", fresh_process_bytes)
    config = config_of(words, "train.batch_size=auto", "train.memory_limit_gb=0.01")
    with pytest.raises(UserError, match=r"takes 0\.\d GB, and 0\.0 GB may be used") as caught:
        largest_batch_size(config, vocab_size=258, device=CPU)
    assert caught.value.exit_code == EXIT_USAGE


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
    with pytest.raises(UserError, match=named + r".* GB of memory, and .* GB are free") as caught:
        check_fits(config, vocab_size=258, device=CPU)
    assert caught.value.exit_code == EXIT_USAGE
    check_fits(config_of(words), vocab_size=258, device=CPU)


def test_evaluation_and_reading_are_as_large_as_they_are_taken_to_be() -> None:
    scoring = inspect.signature(bits_per_byte.evaluate_tokens).parameters
    assert scoring["batch_size"].default == memory.EVALUATED_ROWS
    assert memory.SCORED_TOKENS == bits_per_byte._HEAD_TOKENS
    reading = inspect.signature(generate.prefill).parameters
    assert reading["chunk_tokens"].default == memory.READ_TOKENS
