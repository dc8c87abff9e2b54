"""Figures of the header against what torch counts and what a state really holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.flops import counted_flops

from ys_llm.config.schema import ModelConfig
from ys_llm.csrc import loader
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.costs import (
    flops_per_token,
    parameter_count,
    parameters_by_part,
    state_bytes,
)
from ys_llm.model.language_model import Model
from ys_llm.model.state import state_bytes as bytes_of

VOCAB_SIZE = 90
SHAPES: dict[str, dict[str, Any]] = {
    "stack": {"d_model": 32, "n_layers": 3, "d_mlp": 80},
    "tied": {"d_model": 32, "n_layers": 2, "d_mlp": 80, "tie_embeddings": True},
    "without-mlp": {"d_model": 32, "n_layers": 2, "d_mlp": 0},
    "plain": {"d_model": 32, "n_layers": 1, "block": "plain"},
    "further-parts": {
        **{"d_model": 32, "n_layers": 3, "d_mlp": 80, "mlp": "channel_mix"},
        **{"layer_order": (0, 1, 1, 2), "prediction_heads": 3},
    },
}

every_mixer = pytest.mark.parametrize("mixer", mixer_names())
every_shape = pytest.mark.parametrize("shape", SHAPES)


def model_of(mixer: str, shape: str, backend: str = "auto") -> Model:
    config = ModelConfig(layers=(mixer,), **SHAPES[shape])
    return Model(config, vocab_size=VOCAB_SIZE, backends={mixer: backend})


@every_mixer
@every_shape
def test_the_parts_sum_to_all_parameters(mixer: str, shape: str) -> None:
    model = model_of(mixer, shape)
    tensors = {id(p): p.numel() for p in model.parameters()}
    assert sum(parameters_by_part(model).values()) == sum(tensors.values())
    assert parameter_count(model) == sum(tensors.values())


def test_each_parameter_is_counted_in_its_own_part() -> None:
    parts = parameters_by_part(model_of("softmax_attention", "stack"))
    matrix, norms = VOCAB_SIZE * 32, 7 * 32
    attention, mlp = 4 * 32 * 32, 3 * 32 * 80
    assert parts == {
        "embedding": matrix,
        "mixers": 3 * attention,
        "mlps": 3 * mlp,
        "norms": norms,
        "head": matrix,
    }
    assert "head" not in parameters_by_part(model_of("softmax_attention", "tied"))
    bare = parameters_by_part(model_of("softmax_attention", "plain"))
    assert bare == {"embedding": matrix, "mixers": attention, "head": matrix + VOCAB_SIZE}


# A shape costs the same around every mixer, and a mixer the same in every shape.
@pytest.mark.parametrize(
    ("mixer", "shape"),
    [*((name, "stack") for name in mixer_names()), *(("three_tier", shape) for shape in SHAPES)],
)
@torch.no_grad()
def test_flops_per_token_are_what_torch_counts(
    mixer: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load", lambda **_: None)  # torch cannot count its work
    # Of both paths the thriftier: a fused attention also fills blocks that are masked.
    tokens_BT = torch.zeros(1, 128, dtype=torch.int64)
    models = [model_of(mixer, shape, name) for name in ("reference", "auto")]
    passes = [counted_flops(partial(model, tokens_BT)) for model in models]
    claimed = flops_per_token(model_of(mixer, shape), 128)
    assert claimed == pytest.approx(min(passes) / 128, rel=0.03)


@torch.no_grad()
def test_training_costs_the_further_heads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load", lambda **_: None)
    model, tokens_BT = model_of("min_gru", "further-parts").train(), torch.zeros(1, 128).long()
    counted = counted_flops(partial(model, tokens_BT, targets_BT=tokens_BT)) / 128
    assert flops_per_token(model, 128, training=True) == pytest.approx(counted, rel=0.03)


@every_mixer
@every_shape
@torch.no_grad()
def test_state_bytes_are_those_of_a_real_state(mixer: str, shape: str) -> None:
    model = model_of(mixer, shape)
    _, state = model(torch.zeros(3, 40, dtype=torch.int64))
    assert state_bytes(model, batch_size=3, seq_len=40) == bytes_of(state)
