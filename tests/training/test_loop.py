"""A training learns, writes what it documents, and handles text, batches and divergence."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.gendata_runs import fill, llm, make_plan, write_kinds
from support.training_runs import (
    ROW,
    RUN_FOLDER,
    TrainRun,
    assert_same_training,
    column,
    initial_model,
    last_tensors,
    rows_of,
    snapshot,
    write_corpus,
)

from ys_llm.config.sources import load_config
from ys_llm.data.batches import BatchPlan, batch_at, batches_per_epoch
from ys_llm.data.readers import read_documents
from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.data.split import split_documents
from ys_llm.data.split_cache import load_split
from ys_llm.errors import EXIT_DIVERGED, UserError
from ys_llm.evaluation.bits_per_byte import evaluate_paths
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import load_run, read_json, read_tensors
from ys_llm.system.lock import RUN_LOCK
from ys_llm.training.loop import TrainSummary


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
        "model.options.three_tier.d_state=32",
    )
    assert summary.val_bits_per_byte is not None
    assert summary.val_bits_per_byte < 0.5 * summary.baselines["unigram"]
    assert {path.name for path in summary.run.iterdir()} == RUN_FOLDER
    latest = ["step-00000100", "step-00000150"]  # before them, if it is another, the best
    assert [path.name for path in checkpoints(summary.run)][-2:] == latest
    rows = rows_of(summary.run)
    assert [row["step"] for row in rows] == list(range(1, 151))
    for row in rows:
        evaluated = {"val_loss", "val_bits_per_byte"} if row["step"] % 50 == 0 else set()
        sampled = {"sample"} if row["step"] == 100 else set()
        assert row.keys() == ROW | evaluated | sampled
    assert (summary.steps, summary.tokens) == (150, 150 * 8 * 32)
    assert load_run(summary.run).step in (50, 100, 150)
    captured = capsys.readouterr()
    assert captured.out == ""
    words = ("corpus", "leak check", "baselines", "model", "cost", "plan", "device", "backend")
    for word in words:
        assert f"\n{word:<13}" in f"\n{captured.err}"
    assert "\nsample       '' -> '" in captured.err
    assert captured.err.splitlines()[-1] == "try it       ys run mine"


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


PLAN = BatchPlan("shuffled", seq_len=16, batch_size=4, seed=1337, end_id=0)


def training_data_of(run: Path, corpus: Path, *, fraction: float = 0.2) -> TokenShard:
    """The shard that the run was trained on, from its own cache."""
    split = split_documents(read_documents(corpus), validation_fraction=fraction)
    tokenizer = load_run(run).tokenizer
    made = set((run / "cache").iterdir())
    data = load_or_tokenize(split.training, tokenizer, cache_dir=run / "cache", label="training")
    assert set((run / "cache").iterdir()) == made
    return data


def test_one_sequence_a_batch_trains(train_run: TrainRun) -> None:
    run = train_run("train.batch_size=1", "train.seq_len=1", "train.max_steps=3").run
    assert column(run, "tokens") == [1, 2, 3]


@pytest.mark.parametrize("batching", ["shuffled", "contiguous"])
@pytest.mark.parametrize(
    "too_long",
    [
        "train.seq_len=5000",
        "train.stages=[{seq_len: 8, batch_size: 2, steps: 3}, "
        "{seq_len: 5000, batch_size: 2, steps: 3}]",
    ],
    ids=["at-once", "in-a-later-stage"],
)
def test_too_little_text_is_refused_before_the_first_step(
    train_run: TrainRun, tmp_path: Path, too_long: str, batching: str
) -> None:
    with pytest.raises(UserError) as caught:
        train_run(too_long, f"data.batching={batching}")
    message = str(caught.value)
    assert "\n" not in message
    assert "training split has" in message
    assert "5000" in message
    assert "--set train.seq_len=" in message
    left = {path.name for path in (tmp_path / "runs" / "mine").iterdir()}
    assert left == {RUN_LOCK, "cache"}, "the vocabulary of this text would be kept for the next"


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
    common = ("data.batching=contiguous", "train.checkpoint_interval=1")
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


def test_the_card_tells_what_wrote_the_training_documents(
    train_run: TrainRun, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = write_kinds(tmp_path / "kinds")
    with llm() as server:
        fill(make_plan(kinds, count=12), corpus / "made", server)
    run = train_run().run
    output = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("written by")
    ]
    training = split_documents(read_documents(corpus), validation_fraction=0.2).training
    by_file = Counter(Path(document.source).name.split("-")[0] for document in training)
    named = {name: count for name, count in by_file.items() if name in ("spell", "tale", "retold")}
    unknown = len(training) - sum(named.values())
    assert len(named) == 3 and unknown > 20

    sources = read_json(run / "config.json")["sources"]
    assert {source["kind"]: source["records"] for source in sources} == {**named, "": unknown}
    assert {source["model"] for source in sources if source["kind"] == "spell"} == {""}
    assert {source["model"] for source in sources if source["kind"] == "tale"} == {"tiny"}
    asked = named["tale"] + named["retold"]
    assert f"tiny {asked} records of 2 kinds" in output[0] and len(output) == 1
    assert f"programs {named['spell']} records of 1 kind," in output[0]
    assert output[0].endswith(f"unknown {unknown}")
    card = (run / "README.md").read_text(encoding="utf-8")
    assert f"| spell | {named['spell']} | a program | " in card
    digest = next(source["model_digest"] for source in sources if source["kind"] == "tale")
    assert f"| tale | {named['tale']} | tiny, digest {digest[:12]} | " in card
    assert f"| unknown | {unknown} | not in the manifest" in card


def test_without_a_manifest_the_header_has_no_writers(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run().run
    assert "written by" not in capsys.readouterr().err
    assert read_json(run / "config.json")["sources"] == []
    assert "written by" not in (run / "README.md").read_text(encoding="utf-8")


def test_a_manifest_of_another_program_does_not_prevent_training(
    train_run: TrainRun, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "MANIFEST.jsonl").write_text('{"name": "something else"}\n')
    run = train_run().run
    output = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("written by")
    ]
    assert len(output) == 1 and "MANIFEST.jsonl:1" in output[0]
    assert "written by" not in (run / "README.md").read_text(encoding="utf-8")


def test_a_card_refers_to_the_run_that_it_was_initialised_from(
    train_run: TrainRun, corpus: Path, tmp_path: Path
) -> None:
    train_run("run=first")
    fill(make_plan(write_kinds(tmp_path / "kinds"), "spell"), corpus)
    run = train_run("run=second", "train.init_from=first").run
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "It started from the weights of `first`: see its card" in card


def test_divergence_has_its_exit_code_and_keeps_the_last_checkpoint(train_run: TrainRun) -> None:
    gentle = ("train.checkpoint_interval=1000", "train.eval_interval=1000")
    run = train_run(*gentle).run
    before = snapshot(run / "checkpoints")
    with pytest.raises(
        UserError, match=r"training diverged at step .* after 3 rollbacks.* ys train --run"
    ) as caught:
        train_run(*gentle, "train.learning_rate=1e38", "train.max_steps=50")
    assert caught.value.exit_code == EXIT_DIVERGED
    assert snapshot(run / "checkpoints") == before
    assert train_run(*gentle, "train.max_steps=8").steps == 8
    assert column(run, "step") == list(range(1, 9))


def test_a_non_finite_evaluation_is_a_divergence_too(train_run: TrainRun) -> None:
    run = train_run().run
    before = snapshot(run / "checkpoints")
    every_step = ("train.eval_interval=1", "train.checkpoint_interval=1", "train.max_steps=50")
    with pytest.raises(
        UserError, match=r"diverged.*validation loss nan|weight is not finite"
    ) as caught:
        train_run(*every_step, "train.learning_rate=1e38")
    assert caught.value.exit_code == EXIT_DIVERGED
    assert snapshot(run / "checkpoints") == before


def test_training_runs_in_a_thread_where_no_signal_can_be_caught(train_run: TrainRun) -> None:
    done: list[TrainSummary] = []
    thread = threading.Thread(target=lambda: done.append(train_run()))
    thread.start()
    thread.join(60)
    assert [summary.steps for summary in done] == [6]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_held_out_figure_is_the_one_that_eval_prints(
    train_run: TrainRun, corpus: Path, tmp_path: Path, dtype: str
) -> None:
    summary = train_run(f"train.dtype={dtype}", "train.backend={}", "train.eval_interval=3")
    held_out = load_split(load_config(summary.run / "config.yaml").config.data).validation
    write_corpus(tmp_path / "held-out", [document.text for document in held_out])
    (again,) = evaluate_paths(load_run(summary.run), [tmp_path / "held-out"])
    assert again.documents == len(held_out)
    assert again.result.loss == summary.val_loss
    assert again.result.bits_per_byte == summary.val_bits_per_byte
