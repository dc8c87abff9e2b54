"""What the layers of a model share: masks and tiles are made once for the documents of a step."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from ys_llm.config.schema import ModelConfig
from ys_llm.model.language_model import Model
from ys_llm.ops import attention
from ys_llm.ops.shared_by_layers import shared_by_layers

LAYERS, TOKENS = 3, 40


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    options = {"softmax_attention": {"n_heads": 2}}
    config = ModelConfig(
        d_model=16, n_layers=LAYERS, layers=("softmax_attention",), options=options
    )
    return Model(config, vocab_size=30)


def _loss_and_gradients(model: Model, tokens_BT: Tensor, starts_BT: Tensor | None) -> list[Tensor]:
    logits_BTV, _ = model(tokens_BT, None, starts_BT)
    loss = logits_BTV.square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("path", ["sdpa", "tiled"])
def test_a_step_makes_its_mask_or_its_tiles_once(
    path: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens_BT, starts_BT = torch.randint(30, (2, TOKENS)), torch.rand(2, TOKENS) < 0.1
    if path == "sdpa":
        monkeypatch.setattr(attention, "TILED_THREADS", 0)
    name = {"sdpa": "_shared_mask", "tiled": "_tiles"}[path]
    original, made = getattr(attention, name).__wrapped__, []

    def counted(document_BN: Tensor, *settings: int) -> object:
        made.append(document_BN)
        return original(document_BN, *settings)

    monkeypatch.setattr(attention, name, shared_by_layers(counted))
    found = _loss_and_gradients(model, tokens_BT, starts_BT)
    assert len(made) == 1
    for mixer in model.mixers:
        mixer.backend = "reference"
    torch.testing.assert_close(found, _loss_and_gradients(model, tokens_BT, starts_BT))
    starts_BT.logical_not_()
    for mixer in model.mixers:
        mixer.backend = "sdpa"
    again = _loss_and_gradients(model, tokens_BT, starts_BT)
    assert len(made) == 2
    assert again[0] != found[0]


def test_rows_of_one_document_need_no_mask(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TILED_THREADS", 0)
    monkeypatch.setattr(attention, "_shared_mask", _not_called)
    tokens_BT = torch.randint(30, (2, TOKENS))
    found = _loss_and_gradients(model, tokens_BT, None)
    for mixer in model.mixers:
        mixer.backend = "reference"
    torch.testing.assert_close(found, _loss_and_gradients(model, tokens_BT, None))


def _not_called(*arguments: object) -> Tensor:
    raise AssertionError("a mask was built")


def test_a_shared_result_is_for_the_same_unchanged_tensor_and_goes_with_it() -> None:
    calls = []

    @shared_by_layers
    def doubled(x: Tensor, times: int = 1) -> Tensor:
        calls.append(times)
        return x * 2 * times

    x = torch.ones(3)
    assert doubled(x) is doubled(x)
    assert torch.equal(doubled(x, 3), x * 6)
    x += 1
    assert torch.equal(doubled(x, 3), x * 6)
    assert torch.equal(doubled(x.clone(), 3), x * 6)
    assert calls == [1, 3, 3, 3]
    with torch.inference_mode():
        assert doubled(x, 3) is not doubled(x, 3)
    kept = weakref.ref(doubled(x))
    del x
    gc.collect()
    assert kept() is None
