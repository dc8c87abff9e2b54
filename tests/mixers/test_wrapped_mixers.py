"""What is put around the weights of any mixer takes effect in its outputs and gradients."""

from __future__ import annotations

from typing import Any

import torch
from support.adapters import Halved, add_adapters, merge_adapters
from support.mixer_cases import D_MODEL, SAME, Case, T, every_mixer, run
from torch import nn
from torch.nn.utils import parametrize


@every_mixer
def test_adapters_around_its_linear_layers_take_effect(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(2, T, D_MODEL, dtype=torch.float64)
    adapters = add_adapters(mixer)
    assert adapters
    output, _ = run(mixer, x_BTD)
    output.square().sum().backward()
    for name, adapter in adapters.items():
        for factor in (adapter.lora_A, adapter.lora_B):
            assert factor.weight.grad is not None, f"the adapter of {name} has no part"
            assert factor.weight.grad.isfinite().all()
            assert factor.weight.grad.count_nonzero()
    merge_adapters(mixer)
    torch.testing.assert_close(run(mixer, x_BTD)[0], output, **SAME)


@every_mixer
@torch.no_grad()
def test_hooks_of_its_linear_layers_take_effect(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(2, T, D_MODEL, dtype=torch.float64)
    before, _ = run(mixer, x_BTD)
    linears = [child for child in mixer.modules() if type(child) is nn.Linear]
    for linear in linears:
        handle = linear.register_forward_hook(lambda _, __, output: 1.5 * output)
        assert not torch.allclose(run(mixer, x_BTD)[0], before)
        handle.remove()
    torch.testing.assert_close(run(mixer, x_BTD)[0], before, **SAME)


@every_mixer
def test_a_parametrisation_of_any_weight_takes_effect(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(2, T, D_MODEL, dtype=torch.float64)
    with torch.no_grad():
        for parameter in mixer.parameters():  # none at 0, where it would be without effect
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, parameter in list(mixer.named_parameters()):
        parent, _, own = name.rpartition(".")
        holder = mixer.get_submodule(parent)
        with torch.no_grad():
            parameter.div_(2)
        expected, _ = run(mixer, x_BTD)
        (expected_grad,) = torch.autograd.grad(expected.square().sum(), [parameter])
        with torch.no_grad():
            parameter.mul_(2)
        parametrize.register_parametrization(holder, own, Halved())
        output, _ = run(mixer, x_BTD)
        learned: Any = holder.get_submodule(f"parametrizations.{own}").original
        (grad,) = torch.autograd.grad(output.square().sum(), [learned])
        torch.testing.assert_close(output, expected, **SAME)
        torch.testing.assert_close(grad, expected_grad / 2, **SAME)
        parametrize.remove_parametrizations(holder, own, leave_parametrized=False)
