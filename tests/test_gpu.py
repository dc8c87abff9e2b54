"""The same code on CUDA: run by `scripts/check --gpu`; skipped with a reason elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import TrainRun, assert_same_training, column

from ys_llm.config import ModelConfig, Resolved, from_mapping
from ys_llm.model import Model
from ys_llm.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@pytest.mark.parametrize("mixer", ["three_tier", "softmax_attention"])
def test_a_model_says_the_same_on_both_devices(mixer: str) -> None:
    torch.manual_seed(0)
    model = Model(ModelConfig(d_model=32, n_layers=2, d_mlp=64, mixer=mixer), vocab_size=50)
    model = model.double()
    tokens_BT = torch.randint(50, (3, 70))
    starts_BT = torch.rand(3, 70) < 0.05
    logits_BTV, _ = model(tokens_BT, None, starts_BT)
    on_gpu_BTV, _ = model.cuda()(tokens_BT.cuda(), None, starts_BT.cuda())
    assert torch.allclose(on_gpu_BTV.cpu(), logits_BTV, atol=1e-10)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_on_cuda_learns(tmp_path: Path, dtype: str) -> None:
    text = "".join(f"the {n} cats sat on the {n} mats. " for n in range(500))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    config = from_mapping(
        {
            "run": "gpu",
            "data": {"path": str(tmp_path / "text.txt"), "validation_fraction": 0.0},
            "tokenizer": {"kind": "bytes"},
            "model": {"d_model": 32, "n_layers": 2, "d_mlp": 64, "options": {"d_state": 32}},
            "train": {
                "max_steps": 60,
                "seq_len": 64,
                "batch_size": 8,
                "device": "cuda",
                "dtype": dtype,
                "eval_interval": 60,
                "sample_interval": 0,
            },
        }
    )
    summary = train(Resolved(config, {}), runs_dir=tmp_path / "runs")
    losses = [
        float(line.split('"loss": ')[1].split(",")[0])
        for line in (summary.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert losses[-1] < losses[0] / 2


CUDA = ("train.device=cuda", "train.deterministic=true", "model.dropout=0.2", "data.layout=streams")


def test_a_resumed_run_is_bit_for_bit_the_same_with_deterministic_kernels(
    train_run: TrainRun,
) -> None:
    whole = train_run(*CUDA, "train.max_steps=9", runs="whole").run
    train_run(*CUDA, "train.max_steps=5")
    assert_same_training(train_run(*CUDA, "train.max_steps=9").run, whole)


def test_a_run_moves_between_devices_and_says_so(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run("train.max_steps=3")
    run = train_run(*CUDA[:1], "train.max_steps=6").run
    assert "changed      device was cpu and is now " in capsys.readouterr().err
    train_run("train.max_steps=9")
    assert "and is now cpu" in capsys.readouterr().err
    assert column(run, "step") == list(range(1, 10))
