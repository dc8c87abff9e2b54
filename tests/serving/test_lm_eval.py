"""lm-evaluation-harness, unchanged, scores a model behind `ys serve` as `ys` itself does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from math import log
from pathlib import Path

import pytest
from support.served import Served

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.engine import Engine

WHY = "lm_eval is not on the path: pip install 'lm-eval[api]' transformers, in any environment"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("lm_eval"), reason=WHY)]
TEXTS = ("The cat sat on the mat.", "École, and the fox slept.\nThen it sang of the sea.")
CHOICES = (" the cat", " a fox of the night", " sat on")
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
{how}
metadata: {{version: 1}}
"""
ROLLING = """\
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
CHOOSING = """\
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def nats(engine: Engine, text: str, begin: int) -> float:
    """Of the tokens of a text from number `begin` on, which is read after `<end>`."""
    config = GenerateConfig(max_tokens=0)
    scored = engine.answer(text, config, raw=True, logprobs=0).prompt_logprobs
    assert scored is not None
    return -sum(one.logprob or 0.0 for one in scored[1 + begin :])


def test_its_scores_are_our_own(server: Served, engine: Engine, tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "tasks", engine.loaded.tokenizer
    folder.mkdir()
    shutil.copy(engine.loaded.path / "tokenizer.json", tmp_path)
    names = {"bos_token": "<end>", "eos_token": "<end>"}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    questions = [{"question": text, "choices": CHOICES, "answer": 0} for text in TEXTS]
    for name, kind, how, documents in (
        ("rolling", "loglikelihood_rolling", ROLLING, [{"text": text} for text in TEXTS]),
        ("choosing", "multiple_choice", CHOOSING, questions),
    ):
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, documents)))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind=kind, how=how))
    model = f"model=small,base_url={server.url}/v1/completions,tokenizer={tmp_path}"
    command = ["lm_eval", "--model", "local-completions", "--model_args", model]
    command += ["--tasks", "rolling,choosing", "--include_path", str(folder)]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment |= {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    own = sum(nats(engine, text, 0) for text in TEXTS) / log(2) / n_bytes
    assert scores["rolling"]["bits_per_byte,none"] == pytest.approx(own, rel=1e-4)
    best = [
        min(CHOICES, key=lambda end: nats(engine, text + end, len(tokenizer.encode(text))))
        for text in TEXTS
    ]
    expected = sum(one == CHOICES[0] for one in best) / len(TEXTS)
    assert scores["choosing"]["acc,none"] == expected
