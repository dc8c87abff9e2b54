"""A training learns, leaves what it says, and can be stopped anywhere without a trace.

Settings are written as on the command line. The rate is constant (`constant_sqrt_cooldown` without
a cool-down), so that a run may be given more steps and still be the run it was.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ys_llm.checkpoint import checkpoints, load_run, read_json, read_tensors
from ys_llm.config import load_config, to_yaml
from ys_llm.corpus import read_documents, split_documents
from ys_llm.data import BatchPlan, TokenData, batch_at, batches_per_epoch, prepare
from ys_llm.errors import EXIT_DIVERGED, EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USAGE, UserError
from ys_llm.model import Model, mixer_names
from ys_llm.progress import read_metrics
from ys_llm.train import TrainSummary, train

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "run=mine",
    "data.validation_fraction=0.2",
    "tokenizer.kind=bytes",
    "model.d_model=16",
    "model.n_layers=1",
    "model.d_mlp=24",
    "train.max_steps=6",
    "train.seq_len=16",
    "train.batch_size=4",
    "train.schedule=constant_sqrt_cooldown",
    "train.cooldown_fraction=0",
    "train.warmup_steps=2",
    "train.eval_tokens=300",
    "train.device=cpu",
    "train.dtype=fp32",
    "train.implementation=windowed",
    "train.threads=1",
)
SMALL_STATE = "model.options.d_state=16"
NEVER = 10**9  # steps between events that must not happen
ROW = {"step", "tokens", "loss", "learning_rate", "grad_norm", "step_seconds", "seconds"}
RUN_FOLDER = {
    "README.md",
    "cache",
    "checkpoints",
    "config.json",
    "config.yaml",
    "generation_config.json",
    "metrics.jsonl",
    "model.safetensors",
    "tokenizer.json",
}

TrainRun = Callable[..., TrainSummary]


def sentences(count: int, *, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    pets, places = ("cat", "dog", "fox"), ("mat", "log", "hill")
    return [
        f"The {draw.choice(pets)} sat on the {draw.choice(places)} and saw {i} birds."
        for i in range(count)
    ]


def write_corpus(folder: Path, texts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", sentences(40))
    return tmp_path / "corpus"


def settings(corpus: Path, changes: tuple[str, ...]) -> list[str]:
    options = () if "model.mixer=softmax_attention" in changes else (SMALL_STATE,)
    return [*SMALL, *options, f"data.path={corpus}", *changes]


@pytest.fixture
def train_run(tmp_path: Path, corpus: Path) -> TrainRun:
    """`train` with these settings on top of SMALL; `runs` names the folder of runs."""

    def run(*changes: str, runs: str = "runs", clean: Any = "") -> TrainSummary:
        resolved = load_config(None, overrides=settings(corpus, changes))
        return train(resolved, runs_dir=tmp_path / runs, clean=clean)

    return run


def rows_of(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")


def column(run: Path, name: str) -> list[Any]:
    return [row[name] for row in rows_of(run)]


def last_tensors(run: Path) -> dict[str, Tensor]:
    """Weights, moments, random numbers and carried state of the last checkpoint."""
    files = sorted(checkpoints(run)[-1].glob("*.safetensors"))
    return {f"{f.stem} {key}": value for f in files for key, value in read_tensors(f).items()}


def assert_same_training(run: Path, other: Path) -> None:
    """Bit for bit the same weights, moments and random state, by the same steps."""
    ours, theirs = last_tensors(run), last_tensors(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    for name in ("step", "tokens", "loss", "grad_norm", "learning_rate"):
        assert column(run, name) == column(other, name), name


def snapshot(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def initial_model(*changes: str) -> Model:
    """The model as training begins with it."""
    config = load_config(None, overrides=[*SMALL, SMALL_STATE, *changes]).config
    torch.manual_seed(config.train.seed)
    return Model(config.model, vocab_size=258)


def test_a_run_learns_and_leaves_the_documented_folder(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train_run(
        "train.max_steps=150",
        "train.batch_size=8",
        "train.seq_len=32",
        "train.learning_rate=1e-2",
        "train.eval_interval=50",
        "train.checkpoint_interval=50",
        "train.sample_interval=100",
        "model.d_model=32",
        "model.options.d_state=32",
    )
    assert summary.val_bits_per_byte is not None
    assert summary.val_bits_per_byte < 0.5 * summary.baselines["unigram"]
    assert {path.name for path in summary.run.iterdir()} == RUN_FOLDER
    assert [path.name for path in checkpoints(summary.run)] == ["step-00000100", "step-00000150"]
    rows = rows_of(summary.run)
    assert [row["step"] for row in rows] == list(range(1, 151))
    for row in rows:
        evaluated = {"val_loss", "val_bits_per_byte"} if row["step"] % 50 == 0 else set()
        assert row.keys() == ROW | evaluated
    assert (summary.steps, summary.tokens) == (150, 150 * 8 * 32)
    assert load_run(summary.run).step in (50, 100, 150)
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in ("corpus", "leak check", "to beat", "model", "cost", "plan", "device", "kernels"):
        assert f"\n{word:<13}" in f"\n{captured.err}"
    assert "\nsample       '' -> '" in captured.err
    assert captured.err.splitlines()[-1] == "try it       ys run mine"


def test_a_finished_run_is_left_as_it_is_and_summed_up_again(train_run: TrainRun) -> None:
    first = train_run()
    before = snapshot(first.run)
    assert train_run() == first
    assert snapshot(first.run) == before


@pytest.mark.parametrize("mixer", mixer_names())
@pytest.mark.parametrize("layout", ["windows", "streams"])
def test_more_steps_go_on_as_if_they_had_been_asked_for_at_once(
    train_run: TrainRun, layout: str, mixer: str
) -> None:
    common = (
        f"data.layout={layout}",
        f"model.mixer={mixer}",
        "train.implementation=auto" if mixer == "softmax_attention" else "model.n_layers=2",
        "model.dropout=0.2",
        "train.grad_accum_steps=2",
        "train.sample_interval=2",
        "train.eval_interval=4",
    )
    whole = train_run(*common, "train.max_steps=9", runs="whole")
    train_run(*common, "train.max_steps=5")
    parts = train_run(*common, "train.max_steps=9")
    assert_same_training(parts.run, whole.run)
    carried = [name for name in last_tensors(parts.run) if "carried" in name]
    assert bool(carried) is (layout == "streams")


def interrupted(tmp_path: Path, config: Path, sent: signal.Signals, *, after: int) -> Any:
    """`ys train` in a process of its own, sent a signal once it has done `after` steps."""
    command = [sys.executable, "-m", "ys_llm", "train", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "runs" / "mine" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_bytes().count(b"\n") >= after
    ):
        time.sleep(0.005)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(
    ("layout", "sent", "exit_code"),
    [("windows", signal.SIGINT, EXIT_INTERRUPTED), ("streams", signal.SIGTERM, EXIT_TERMINATED)],
)
def test_a_run_that_was_killed_and_then_stopped_equals_one_that_never_was(
    tmp_path: Path, train_run: TrainRun, layout: str, sent: signal.Signals, exit_code: int
) -> None:
    common = (
        f"data.layout={layout}",
        "model.dropout=0.2",
        "train.grad_accum_steps=2",
        "train.eval_interval=5",
        "train.checkpoint_interval=4",
        "train.sample_interval=6",
    )
    # Without an end in sight: the signals always come in time, however busy the machine is.
    endless = (*settings(tmp_path / "corpus", common), f"train.max_steps={NEVER}")
    config = tmp_path / "mine.yaml"
    config.write_text(to_yaml(load_config(None, overrides=endless).config))
    run = tmp_path / "runs" / "mine"

    code, _ = interrupted(tmp_path, config, signal.SIGKILL, after=6)
    assert code == -signal.SIGKILL
    unsaved = (*endless, f"train.checkpoint_interval={NEVER}")  # but for the stop
    config.write_text(to_yaml(load_config(None, overrides=unsaved).config))
    saved = read_json(checkpoints(run)[-1] / "progress.json")["step"]
    code, said = interrupted(tmp_path, config, sent, after=len(rows_of(run)) + 6)
    assert code == exit_code
    stopped = read_json(checkpoints(run)[-1] / "progress.json")["step"]
    assert stopped > saved > 0
    assert f"going on     from step {saved:,} of" in said
    assert f"stopped by {sent.name} at step {stopped:,} and saved" in said
    assert said.splitlines()[-1].endswith("type: ys train --run mine")
    assert "Traceback" not in said

    parts = train_run(*common, f"train.max_steps={stopped + 5}")
    whole = train_run(*common, f"train.max_steps={stopped + 5}", runs="whole")
    assert parts.run == run
    assert column(run, "step") == list(range(1, stopped + 6))
    assert_same_training(run, whole.run)


def test_accumulated_batches_equal_one_large_batch(train_run: TrainRun) -> None:
    once = ("train.max_steps=1", "train.grad_clip=0")
    parts = train_run(*once, "train.grad_accum_steps=4", runs="parts").run
    whole = train_run(*once, "train.batch_size=16", runs="whole").run
    assert column(parts, "tokens") == column(whole, "tokens") == [256]
    assert column(parts, "loss") == pytest.approx(column(whole, "loss"), rel=1e-6)
    ours, theirs = last_tensors(parts), last_tensors(whole)
    gradients = [name for name in ours if name.startswith("optimizer exp_avg.")]
    assert len(gradients) == len(list(initial_model().parameters()))
    for name in gradients:  # after one step the first moment is the gradient times 1 - beta1
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-8)


def test_fewer_batches_than_are_accumulated_still_train(train_run: TrainRun, corpus: Path) -> None:
    write_corpus(corpus, ["" for _ in range(40)])
    (corpus / "only.txt").write_text("the cat sat on the mat, the dog sat on the log. " * 2)
    changes = ("data.validation_fraction=0", "train.grad_accum_steps=16", "train.max_steps=12")
    run = train_run(*changes, "train.learning_rate=1e-2").run
    assert batches_per_epoch(training_data_of(run, corpus, fraction=0.0), PLAN) < 16
    losses = column(run, "loss")
    assert losses[-1] < 0.9 * losses[0]


PLAN = BatchPlan("windows", seq_len=16, batch_size=4, seed=1337, end_id=0)


def training_data_of(run: Path, corpus: Path, *, fraction: float = 0.2) -> TokenData:
    """The shard that the run was trained on, from its own cache."""
    split = split_documents(read_documents(corpus), validation_fraction=fraction)
    tokenizer = load_run(run).tokenizer
    made = set((run / "cache").iterdir())
    data = prepare(split.training, tokenizer, cache_dir=run / "cache", label="training")
    assert set((run / "cache").iterdir()) == made
    return data


def test_one_sequence_a_batch_trains(train_run: TrainRun) -> None:
    run = train_run("train.batch_size=1", "train.seq_len=1", "train.max_steps=3").run
    assert column(run, "tokens") == [1, 2, 3]


@pytest.mark.parametrize("layout", ["windows", "streams"])
@pytest.mark.parametrize(
    "too_long",
    [
        "train.seq_len=5000",
        "train.stages=[{seq_len: 8, batch_size: 2, steps: 3}, "
        "{seq_len: 5000, batch_size: 2, steps: 3}]",
    ],
    ids=["at-once", "in-a-later-stage"],
)
def test_too_little_text_is_said_before_the_first_step(
    train_run: TrainRun, tmp_path: Path, too_long: str, layout: str
) -> None:
    with pytest.raises(UserError) as caught:
        train_run(too_long, f"data.layout={layout}")
    message = str(caught.value)
    assert "\n" not in message
    assert "training split has" in message
    assert "5000" in message
    assert "--set train.seq_len=" in message
    left = {path.name for path in (tmp_path / "runs" / "mine").iterdir()}
    assert left == {"cache"}, "the vocabulary of this text would be kept for the next"


def test_the_recorded_gradient_is_the_true_one_and_clipping_sees_it(
    train_run: TrainRun, corpus: Path
) -> None:
    run = train_run("train.max_steps=1", "train.learning_rate=1e-12", "train.grad_clip=0.01").run
    model = initial_model().double()
    batch = batch_at(training_data_of(run, corpus), PLAN, 0)
    logits_BTV, _ = model(batch.inputs_BT, None, batch.starts_BT)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()
    assert column(run, "loss") == pytest.approx([loss.item()], rel=1e-5)
    assert column(run, "grad_norm") == pytest.approx([norm], rel=1e-5)
    tensors = last_tensors(run)
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        used = tensors[f"optimizer exp_avg.{name}"].double() / 0.1  # 1 - beta1
        torch.testing.assert_close(used, gradient * 0.01 / norm, rtol=1e-3, atol=1e-7)


PATIENT = ("train.eval_interval=1", "train.patience=2", "train.max_steps=40", "train.eval_tokens=0")


def test_a_run_that_gets_worse_stops_early_and_keeps_its_best(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug 1 of the ancestor: it went on from new weights and took any first evaluation as best."""
    good = train_run("train.eval_interval=5", "train.max_steps=10", "train.learning_rate=1e-2")
    best = (good.run / "model.safetensors").read_bytes()
    worse = train_run(*PATIENT, "train.learning_rate=1")
    rows = rows_of(good.run)
    assert rows[10]["loss"] < 0.9 * rows[0]["loss"]  # step 11 began from what 10 steps had learned
    assert worse.steps == 12
    assert all(row["val_loss"] > rows[9]["val_loss"] for row in rows[10:])
    assert (good.run / "model.safetensors").read_bytes() == best
    assert load_run(good.run).step == 10
    assert worse.val_bits_per_byte == good.val_bits_per_byte
    published = read_tensors(good.run / "model.safetensors")
    last = read_tensors(checkpoints(good.run)[-1] / "model.safetensors")
    assert any(not torch.equal(published[name], last[name]) for name in last)
    assert "stopped early 12 steps" in capsys.readouterr().err
    assert train_run(*PATIENT, "train.learning_rate=1").steps == 12
    assert train_run(*PATIENT, "train.patience=0", "train.max_steps=14").steps == 14


def test_stages_bring_their_own_lengths_and_batches(train_run: TrainRun) -> None:
    stages = [{"seq_len": 8, "batch_size": 2, "steps": 3}, {"seq_len": 16, "batch_size": 3}]
    seconds = [json.dumps([stages[0], {**stages[1], "steps": steps}]) for steps in (1, 4)]
    common = ("data.layout=streams", "train.checkpoint_interval=1")
    whole = train_run(*common, f"train.stages={seconds[1]}", runs="whole").run
    assert column(whole, "tokens") == [16, 32, 48, 96, 144, 192, 240]
    train_run(*common, f"train.stages={seconds[0]}")
    parts = train_run(*common, f"train.stages={seconds[1]}").run
    assert_same_training(parts, whole)


def test_stages_do_not_begin_with_the_same_windows(train_run: TrainRun) -> None:
    stage = "{seq_len: 8, batch_size: 2, steps: 1}"
    losses = column(
        train_run(f"train.stages=[{stage}, {stage}]", "train.learning_rate=1e-12").run, "loss"
    )
    assert losses[0] != losses[1]


def test_another_batch_size_drops_the_carried_state_and_goes_on(train_run: TrainRun) -> None:
    train_run("data.layout=streams")
    summary = train_run("data.layout=streams", "train.batch_size=2", "train.max_steps=8")
    assert column(summary.run, "tokens")[-1] == 6 * 64 + 2 * 32


def test_all_text_may_go_to_training(train_run: TrainRun) -> None:
    summary = train_run("data.validation_fraction=0", "train.eval_interval=3")
    assert (summary.val_loss, summary.val_bits_per_byte, summary.baselines) == (None, None, {})
    assert all(row.keys() == ROW for row in rows_of(summary.run))
    published = read_tensors(summary.run / "model.safetensors")
    last = read_tensors(checkpoints(summary.run)[-1] / "model.safetensors")
    assert all(torch.equal(published[name], last[name]) for name in last)
    assert read_json(summary.run / "config.json")["val_bits_per_byte"] is None


@pytest.mark.parametrize("records", [False, True])
def test_a_run_knows_whether_it_was_shown_prompts_and_answers(
    train_run: TrainRun, corpus: Path, capsys: pytest.CaptureFixture[str], records: bool
) -> None:
    if records:
        pairs = [f"{i} + 1 =<start>{i + 1}<end>" for i in range(30)]
        (corpus / "sums.txt").write_text("\n\n".join(pairs))
    run = train_run("train.sample_interval=3").run
    assert load_run(run).has_records is records
    sample = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sample")]
    assert len(sample) == 1
    assert ("+ 1 =' -> " in sample[0]) is records


def test_divergence_has_its_exit_code_and_the_last_checkpoint_goes_on(train_run: TrainRun) -> None:
    gentle = ("train.checkpoint_interval=1000", "train.eval_interval=1000")
    run = train_run(*gentle).run
    before = snapshot(run / "checkpoints")
    with pytest.raises(
        UserError, match=r"training diverged after step .* ys train --run"
    ) as caught:
        train_run(*gentle, "train.learning_rate=1e38", "train.max_steps=50")
    assert caught.value.exit_code == EXIT_DIVERGED
    assert snapshot(run / "checkpoints") == before
    assert train_run(*gentle, "train.max_steps=8").steps == 8
    assert column(run, "step") == list(range(1, 9))


def test_an_evaluation_that_is_no_number_is_a_divergence_too(train_run: TrainRun) -> None:
    run = train_run().run
    before = snapshot(run / "checkpoints")
    every_step = ("train.eval_interval=1", "train.checkpoint_interval=1", "train.max_steps=50")
    with pytest.raises(UserError, match=r"diverged.*validation loss nan") as caught:
        train_run(*every_step, "train.learning_rate=1e38")
    assert caught.value.exit_code == EXIT_DIVERGED
    assert snapshot(run / "checkpoints") == before


def test_another_architecture_is_refused_by_the_names_of_what_changed(train_run: TrainRun) -> None:
    before = snapshot(train_run().run)
    with pytest.raises(UserError) as caught:
        summary = train_run("model.d_mlp=32", "model.options.d_state=8")
        before = snapshot(summary.run)
    message = str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE
    assert "model.d_mlp was 24 and is now 32" in message
    assert "model.options.d_state was 16 and is now 8" in message
    assert "model.n_layers" not in message
    assert snapshot(train_run().run) == before


@pytest.mark.parametrize(
    "change", ["tokenizer.kind=chars", "tokenizer.vocab_size=300", "data.validation_fraction=0.5"]
)
def test_another_vocabulary_or_split_is_refused(train_run: TrainRun, change: str) -> None:
    train_run()
    with pytest.raises(UserError, match=change.partition("=")[0]) as caught:
        train_run(change)
    assert caught.value.exit_code == EXIT_USAGE


def test_a_foreign_tokenizer_is_refused(train_run: TrainRun, tmp_path: Path) -> None:
    run = train_run().run
    other = train_run("tokenizer.kind=chars", runs="other").run
    (run / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with pytest.raises(UserError):
        train_run("train.max_steps=8")
    assert column(run, "step")[-1] == 6


def test_clean_begins_anew_with_the_same_vocabulary(train_run: TrainRun) -> None:
    first = train_run()
    before = snapshot(first.run)
    again = train_run(clean="model")
    tokenizer = str(first.run / "tokenizer.json")
    assert snapshot(first.run)[tokenizer] == before[tokenizer]
    assert column(again.run, "step") == list(range(1, 7))
    assert (
        snapshot(first.run)[str(first.run / "model.safetensors")]
        == (before[str(first.run / "model.safetensors")])
    )
    with pytest.raises(UserError, match=r"tokenizer\.kind was bytes and is now chars"):
        train_run("tokenizer.kind=chars", clean="model")


def test_clean_all_leaves_no_stale_vocabulary_or_shard(
    train_run: TrainRun, corpus: Path, tmp_path: Path
) -> None:
    run = train_run("tokenizer.kind=chars").run
    (run / "notes.txt").write_text("mine")
    old_shards = {path.name for path in (run / "cache").iterdir()}
    write_corpus(corpus, [f"{i} grüne Vögel" for i in range(100, 140)])
    fresh = train_run("tokenizer.kind=chars", runs="fresh").run
    assert train_run("tokenizer.kind=chars", clean="all").run == run
    assert (run / "tokenizer.json").read_bytes() == (fresh / "tokenizer.json").read_bytes()
    shards = {path.name for path in (run / "cache").iterdir()}
    assert shards == {path.name for path in (fresh / "cache").iterdir()}
    assert not shards & old_shards
    assert_same_training(run, fresh)
    assert (run / "notes.txt").read_text() == "mine"


def test_changed_text_under_the_same_names_is_what_is_trained_on(
    train_run: TrainRun, corpus: Path
) -> None:
    train_run()
    write_corpus(corpus, sentences(40, seed=1))
    changed = train_run(clean="model").run
    assert_same_training(changed, train_run(runs="fresh").run)


def test_a_damaged_last_checkpoint_can_be_removed_to_go_on_from_the_one_before(
    train_run: TrainRun,
) -> None:
    whole = train_run("train.max_steps=8", runs="whole").run
    run = train_run("train.checkpoint_interval=3").run
    newest = checkpoints(run)[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"Remove .*{newest.name} to go on"):
        train_run("train.max_steps=8")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert_same_training(train_run("train.max_steps=8").run, whole)


def test_a_run_told_to_do_fewer_steps_than_it_has_done_is_summed_up(train_run: TrainRun) -> None:
    run = train_run().run
    (run / "model.safetensors").unlink()  # as if it had been stopped before any evaluation
    assert train_run("train.max_steps=2").steps == 6
    assert load_run(run).step == 6


def test_the_precision_asked_for_is_taken_also_by_a_run_that_goes_on(train_run: TrainRun) -> None:
    run = train_run().run
    train_run("train.dtype=auto", "train.max_steps=7")
    assert read_json(checkpoints(run)[-1] / "progress.json")["dtype"] == "fp32"
    train_run("train.dtype=bf16", "train.max_steps=8")
    assert read_json(checkpoints(run)[-1] / "progress.json")["dtype"] == "bf16"


def test_arithmetic_is_afterwards_as_it_was(train_run: TrainRun) -> None:
    smallest = 5e-324
    train_run("train.max_steps=1")
    assert smallest * 1.0 == smallest
    with pytest.raises(UserError):
        train_run("train.seq_len=5000", runs="other")
    assert smallest * 1.0 == smallest
    assert torch.tensor(1e-40).mul(0.5).item() > 0


def test_training_runs_in_a_thread_where_no_signal_can_be_caught(train_run: TrainRun) -> None:
    done: list[TrainSummary] = []
    thread = threading.Thread(target=lambda: done.append(train_run()))
    thread.start()
    thread.join(60)
    assert [summary.steps for summary in done] == [6]


def test_signals_are_handled_afterwards_as_they_were(train_run: TrainRun) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train_run("train.max_steps=1")
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


def test_a_summary_that_has_never_fired_does_not_keep_a_run_from_going_on(
    train_run: TrainRun,
) -> None:
    literal = "train.implementation=reference"  # gives no gradient, where `windowed` gives zeros
    train_run(literal, "train.max_steps=2")
    assert train_run(literal, "train.max_steps=4").steps == 4
