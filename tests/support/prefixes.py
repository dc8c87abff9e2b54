"""Models, prompts and comparisons for the tests of saved prompts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from ys_llm.config.schema import Config, CopyConfig, ModelConfig
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference.generate import Prefilled
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten
from ys_llm.runs.model_files import LoadedRun

VOCAB_SIZE = 60
LAYERS = [*((name,) for name in mixer_names()), tuple(mixer_names())]
by_layers = pytest.mark.parametrize("layers", LAYERS, ids="+".join)
ROOMY = 1 << 30
IDS = torch.randint(VOCAB_SIZE, (700,), generator=torch.Generator().manual_seed(2)).tolist()


@cache
def model_of(layers: tuple[str, ...]) -> Model:
    """In float32, where another order of the same sums has other bits."""
    torch.manual_seed(1)
    # a copy tier above all mixers together
    tier = CopyConfig(50, 8, "surprising") if len(layers) > 1 else CopyConfig()
    config = ModelConfig(
        d_model=32,
        n_layers=max(2, len(layers)),
        d_mlp=48,
        layers=layers,
        copy=tier,
    )
    model = Model(config, vocab_size=VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loaded_run(layers: tuple[str, ...] = ("three_tier",)) -> LoadedRun:
    torch.manual_seed(1)
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    n_layers = max(2, len(layers))
    config = ModelConfig(d_model=32, n_layers=n_layers, d_mlp=64, layers=layers)
    model = Model(config, vocab_size=tokenizer.vocab_size).eval()
    described = Config(run="small", model=config)
    return LoadedRun(Path("runs/small"), described, model, tokenizer, step=7, has_records=True)


def same(found: Prefilled, expected: Prefilled) -> bool:
    left, right = flatten(found.state), flatten(expected.state)
    return (
        torch.equal(found.logits_V, expected.logits_V)
        and left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
        and (found.recent, found.n_tokens) == (expected.recent, expected.n_tokens)
    )
