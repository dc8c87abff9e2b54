"""Adapters, hooks and parametrisations of any module of a whole model take effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.adapters import Halved, LowRankLinear, add_adapters, merge_adapters
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ys_llm.config.schema import CopyConfig, ModelConfig
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model

# The state of ys_v0_1 grows, and differences of the last bit with it.
SAME = {"rtol": 1e-6, "atol": 1e-6}
V = 30
TOKENS_BT, TARGETS_BT = torch.randint(V, (2, 2, 40), generator=torch.Generator().manual_seed(4))

every_model = pytest.mark.parametrize(
    "layers", [(name,) for name in mixer_names()] + [tuple(mixer_names())], ids="-".join
)
every_mixer = pytest.mark.parametrize("layers", [(name,) for name in mixer_names()], ids="-".join)
every_block = pytest.mark.parametrize("block", ["pre_norm", "plain", "copying"])


def model_of(layers: tuple[str, ...], block: str) -> Model:
    window, block = (20, "pre_norm") if block == "copying" else (0, block)
    config = ModelConfig(
        d_model=16,
        n_layers=len(layers),
        d_mlp=24,
        layers=layers,
        block=block,  # type: ignore[arg-type]
        copy=CopyConfig(window, width=8),
    )
    model = Model(config, vocab_size=V).double()
    with torch.no_grad():
        for parameter in model.parameters():  # none at 0, where it would be without effect
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loss_of(model: nn.Module) -> Tensor:
    loss: Tensor = model(TOKENS_BT, targets_BT=TARGETS_BT)[0]
    return loss


@every_model
@every_block
def test_adapters_of_every_linear_layer_learn_and_change_the_loss(
    layers: tuple[str, ...], block: str
) -> None:
    model = model_of(layers, block)
    adapters = add_adapters(model)
    assert "output" in adapters
    assert block == "plain" or "blocks.0.mlp.gate" in adapters
    loss = loss_of(model)
    loss.backward()
    for name, adapter in adapters.items():
        for factor in (adapter.lora_A, adapter.lora_B):
            assert factor.weight.grad is not None, f"the adapter of {name} has no part"
            assert factor.weight.grad.isfinite().all()
            assert factor.weight.grad.count_nonzero()
    logits, _ = model(TOKENS_BT)
    gradients = {name: adapter.lora_B.weight.grad for name, adapter in adapters.items()}
    factors = {name: adapter.lora_A.weight.detach() for name, adapter in adapters.items()}
    merge_adapters(model)
    torch.testing.assert_close(model(TOKENS_BT)[0], logits, **SAME)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    merged = loss_of(model)
    torch.testing.assert_close(merged, loss, **SAME)
    merged.backward()
    for name, module in model.named_modules():
        if name in adapters:  # d (W + B A) / d B = dW A^T
            weight: Any = module.get_parameter("weight")
            torch.testing.assert_close(gradients[name], weight.grad @ factors[name].t(), **SAME)


@every_model
@every_block
def test_hooks_of_every_module_take_effect(layers: tuple[str, ...], block: str) -> None:
    """One after the other; in a model of all mixers together, where each would cost a pass."""
    model = model_of(layers, block)
    before = loss_of(model)
    names = [name for name, module in model.named_modules() if is_called(name, module)]
    assert {"embedding", "output", "blocks.0", "blocks.0.mixer"} <= set(names)
    called = set[str]()
    for hooked in [[name] for name in names] if len(layers) == 1 else [names]:
        called.clear()
        handles = [
            model.get_submodule(name).register_forward_hook(lambda *_, n=name, to=called: to.add(n))
            for name in hooked
        ]
        torch.testing.assert_close(loss_of(model), before, **SAME)
        for handle in handles:
            handle.remove()
        assert called == set(hooked)


def is_called(name: str, module: nn.Module) -> bool:
    """Not so: lists, dropout and norms without weights, and what only holds a mixer's weights."""
    if name.endswith(("dropout", "norm")) and not list(module.parameters()):
        return False
    is_held = "mixer." in name and not isinstance(module, nn.Linear)
    return not is_held and not isinstance(module, nn.ModuleList)


@every_mixer  # not all in one model: each weight costs two passes of the whole
@every_block
def test_a_parametrisation_of_any_weight_takes_effect(layers: tuple[str, ...], block: str) -> None:
    model = model_of(layers, block)
    for name, parameter in list(model.named_parameters()):
        if ".mixer." in name and block != "pre_norm":
            continue  # the same in every block
        parent, _, own = name.rpartition(".")
        holder = model.get_submodule(parent)
        with torch.no_grad():
            parameter.div_(2)
        expected = loss_of(model)
        (expected_grad,) = torch.autograd.grad(expected, [parameter])
        with torch.no_grad():
            parameter.mul_(2)
        parametrize.register_parametrization(holder, own, Halved())
        loss = loss_of(model)
        learned: Any = holder.get_submodule(f"parametrizations.{own}").original
        (grad,) = torch.autograd.grad(loss, [learned])
        torch.testing.assert_close(loss, expected, **SAME)
        torch.testing.assert_close(grad, expected_grad / 2, **SAME)
        parametrize.remove_parametrizations(holder, own, leave_parametrized=False)


class Wrapper(nn.Module):
    """Calls the model by its one entry, as DDP does."""

    def __init__(self, module: Model) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


def test_a_hook_of_the_model_itself_sees_training_and_generation() -> None:
    model = model_of(("three_tier",), "pre_norm")
    called = []
    model.register_forward_pre_hook(lambda *_: called.append(1))
    loss_of(Wrapper(model))
    model(TOKENS_BT, logits="last")
    assert len(called) == 2


def test_a_wrapped_head_under_bf16_autocast_learns() -> None:
    model = model_of(("three_tier",), "pre_norm").float()
    model.output = LowRankLinear(model.output)  # type: ignore[assignment]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    adapter: Any = model.output
    assert loss.dtype == torch.float32
    assert adapter.lora_B.weight.grad.isfinite().all()
    assert adapter.lora_B.weight.grad.count_nonzero()
