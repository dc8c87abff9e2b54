"""The forecast of a training: it touches nothing, and what it says is what then happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import ROOT, TrainRun, settings, snapshot, write_corpus

from ys_llm.cli import main
from ys_llm.config import Resolved, load_config
from ys_llm.dry_run import SNAKES_SETTINGS, dry_run
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.train import train

STAGES = (
    "train.stages=[{seq_len: 8, batch_size: 2, steps: 3}, {seq_len: 16, batch_size: 4, steps: 2}]"
)


def resolved(corpus: Path, *changes: str) -> Resolved:
    return load_config(None, overrides=settings(corpus, changes))


def test_nothing_is_left_on_the_disk(tmp_path: Path, corpus: Path) -> None:
    before = snapshot(tmp_path)
    dry_run(resolved(corpus), runs_dir=tmp_path / "runs")
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def test_a_run_that_exists_is_forecast_with_its_own_tokenizer_and_left_alone(
    tmp_path: Path, corpus: Path, train_run: TrainRun
) -> None:
    run = train_run("tokenizer.kind=chars").run
    before = snapshot(tmp_path)
    (corpus / "new.txt").write_text("Ünï çödé")  # letters that its tokenizer has not got
    text = dry_run(resolved(corpus, "tokenizer.kind=chars"), runs_dir=run.parent)
    (corpus / "new.txt").unlink()
    assert snapshot(tmp_path) == before
    described = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert f"parameters   {described['parameters']:,}: " in text


def test_it_says_what_the_training_then_has(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = dry_run(resolved(corpus), runs_dir=tmp_path / "runs")
    capsys.readouterr()
    summary = train(resolved(corpus), runs_dir=tmp_path / "runs")
    said = capsys.readouterr().err
    assert f"parameters   {summary.parameters:,}: " in text
    tokens = re.search(r"epoch +([\d,]+) tokens, ([\d.]+) steps", text)
    assert tokens is not None
    assert f"data         {tokens[1]} training tokens" in said
    assert f"{tokens[2]} steps per epoch" in said
    assert re.search(r"state +192 bytes per sequence after 16 tokens", text)
    for shape in SNAKES_SETTINGS:
        assert re.search(rf"^ +{shape[0]:,} +{shape[1]:,} +[\d.]+ GB$", text, re.MULTILINE)


@pytest.mark.parametrize("layout", ["windows", "streams"])
def test_the_time_of_every_stage_evaluation_and_checkpoint_is_in_it(
    tmp_path: Path, corpus: Path, layout: str
) -> None:
    changes = (STAGES, f"data.layout={layout}", "train.checkpoint_interval=2")
    text = dry_run(resolved(corpus, *changes), runs_dir=tmp_path / "runs")
    found = re.search(
        r"time +([\d.]+) s: preparing ([\d.]+) s, 5 steps ([\d.]+) s, evaluations ([\d.]+) s, "
        r"checkpoints ([\d.]+) s",
        text,
    )
    assert found is not None, text
    total, *parts = map(float, found.groups())
    assert total == pytest.approx(sum(parts), abs=0.3)  # each is rounded to a tenth


def test_what_training_would_refuse_is_refused(
    tmp_path: Path, corpus: Path, train_run: TrainRun
) -> None:
    with pytest.raises(UserError, match="training split has"):
        dry_run(resolved(corpus, "train.seq_len=5000"), runs_dir=tmp_path / "runs")
    train_run()
    with pytest.raises(UserError, match=r"model\.d_mlp was 24 and is now 32") as caught:
        dry_run(resolved(corpus, "model.d_mlp=32"), runs_dir=tmp_path / "runs")
    assert caught.value.exit_code == EXIT_USAGE


def test_the_forecast_is_the_result_and_goes_to_stdout(
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for change in settings(corpus, ()) for word in ("--set", change)]
    assert main(["train", "--dry-run", *words]) == 0
    assert capsys.readouterr().out.startswith("parameters   ")
    assert {path.name for path in tmp_path.iterdir()} == {"corpus"}


def test_auto_takes_the_largest_batch_once_and_writes_it_down(
    train_run: TrainRun, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = (
        "train.batch_size=auto",
        "train.max_steps=1",
        "train.seq_len=16",
        "train.warmup_steps=0",
    )
    limit = "train.memory_limit_gb=0.9"
    run = train_run(*auto, limit).run
    size = load_config(run / "config.yaml").config.train.batch_size
    assert isinstance(size, int)
    assert size > 1
    assert f"batch size   {size}: the largest that fits" in capsys.readouterr().err
    train_run(*auto[:1], "train.max_steps=2", "train.memory_limit_gb=0.8")
    assert load_config(run / "config.yaml").config.train.batch_size == size
    assert f"batch size   {size}" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_time_forecast_is_within_a_quarter_of_the_time_it_takes(tmp_path: Path) -> None:
    """On a machine without other work; the default model for 30 steps."""
    write_corpus(tmp_path / "texts", ["The cat sat on the mat and saw birds. " * 900] * 12)
    command = [sys.executable, "-m", "ys_llm", "train", "--data", "texts", "--run", "timed"]
    for change in ("train.max_steps=30", "train.eval_interval=10", "tokenizer.kind=bytes"):
        command += ["--set", change]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    forecast = subprocess.run(
        [*command, "--dry-run"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    found = re.search(r"time +([\d.]+) (s|min)", forecast.stdout)
    assert found is not None, forecast.stdout
    expected = float(found[1]) * (60 if found[2] == "min" else 1)
    began = time.perf_counter()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    took = time.perf_counter() - began - 3  # Python and torch come up
    assert expected == pytest.approx(took, rel=0.25)
