"""A learned initial state: it is all that is trained, and every path begins from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.exports import shaken, small
from support.sources import ROOT
from torch import Tensor

from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.sources import load_config
from ys_llm.errors import UserError
from ys_llm.inference.decoder import decoder_of
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import flatten, state_bytes

V = 30
TOKENS_BT, TARGETS_BT = torch.randint(V, (2, 2, 24), generator=torch.Generator().manual_seed(4))


def model_of(layers: tuple[str, ...]) -> Model:
    sizes = ModelConfig(d_model=16, n_layers=len(layers), d_mlp=24, layers=layers)
    return shaken(replace(Config(), model=sizes), vocab_size=V)


def learn(model: Model) -> None:
    model.learn_initial_state()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for _ in range(2):
        loss: Tensor = model(TOKENS_BT, targets_BT=TARGETS_BT)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("mixer", mixer_names())
def test_every_mixer_with_a_memory_learns_its_initial_state_and_nothing_else(mixer: str) -> None:
    model = model_of((mixer,))
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = flatten(model.init_state(1)["layers"])
    if not any(t.numel() and t.is_floating_point() for t in first.values()):
        with pytest.raises(UserError, match="no memory of constant size"):
            model.learn_initial_state()
        return
    learn(model)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    after = flatten(model.init_state(2)["layers"])
    learned = any(not torch.equal(after[name][:1], tensor) for name, tensor in first.items())
    assert learned or mixer == "ys_v0_1"  # whose state at first is multiplied by nothing
    assert all(torch.equal(tensor[0], tensor[1]) for tensor in after.values())


def test_the_parameters_are_the_bytes_of_a_state() -> None:
    model = model_of(("three_tier", "softmax_attention"))
    before = state_bytes(model.init_state(1))
    learn(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.nbytes for p in trained) == before


def test_the_compiled_decoder_begins_from_it() -> None:
    config = small(load_config(ROOT / "configs" / "quickstart.yaml").config)
    model = shaken(config, vocab_size=V)
    learn(model)
    decoder = decoder_of(model.eval())
    assert decoder is not None
    with inference_mode(model):
        expected = model(TOKENS_BT[:1])[0][0].log_softmax(-1)
        sequence = decoder.sequence(model.init_state(1))
    decoded = torch.stack([decoder.step([sequence], [id])[0].clone() for id in TOKENS_BT[0]])
    torch.testing.assert_close(decoded.log_softmax(-1), expected, rtol=1e-4, atol=1e-4)
