"""Which parameters decay, and that each is optimised once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ys_llm.config.schema import ModelConfig, TrainConfig
from ys_llm.model.language_model import Model
from ys_llm.training.muon import MOMENTUM, UPDATE_RMS, orthogonal
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


@pytest.mark.parametrize("shape", [(8, 8), (3, 20), (20, 3), (2, 6, 9), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_singular_values_of_an_orthogonal_matrix_are_near_1(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        u = orthogonal(x)
    assert u.shape == x.shape
    assert u.dtype == torch.float32
    assert orthogonal(100 * x).allclose(orthogonal(x), atol=1e-3)
    # The small ones of a square matrix come to 1 more slowly than five iterations are.
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    along = (left.mT @ u @ right.mT).diagonal(dim1=-2, dim2=-1)
    assert along.max() < 1.25
    assert along.min() > (0.02 if shape[-1] == shape[-2] else 0.6)


def test_muon_moves_matrices_by_their_orthogonal_momentum_and_the_rest_as_adamw() -> None:
    model, like = small_model(), small_model()
    like.load_state_dict(model.state_dict())
    muon = make_optimizer(model, replace(CONFIG, optimizer="muon", weight_decay=0.5))
    adamw = make_optimizer(like, replace(CONFIG, weight_decay=0.5))
    matrices = {id(parameter) for parameter in muon.param_groups[0]["params"]}
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for ours, theirs in zip(model.parameters(), like.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
        for (name, ours), theirs in zip(model.named_parameters(), like.parameters(), strict=True):
            assert ours.grad is not None
            if id(ours) not in matrices:
                assert torch.equal(ours, theirs), name
                continue
            momentum[name] += (1 - MOMENTUM) * (ours.grad - momentum[name])
            update = orthogonal(MOMENTUM * momentum[name] + (1 - MOMENTUM) * ours.grad)
            size = UPDATE_RMS * max(ours.shape[-2:]) ** 0.5
            expected = (1 - PEAK * 0.5) * before[name] - PEAK * size * update
            torch.testing.assert_close(ours.detach(), expected, msg=name)


def test_muon_leaves_embedding_head_and_what_is_no_matrix_to_adamw() -> None:
    model = small_model(tie_embeddings=False)
    matrices, *rest = make_optimizer(model, replace(CONFIG, optimizer="muon")).param_groups
    by_muon = {id(parameter) for parameter in matrices["params"]}
    for name, parameter in model.named_parameters():
        is_inner = parameter.dim() >= 2 and not name.startswith(("embedding", "output"))
        assert (id(parameter) in by_muon) == is_inner, name
    others = [id(parameter) for group in rest for parameter in group["params"]]
    assert sorted([*by_muon, *others]) == sorted(id(parameter) for parameter in model.parameters())


def test_the_rate_is_that_of_all_groups_of_muon() -> None:
    model = small_model()
    optimizer = make_optimizer(model, replace(CONFIG, optimizer="muon", weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
