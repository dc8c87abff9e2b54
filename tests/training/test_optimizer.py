"""Which parameters decay, and that each is optimised once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ys_llm.config.schema import ModelConfig, TrainConfig
from ys_llm.model.language_model import Model
from ys_llm.training.optimizer import make_optimizer, set_learning_rate

PEAK = 1e-2
CONFIG = TrainConfig(learning_rate=PEAK, warmup_steps=10)


def small_model(**changes: object) -> Model:
    config = ModelConfig(
        d_model=16,
        n_layers=1,
        d_mlp=24,
        options={"three_tier": {"d_state": 8, "n_heads": 2}},
        **changes,
    )
    return Model(config, vocab_size=20)


def test_matrices_decay_and_nothing_else_does() -> None:
    model = small_model()
    optimizer = make_optimizer(model, replace(CONFIG, weight_decay=0.5))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - PEAK * 0.5 if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


class Convolution(nn.Module):
    """A module that knows better than the number of dimensions what may decay."""

    no_weight_decay = ("gains",)

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 1, 3))
        self.gains = nn.Parameter(torch.ones(2, 4))


def test_a_module_may_exempt_parameters_from_decay() -> None:
    model = nn.Sequential(Convolution())
    decayed, plain = make_optimizer(model, replace(CONFIG, weight_decay=0.5)).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 1, 3)]
    assert [p.shape for p in plain["params"]] == [(2, 4)]
    assert plain["weight_decay"] == 0.0


def test_an_exempt_parameter_stays_exempt_when_it_is_parametrised() -> None:
    module = Convolution()
    torch.nn.utils.parametrize.register_parametrization(module, "gains", nn.Identity())
    decayed, plain = make_optimizer(module, CONFIG).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 1, 3)]
    assert [p.shape for p in plain["params"]] == [(2, 4)]


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_optimised_once(tied: bool) -> None:
    model = small_model(tie_embeddings=tied)
    groups = make_optimizer(model, CONFIG).param_groups
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimised) == sorted(id(parameter) for parameter in model.parameters())


def test_frozen_parameters_are_left_alone() -> None:
    model = small_model()
    model.embedding.weight.requires_grad_(False)
    groups = make_optimizer(model, CONFIG).param_groups
    assert all(model.embedding.weight is not p for group in groups for p in group["params"])


def test_the_first_step_moves_each_weight_by_the_rate_against_its_gradient() -> None:
    model = small_model()
    optimizer = make_optimizer(model, replace(CONFIG, weight_decay=0.0))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter).sign()
    set_learning_rate(optimizer, 0.25)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = before[name] - 0.25 * parameter.grad  # Adam's first step is g / |g|
        torch.testing.assert_close(parameter.detach(), expected, msg=name)
