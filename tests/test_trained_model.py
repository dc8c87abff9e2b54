"""What only a trained model shows: minutes of work, run by `scripts/check --slow`."""

import io
import resource
import sys
from pathlib import Path

import pytest
import torch

from ys_llm.config.schema import GenerateConfig
from ys_llm.config.sources import load_config
from ys_llm.inference.decoder import decoder_of
from ys_llm.inference.generate import generate, prefill
from ys_llm.inference.repl import run_once
from ys_llm.inference.repl_input import pieces_of
from ys_llm.runs.model_files import LoadedRun, load_run
from ys_llm.training.loop import TrainSummary, train

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    changes = [
        f"data.path={ROOT / 'training_data'}",
        "train.max_steps=100",
        "train.warmup_steps=10",
    ]
    resolved = load_config(ROOT / "configs/quickstart.yaml", overrides=changes)
    return train(resolved, runs_dir=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def loaded(summary: TrainSummary) -> LoadedRun:
    return load_run(summary.run)


def test_a_sixth_of_the_quickstart_beats_every_baseline(summary: TrainSummary) -> None:
    assert summary.val_bits_per_byte is not None
    assert summary.val_bits_per_byte < min(summary.baselines.values()) / 2


@pytest.mark.parametrize("with_decoder", [True, False])
def test_ten_thousand_decode_steps_give_what_one_forward_pass_gives(
    loaded: LoadedRun, with_decoder: bool
) -> None:
    decoder = decoder_of(loaded.model) if with_decoder else None
    prompt = [loaded.tokenizer.end_id, *loaded.tokenizer.encode("A fox"), loaded.tokenizer.start_id]
    sampling = GenerateConfig(max_tokens=10_000, seed=1)
    read = prefill(loaded.model, prompt)
    tokens = list(generate(loaded.model, read, sampling=sampling, end_ids=(), decoder=decoder))
    ids = torch.tensor([prompt + [token.id for token in tokens]])
    with torch.inference_mode():
        logits_BTV, _ = loaded.model(ids[:, :-1])
        logprobs_TV = logits_BTV[0, len(prompt) - 1 :].log_softmax(-1)
    full = logprobs_TV.gather(1, ids[0, len(prompt) :, None])[:, 0]
    stepwise = torch.tensor([token.logprob for token in tokens])
    assert len(tokens) == 10_000
    assert torch.allclose(stepwise, full, atol=1e-3)


def test_memory_does_not_grow_with_the_length_of_a_prompt(
    loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = GenerateConfig(max_tokens=5, seed=1)
    run_once(loaded, pieces_of(io.StringIO("Once upon a time. " * 6_000)), sampling)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_once(loaded, pieces_of(io.StringIO("Once upon a time. " * 60_000)), sampling)
    kib = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes, Linux KiB
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / kib < 16_384
    assert capsys.readouterr().out
