"""A new mixer, and a hybrid of three, are two new files each: nothing else is edited."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import matrix_memory
from support.training_runs import ROOT, sentences, write_corpus

from ys_llm.mixers import protocol, softmax_attention, three_tier

CONFIG = """\
run: {name}
data: {{path: corpus, batching: {batching}}}
tokenizer: {{kind: bytes}}
model:
  d_model: 16
  n_layers: {n_layers}
  d_mlp: 24
  layers: [{layers}]
  options:
    matrix_memory: {{d_key: 8}}
train:
  max_steps: 3
  seq_len: 24
  batch_size: 4
  learning_rate: 0.01
  warmup_steps: 1
  eval_interval: 3
  checkpoint_interval: 2
  sample_interval: 0
  threads: 1
  dtype: fp32
  device: cpu
"""
CONFIGS = {
    "mine": CONFIG.format(name="mine", batching="shuffled", n_layers=2, layers="matrix_memory"),
    "hybrid": CONFIG.format(
        name="hybrid",
        batching="contiguous",
        n_layers=4,
        layers="three_tier, softmax_attention, matrix_memory",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ("ys_llm", "configs", "tests"):  # with what Python has compiled of them
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "tests/support/matrix_memory.py", folder / "ys_llm/mixers")
    for name, text in CONFIGS.items():
        (folder / "configs" / f"{name}.yaml").write_text(text)
    write_corpus(folder / "corpus", sentences(20))
    return folder


def as_the_protocol(
    mixer: matrix_memory.Mixer | softmax_attention.Mixer | three_tier.Mixer,
) -> protocol.Mixer:
    """For mypy: what one of them lacks of the protocol is an error of types here."""
    return mixer


def python(copy: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_mixer_meets_the_contract(copy: Path) -> None:
    tests = [f"tests/mixers/test_{name}.py" for name in ("mixers", "wrapped_mixers")]
    words = ("-q", "-p", "no:cacheprovider", *tests, "-k", "matrix_memory")
    said = python(copy, "-m", "pytest", *words)
    n_passed = int(said.rpartition(" passed")[0].split()[-1])
    assert n_passed > 40


@pytest.mark.parametrize("config", CONFIGS)
def test_a_new_model_trains_resumes_generates_and_is_evaluated(copy: Path, config: str) -> None:
    (copy / "prompts.txt").write_text("the cat\na dog sat on the mat\nno\n")
    commands = [
        ["train", "--config", config],
        ["train", "--config", config, "--set", "train.max_steps=5"],
        ["run", config, "--prompts", "prompts.txt", "--max-tokens", "12", "--seed", "1"],
        ["eval", config, "corpus/00.txt"],
    ]
    code = (  # one process: most of the time of a command goes into importing torch
        "import json, sys\n"
        "from ys_llm.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    assert main(words) == 0, words\n"
    )
    said = python(copy, "-c", code, json.dumps(commands))
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(answers) == 3
    rows = (copy / "runs" / config / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5]
    card = (copy / "runs" / config / "README.md").read_text()
    assert "matrix_memory" in card
