"""Layers that attend to one global cache, against the equations, and what the cache costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.flops import counted_flops
from torch import Tensor

from ys_llm.config.cross import CrossConfig
from ys_llm.config.schema import ModelConfig
from ys_llm.csrc import loader
from ys_llm.model import cross_decoder
from ys_llm.model.costs import flops_per_token, parameter_count, parameters_by_part, state_bytes
from ys_llm.model.language_model import Model
from ys_llm.model.layers import Residual
from ys_llm.model.state import flatten
from ys_llm.model.state import state_bytes as bytes_of
from ys_llm.ops.attention import reference

VOCAB_SIZE, T, D = 30, 20, 16
CROSS = CrossConfig(layers=2, n_heads=4, n_kv_heads=2, rope_theta=100.0)
CONFIG = ModelConfig(d_model=D, n_layers=2, d_mlp=12, layers=("min_gru",), cross=CROSS)


def model_of(**changes: Any) -> Model:
    torch.manual_seed(2)
    model = Model(replace(CONFIG, **changes), vocab_size=VOCAB_SIZE).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def normed(x_TD: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x_TD, (D,), norm.weight, eps=1e-5)


def turned(x_THP: Tensor) -> Tensor:
    """Channel pair (c, c + P/2) as a complex number, turned by t theta ** (-2c / P)."""
    left, right = x_THP.chunk(2, -1)
    pair = torch.arange(left.shape[-1], dtype=torch.float64) / left.shape[-1]
    angle = torch.arange(T)[:, None, None] * 100.0**-pair
    z = torch.complex(left, right) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


@pytest.mark.parametrize("window", [0, 5])
@torch.no_grad()
def test_the_layers_read_one_cache_as_the_equations_say(window: int) -> None:
    model = model_of(cross=replace(CROSS, window=window))
    decoder: Any = model.cross_decoder
    tokens_BT = torch.randint(VOCAB_SIZE, (1, T))
    x = (model.embedding.weight[tokens_BT[0]], None)
    for block, state in zip(model.applied, model.init_state(1)["layers"], strict=True):
        x, _ = block(_residual(*x), state, None, torch.zeros(1, dtype=torch.int64))
    x_TD = (x.x_BTD + x.delta_BTD)[0]
    cached = normed(x_TD, decoder.norm)
    keys = turned((cached @ decoder.k_proj.weight.T).unflatten(1, (2, 4)))
    values = (cached @ decoder.v_proj.weight.T).unflatten(1, (2, 4))
    age = torch.arange(T)[:, None] - torch.arange(T)
    hidden = (age < 0) | (age >= (window or T))
    for block in decoder.blocks:
        query = (normed(x_TD, block.mixer_norm) @ block.mixer.q_proj.weight.T).unflatten(1, (4, 4))
        read = []
        for head, query_TP in enumerate(turned(query).unbind(1)):
            scores = query_TP @ keys[:, head // 2].T / 2
            read.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values[:, head // 2])
        x_TD = x_TD + torch.cat(read, 1) @ block.mixer.out_proj.weight.T
        x_TD = x_TD + block.mlp(normed(x_TD, block.mlp_norm))
    expected = normed(x_TD, model.final_norm) @ model.output.weight.T
    torch.testing.assert_close(model(tokens_BT)[0][0], expected, rtol=1e-10, atol=1e-10)


def _residual(x: Any, delta: Any) -> Any:
    return Residual(x[None] if x.dim() == 2 else x, delta)


@torch.no_grad()
def test_the_cache_is_kept_once_however_many_layers_read_it() -> None:
    states = {}
    for layers in (1, 6):
        model = model_of(cross=replace(CROSS, layers=layers))
        _, state = model(torch.zeros(2, T, dtype=torch.int64))
        states[layers] = {name: x.shape for name, x in flatten(state["cross"]).items()}
    assert (
        states[1] == states[6] == {"keys": (2, T, 2, 4), "values": (2, T, 2, 4), "document": (2, T)}
    )


def test_its_parameters_are_those_of_the_cache_and_of_the_layers() -> None:
    with_cross, without = model_of(), model_of(cross=CrossConfig())
    layer = 2 * D * D + 3 * D * 12 + 2 * D
    assert parameter_count(with_cross) - parameter_count(without) == 2 * layer + 2 * D * 8 + D
    ours, theirs = parameters_by_part(with_cross), parameters_by_part(without)
    assert ours["mixers"] - theirs["mixers"] == 4 * D * D + 2 * D * 8
    assert ours["mlps"] - theirs["mlps"] == 2 * 3 * D * 12


@pytest.mark.parametrize("window", [0, 5])
@torch.no_grad()
def test_costs_are_real_ones(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load", lambda **_: None)  # torch cannot count its work
    monkeypatch.setattr(cross_decoder, "attention", reference)  # the others fill masked blocks
    model, tokens_BT = model_of(cross=replace(CROSS, window=window)), torch.zeros(1, 128).long()
    counted = counted_flops(partial(model, tokens_BT)) / 128
    assert flops_per_token(model, 128) == pytest.approx(counted, rel=0.01)
    _, state = model(tokens_BT)
    assert state_bytes(model, batch_size=1, seq_len=128) == bytes_of(state)


def test_state_bytes_stop_growing_at_the_window() -> None:
    model = model_of(cross=replace(CROSS, window=5))
    assert state_bytes(model, batch_size=1, seq_len=3) < state_bytes(model, batch_size=1, seq_len=4)
    assert state_bytes(model, batch_size=1, seq_len=4) == state_bytes(
        model, batch_size=1, seq_len=99
    )


@pytest.mark.parametrize(
    ("cross", "changes", "message"),
    [
        ({"n_heads": 4, "n_kv_heads": 3}, {}, "n_kv_heads 3 must divide"),
        ({"n_heads": 3}, {}, r"cross\.n_heads 3 does not split"),
        ({}, {"block": "plain"}, "need block: pre_norm"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    cross: dict[str, int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(d_model=D, cross=CrossConfig(layers=1, **cross), **changes)
