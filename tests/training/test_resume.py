"""A run resumes where it stopped, bit for bit, or is refused with a reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.forked import ForkServer, until
from support.training_runs import (
    NEVER,
    ROOT,
    TrainRun,
    assert_same_training,
    column,
    last_tensors,
    rows_of,
    sentences,
    settings,
    snapshot,
    write_corpus,
)

from ys_llm.config.schema import Config, DataConfig, GenerateConfig
from ys_llm.config.sources import load_config, to_mapping, to_yaml
from ys_llm.config.strict_reader import flatten
from ys_llm.data import readers, split_cache
from ys_llm.data.split import BY_CONTENT_HASH, BY_DOCUMENT_ID, SplitRecord
from ys_llm.data.split_cache import load_split
from ys_llm.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USAGE, UserError
from ys_llm.inference.engine import Engine
from ys_llm.mixers.protocol import mixer_names
from ys_llm.ops.three_tier import select
from ys_llm.runs.folder import checkpoints, list_removals, remove
from ys_llm.runs.history import read_metrics
from ys_llm.runs.model_files import load_run, read_json
from ys_llm.system.files import sha256_of
from ys_llm.training import samples
from ys_llm.training.loop import train
from ys_llm.training.resume import FIXED, NOT_FIXED, ORDER, reason_fixed


def test_a_finished_run_is_left_as_it_is_and_summed_up_again(train_run: TrainRun) -> None:
    first = train_run()
    before = snapshot(first.run)
    assert train_run() == first
    assert snapshot(first.run) == before


_FURTHER_PARTS = (
    "model.mlp=channel_mix",
    f"model.layer_order={[*range(len(mixer_names())), 1]}",
    "model.prediction_heads=2",
    "model.cross.layers=2",
)


@pytest.mark.parametrize("mixer", [*mixer_names(), ", ".join(mixer_names())])
@pytest.mark.parametrize(
    "batching",
    ["contiguous", *(pytest.param(b, marks=pytest.mark.slow) for b in ("shuffled", "documents"))],
)
def test_more_steps_continue_as_if_requested_at_once(
    train_run: TrainRun, batching: str, mixer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SAMPLE_TOKENS", 4)
    common = (
        f"data.batching={batching}",
        f"model.layers=[{mixer}]",
        f"model.n_layers={max(2, mixer.count(',') + 1)}",
        "model.dropout=0.2",
        f"model.copy.window={20 if ',' in mixer else 0}",
        f"model.copy.keep={'surprising' if ',' in mixer else 'recent'}",
        f"model.convolution={3 if ',' in mixer else 0}",
        *(_FURTHER_PARTS if "," in mixer else ()),
        "train.grad_accum_steps=2",
        "train.sample_interval=2",
        "train.eval_interval=4",
    )
    whole = train_run(*common, "train.max_steps=6", runs="whole")
    train_run(*common, "train.max_steps=3")
    parts = train_run(*common, "train.max_steps=6")
    assert_same_training(parts.run, whole.run)
    carried = [name for name in last_tensors(parts.run) if "carried" in name]
    assert bool(carried) is (batching in ("contiguous", "documents"))


def test_a_cooldown_from_a_checkpoint_is_that_of_a_run_which_was_to_end_there(
    train_run: TrainRun,
) -> None:
    common = (
        *("train.checkpoint_interval=5", "train.keep_checkpoints=9"),
        "train.cooldown_fraction=0.25",
    )
    whole = train_run(*common, "train.max_steps=8", runs="whole")
    train_run(*common, "train.max_steps=12")  # constant until step 9
    parts = train_run(*common, "train.max_steps=8", resume_step=5)
    assert_same_training(parts.run, whole.run)


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
    try:
        _, output = process.communicate(timeout=60)
    finally:
        process.kill()  # else one that ignored the signal would train for ever
    return process.returncode, output


@pytest.mark.parametrize(
    ("batching", "sent", "exit_code"),
    [
        ("shuffled", signal.SIGINT, EXIT_INTERRUPTED),
        pytest.param("contiguous", signal.SIGTERM, EXIT_TERMINATED, marks=pytest.mark.slow),
        pytest.param("shuffled", signal.SIGHUP, 128 + signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_killed_and_then_stopped_equals_one_that_never_was(
    tmp_path: Path, train_run: TrainRun, batching: str, sent: signal.Signals, exit_code: int
) -> None:
    common = (
        f"data.batching={batching}",
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
    code, output = interrupted(tmp_path, config, sent, after=len(rows_of(run)) + 6)
    assert code == exit_code
    stopped = read_json(checkpoints(run)[-1] / "progress.json")["step"]
    assert stopped > saved > 0
    assert f"resuming     from step {saved:,} of" in output
    assert f"stopped by {sent.name} at step {stopped:,}, saved" in output
    assert load_run(run).step <= stopped, "there is a model to try"
    assert output.splitlines()[-1].endswith("type: ys train --run mine")
    assert "Traceback" not in output

    parts = train_run(*common, f"train.max_steps={stopped + 5}")
    whole = train_run(*common, f"train.max_steps={stopped + 5}", runs="whole")
    assert parts.run == run
    assert column(run, "step") == list(range(1, stopped + 6))
    assert_same_training(run, whole.run)


def test_a_run_stopped_before_its_first_evaluation_has_a_model(
    tmp_path: Path, corpus: Path, forks: ForkServer
) -> None:
    never = (f"train.{name}={NEVER}" for name in ("max_steps", "eval_interval", "sample_interval"))
    words = [word for setting in settings(corpus, (*never,)) for word in ("--set", setting)]
    child = forks.start("train", *words, folder=tmp_path)
    run = tmp_path / "runs" / "mine"
    until(lambda: (run / "metrics.jsonl").exists() and len(rows_of(run)) >= 2)
    child.send(signal.SIGINT)
    assert child.wait().code == EXIT_INTERRUPTED
    assert not [row for row in read_metrics(run / "metrics.jsonl") if "val_loss" in row]
    assert Engine(load_run(run)).answer("the", GenerateConfig(max_tokens=3)).answer_tokens > 0


def test_another_batch_size_drops_the_carried_state(train_run: TrainRun) -> None:
    train_run("data.batching=contiguous")
    summary = train_run("data.batching=contiguous", "train.batch_size=2", "train.max_steps=8")
    assert column(summary.run, "tokens")[-1] == 6 * 64 + 2 * 32


def test_another_architecture_is_refused_by_the_names_of_what_changed(train_run: TrainRun) -> None:
    before = snapshot(train_run().run)
    with pytest.raises(UserError) as caught:
        summary = train_run("model.d_mlp=32", "model.options.three_tier.d_state=8")
        before = snapshot(summary.run)
    message = str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE
    assert "model.d_mlp was 24 and is now 32" in message
    assert "model.options.three_tier.d_state was 16 and is now 8" in message
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


def test_a_text_that_grows_keeps_what_was_held_out(
    train_run: TrainRun, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(corpus)
    text = "\n".join(sentences(600)) + "\n"
    write_corpus(corpus, [text])
    run = train_run("train.max_steps=2").run
    write_corpus(corpus, [text + "\n".join(sentences(300, seed=1))])
    capsys.readouterr()
    train_run("train.max_steps=4")
    output = capsys.readouterr().err
    assert "changed      training text was" in output
    assert "held-out text was" not in output
    record = SplitRecord.load(run / "split.json")
    held_out = load_split(DataConfig(path=str(corpus)), record=record).validation
    assert len(held_out) == 1 and text.endswith(held_out[0].text)


def test_a_second_start_does_not_read_a_large_text_that_has_not_changed(
    train_run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with the same bits as a run that read it; after `clean` it is read."""
    whole = train_run("train.max_steps=8", runs="whole").run
    monkeypatch.setattr(readers, "SPOOL_BYTES", 1)
    monkeypatch.setattr(split_cache, "_SETTLED_NANOSECONDS", -(10**18))
    train_run("train.max_steps=4")

    def must_not(path: Path) -> Any:
        raise AssertionError(f"{path} is read")

    with monkeypatch.context() as patch:
        patch.setattr(readers, "read_blocks", must_not)
        again = train_run("train.max_steps=8").run
        assert_same_training(again, whole)
        remove(list_removals(again, "model", corpus=tmp_path / "texts"))
        with pytest.raises(AssertionError, match="is read"):
            train_run("train.max_steps=8")


def test_a_run_without_a_record_of_its_split_keeps_the_split_it_had(train_run: TrainRun) -> None:
    run = train_run("train.max_steps=2").run
    assert SplitRecord.load(run / "split.json").version == BY_DOCUMENT_ID
    (run / "split.json").unlink()
    train_run("train.max_steps=4")
    assert SplitRecord.load(run / "split.json").version == BY_CONTENT_HASH


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train_run("train.max_steps=8", runs="whole").run
    run = train_run("train.checkpoint_interval=3", "train.keep_checkpoints=3").run
    newest = checkpoints(run)[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    assert_same_training(train_run("train.max_steps=8").run, whole)
    output = capsys.readouterr().err
    assert (
        f"\ndamaged      {newest}/optimizer.safetensors does not match SHA256SUMS; moved" in output
    )
    assert "\nresuming     from step 3 of 8" in output
    assert (run / "superseded" / newest.name / "progress.json").exists()


def test_where_every_checkpoint_is_damaged_the_model_still_works(
    train_run: TrainRun,
) -> None:
    run = train_run().run
    for path in checkpoints(run):
        (path / "SHA256SUMS").unlink()
    with pytest.raises(
        UserError, match=r"all 2 checkpoints of .* are damaged.*ys run mine.*ys train clean"
    ):
        train_run("train.max_steps=8")
    assert load_run(run).step == 6


def test_a_run_whose_checkpoints_are_gone_is_refused_and_not_overwritten(
    train_run: TrainRun, corpus: Path
) -> None:
    run = train_run().run
    shutil.rmtree(run / "checkpoints")
    before = snapshot(run)
    with pytest.raises(UserError) as caught:
        train_run("train.max_steps=8")
    assert snapshot(run) == before
    assert str(caught.value) == (
        f"{run} has model.safetensors, config.json, metrics.jsonl, but no checkpoint to resume "
        f"from. Put them back into {run}/checkpoints, or start a new run from its weights: "
        f"ys train --init-from mine --data {corpus}, "
        "or remove these files and start again: ys train clean --run mine"
    )
    assert column(train_run(clean="model").run, "step") == list(range(1, 7))


@pytest.mark.parametrize("left", ["config.json", "metrics.jsonl"])
def test_without_weights_no_run_is_started_from_them(train_run: TrainRun, left: str) -> None:
    run = train_run().run
    shutil.rmtree(run / "checkpoints")
    for name in {"model.safetensors", "config.json", "metrics.jsonl"} - {left}:
        (run / name).unlink()
    with pytest.raises(UserError, match=f"has {left}, but no checkpoint") as caught:
        train_run()
    assert "--init-from" not in str(caught.value)


def test_a_clean_that_was_interrupted_is_finished(
    train_run: TrainRun, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run().run
    removals = list_removals(run, "model", corpus=corpus)
    monkeypatch.setattr(shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        remove(removals[:2])
    monkeypatch.undo()
    assert (run / "model.safetensors").exists()
    assert column(train_run("train.max_steps=3").run, "step") == [1, 2, 3]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_refused_run_keeps_its_configuration(train_run: TrainRun) -> None:
    run = train_run().run
    for path in checkpoints(run):
        (path / "SHA256SUMS").unlink()
    before = snapshot(run)
    with pytest.raises(UserError, match="are damaged"):
        train_run("train.learning_rate=0.5")
    assert snapshot(run) == before


@pytest.mark.parametrize("damage", ["progress", "tensors", "rollbacks"])
def test_a_checkpoint_that_cannot_be_used_keeps_the_configuration_too(
    train_run: TrainRun, damage: str
) -> None:
    run = train_run().run
    newest = checkpoints(run)[-1]
    if damage == "progress":
        text = (newest / "progress.json").read_text()
        rewrite(newest / "progress.json", text.replace('"tokens"', '"tokans"'))
    elif damage == "tensors":
        old = sha256_of(newest / "tensors.safetensors")
        save_file({"unknown": torch.zeros(1)}, newest / "tensors.safetensors")
        sums = newest / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(old, sha256_of(newest / "tensors.safetensors")))
    else:
        (run / "rollbacks.json").write_text('{"rollbacks": [{"unknown": 1}]}')
    before = snapshot(run)
    with pytest.raises(UserError):
        train_run("train.learning_rate=0.5", "train.max_steps=9")
    assert snapshot(run) == before


def test_a_run_with_fewer_steps_than_it_has_done_is_summed_up(train_run: TrainRun) -> None:
    run = train_run().run
    (run / "model.safetensors").unlink()  # as if it had been stopped before any evaluation
    assert train_run("train.max_steps=2").steps == 6
    assert load_run(run).step == 6


def test_the_precision_asked_for_is_taken_also_by_a_run_that_goes_on(train_run: TrainRun) -> None:
    run = train_run().run
    train_run("train.dtype=auto", "train.max_steps=7")
    assert read_json(checkpoints(run)[-1] / "progress.json")["environment"]["dtype"] == "fp32"
    train_run("train.dtype=bf16", "train.max_steps=8")
    assert read_json(checkpoints(run)[-1] / "progress.json")["environment"]["dtype"] == "bf16"


def test_a_summary_that_has_never_fired_does_not_keep_a_run_from_going_on(
    train_run: TrainRun,
) -> None:
    literal = (
        "train.backend={three_tier: reference}"  # gives no gradient, where `windowed` gives zeros
    )
    train_run(literal, "train.max_steps=2")
    assert train_run(literal, "train.max_steps=4").steps == 4


def test_rewinding_repeats_the_run_and_archives_what_it_supersedes(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("train.checkpoint_interval=2", "train.keep_checkpoints=9", "train.eval_interval=4")
    run = train_run(*common, "train.max_steps=8").run
    before, metrics = last_tensors(run), rows_of(run)
    assert train_run(*common, "train.max_steps=8", resume_step=4).run == run
    assert (
        f"rewinding    to step 4; 2 newer moved to {run / 'superseded'}" in capsys.readouterr().err
    )
    after = last_tensors(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert column(run, "loss") == [row["loss"] for row in metrics]
    left = run / "superseded"
    assert {path.name for path in left.iterdir()} == {
        "step-00000006",
        "step-00000008",
        "metrics-after-00000004.jsonl",
    }
    assert read_metrics(left / "metrics-after-00000004.jsonl") == metrics[4:]


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(train_run: TrainRun) -> None:
    run = train_run("train.checkpoint_interval=2", "train.keep_checkpoints=2").run
    before = snapshot(run)
    with pytest.raises(
        UserError, match=r"no checkpoint of step 3. Choose one of: 4, 6\."
    ) as caught:
        train_run(resume_step=3)
    assert caught.value.exit_code == EXIT_USAGE
    assert snapshot(run) == before


def test_changes_are_listed_and_harmless_ones_are_accepted(
    train_run: TrainRun, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run()
    capsys.readouterr()
    write_corpus(corpus, sentences(60, seed=3))
    train_run("train.learning_rate=1e-3", "train.seed=7", "train.max_steps=8", "model.dropout=0.1")
    output = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed")]
    assert output[:4] == [
        "changed      model.dropout was 0.0 and is now 0.1",
        "changed      train.learning_rate was 0.003 and is now 0.001",
        "changed      train.max_steps was 6 and is now 8",
        "changed      train.seed was 1337 and is now 7",
    ]
    assert output[4].endswith("step N reads batch N of the new order")
    assert "changed      training text was 31 documents, 1," in output[5]
    assert output[-1].startswith("changed      each document stays on its side of the split")
    capsys.readouterr()
    train_run("train.learning_rate=1e-3", "train.seed=7", "train.max_steps=8", "model.dropout=0.1")
    assert "\nchanged " not in capsys.readouterr().err


def test_another_machine_resumes_with_a_warning_that_bits_differ(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run().run
    newest = checkpoints(run)[-1]
    text = (newest / "progress.json").read_text()
    text = text.replace(f'"torch": "{torch.__version__}"', '"torch": "2.11.0"')
    rewrite(newest / "progress.json", text)
    capsys.readouterr()
    assert train_run("train.max_steps=8").steps == 8
    output = capsys.readouterr().err
    assert f"changed      torch was 2.11.0 and is now {torch.__version__}" in output
    assert "changed      from here on the run is not bit for bit what it would have been" in output


def test_another_processor_chooses_dtype_and_backend_again(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ("train.backend={}", "train.dtype=auto")
    newest = checkpoints(train_run(*auto).run)[-1]
    progress = read_json(newest / "progress.json")
    progress["environment"] |= {
        "processor": "an abacus",
        "backends": {"three_tier": "reference"},
        "dtype": "fp32",
    }
    rewrite(newest / "progress.json", json.dumps(progress))
    capsys.readouterr()
    train_run(*auto, "train.max_steps=8")
    output = capsys.readouterr().err
    assert "changed      processor was an abacus and is now " in output
    assert re.search("backend      three_tier: (windowed|cpp)", output)


def rewrite(path: Path, text: str) -> None:
    """Change a file of a checkpoint as its owner might have written it, sum and all."""
    old = sha256_of(path)
    path.write_text(text)
    sums = path.parent / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(old, sha256_of(path)))


def test_every_setting_has_been_judged() -> None:
    """A new setting must be thought about: may a run that has begun change it?"""
    settings_now = set(flatten(to_mapping(Config())))
    fixed = {name for name in settings_now if reason_fixed(name)}
    assert fixed == {
        "data.validation_fraction",
        *(f"model.cross.{name}" for name in ("layers", "n_heads", "n_kv_heads", "window")),
        "model.cross.rope_theta",
        "model.copy.gate",
        "model.copy.keep",
        "model.convolution",
        "model.copy.width",
        "model.copy.window",
        "model.d_mlp",
        "model.d_model",
        "model.layer_order",
        "model.layers",
        "model.mlp",
        "model.n_layers",
        "model.options.three_tier.state_gate",
        "model.prediction_heads",
        "model.tie_embeddings",
        "model.block",
        *(f"sft.lora.{name}" for name in ("alpha", "rank", "targets")),
        "sft.method",
        "tokenizer.control_tokens",
        "tokenizer.kind",
        "tokenizer.vocab_size",
        "train.optimizer",
    }
    assert set(ORDER) <= settings_now


def test_the_page_on_training_says_what_may_not_change_and_why() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    text = text[text.index("| setting | reason |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w.*]+)`(?: but ([`\w., ]+))? \| (.+) \|$", text, re.MULTILINE)
    told = {name.removesuffix("*"): (exception, why) for name, exception, why in rows}
    for prefix, why in FIXED.items():
        free = [name for name in NOT_FIXED if name.startswith(prefix)]
        assert told[prefix] == (", ".join(f"`{name}`" for name in free), why)


def test_the_first_checkpoint_records_dtype_and_backend(
    train_run: TrainRun, tmp_path: Path
) -> None:
    run = train_run("train.backend={}", "train.max_steps=3").run
    first = checkpoints(run)[0]
    assert first.name == "step-00000000"
    recorded = read_json(first / "progress.json")["environment"]
    assert recorded["backends"]["three_tier"] in {*select.BACKENDS} - {"reference"}
    assert recorded["dtype"] == "fp32"


def test_runs_that_lie_among_the_texts_are_no_text(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `ys train --data .`: metrics.jsonl is no corpus."""
    monkeypatch.chdir(corpus)
    for steps in (2, 4):
        overrides = settings(Path("."), (f"train.max_steps={steps}",))
        assert train(load_config(None, overrides=overrides)).steps == steps


def test_rows_that_were_lost_or_cut_off_do_not_stop_a_run(train_run: TrainRun) -> None:
    run = train_run().run
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    assert train_run("train.max_steps=8").steps == 8
    assert column(run, "step")[-2:] == [7, 8]
