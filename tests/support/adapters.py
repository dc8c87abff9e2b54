"""What fine-tuning, probing and constraining libraries put around a module's weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A linear layer with a parallel low-rank adapter, as in peft: y = W x + B A x.

    It takes the place of the layer, and its `weight` is that of the layer, without the adapter.
    """

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.to(base.weight.dtype)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.base_layer(x) + self.lora_B(self.lora_A(x)))

    def merged(self) -> Tensor:
        """The one weight that does the same."""
        return self.base_layer.weight + self.lora_B.weight @ self.lora_A.weight


def add_adapters(module: nn.Module) -> dict[str, LowRankLinear]:
    """Replace every nn.Linear below `module`; all parameters but the adapters' are frozen."""
    found = [name for name, child in module.named_modules() if type(child) is nn.Linear]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    adapters = {}
    for name in found:
        parent, _, own = name.rpartition(".")
        holder = module.get_submodule(parent)
        adapters[name] = LowRankLinear(cast(nn.Linear, getattr(holder, own)))
        setattr(holder, own, adapters[name])
    return adapters


@torch.no_grad()
def merge_adapters(module: nn.Module) -> None:
    """Replace every adapter by a plain nn.Linear with the merged weight."""
    for name, child in list(module.named_modules()):
        if isinstance(child, LowRankLinear):
            parent, _, own = name.rpartition(".")
            merged = nn.Linear(1, 1, bias=False)
            merged.weight = nn.Parameter(child.merged())
            merged.bias = cast(nn.Parameter, child.bias)
            setattr(module.get_submodule(parent), own, merged)


class Halved(nn.Module):
    """A parametrisation: what is used is half of what is learned."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2
