"""The convolution of every mixer, as part of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ys_llm.config.schema import ModelConfig
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.costs import parameters_by_part
from ys_llm.model.language_model import Model

V, T, D = 12, 20, 16

every_mixer = pytest.mark.parametrize("mixer", mixer_names())


def model_of(mixer: str, taps: int) -> Any:
    config = ModelConfig(d_model=D, n_layers=2, d_mlp=24, layers=(mixer,), convolution=taps)
    torch.manual_seed(1)
    return Model(config, vocab_size=V)


@every_mixer
@torch.no_grad()
def test_a_new_one_changes_nothing_and_one_that_has_learned_does(mixer: str) -> None:
    convolved, plain = model_of(mixer, 3), model_of(mixer, 0)
    weights = {
        name.replace("mixer.mixer.", "mixer."): value
        for name, value in convolved.state_dict().items()
        if not name.endswith(".taps")
    }
    plain.load_state_dict(weights)
    tokens_BT = torch.randint(V, (2, T))
    expected, _ = plain(tokens_BT)
    torch.testing.assert_close(convolved(tokens_BT)[0], expected)
    convolved.mixers[1].taps[0] += 1  # of the token two before
    changed = (convolved(tokens_BT)[0] - expected).abs().amax((0, 2)) > 1e-5
    assert not changed[:2].any() and changed[2:].all()


@every_mixer
def test_each_tap_and_channel_of_each_layer_is_a_parameter(mixer: str) -> None:
    parts = [parameters_by_part(model_of(mixer, taps)) for taps in (4, 0)]
    assert parts[0] == {**parts[1], "mixers": parts[1]["mixers"] + 2 * 3 * D}
