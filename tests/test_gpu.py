"""The same code on CUDA: run by `scripts/check --gpu`; skipped with a reason elsewhere."""

from pathlib import Path

import pytest
import torch

from ys_llm.config import ModelConfig, Resolved, from_mapping
from ys_llm.model import Model
from ys_llm.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@pytest.mark.parametrize("mixer", ["three_tier", "softmax_attention"])
def test_a_model_says_the_same_on_both_devices(mixer):
    torch.manual_seed(0)
    model = Model(ModelConfig(d_model=32, n_layers=2, d_mlp=64, mixer=mixer), vocab_size=50)
    model = model.double()
    tokens_BT = torch.randint(50, (3, 70))
    starts_BT = torch.rand(3, 70) < 0.05
    logits_BTV, _ = model(tokens_BT, None, starts_BT)
    on_gpu_BTV, _ = model.cuda()(tokens_BT.cuda(), None, starts_BT.cuda())
    assert torch.allclose(on_gpu_BTV.cpu(), logits_BTV, atol=1e-10)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_on_cuda_learns(tmp_path: Path, dtype):
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
