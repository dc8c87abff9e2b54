"""Every mixer with every setting that its file wants tested, and one pass of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ys_llm.mixers.protocol import mixer_module, mixer_names

NAMES = mixer_names()
D_MODEL = 32
T = 70  # past the longest period of a summary and a few steps into the next
SAME = {"rtol": 1e-10, "atol": 1e-10}  # float64: another order of the same sums, nothing more


class Case(NamedTuple):
    """A mixer's module and one setting of its options."""

    name: str
    options: Any

    def mixer(self, backend: str = "auto") -> Any:
        return mixer_module(self.name).Mixer(D_MODEL, self.options, backend=backend)


def cases() -> Iterator[Any]:
    for name in NAMES:
        module = mixer_module(name)
        settings = (module.Options(), *getattr(module, "CONTRACT_OPTIONS", ()))
        for number, options in enumerate(settings):
            yield pytest.param(Case(name, options), id=f"{name}-{number}")


every_mixer = pytest.mark.parametrize("case", [*cases()])


def run(
    mixer: Any, x_BTD: Tensor, state: Any = None, starts_BT: Tensor | None = None, position: int = 0
) -> tuple[Tensor, Any]:
    """One pass from this state, or from the initial one; all rows share one clock."""
    state = mixer.init_state(len(x_BTD)) if state is None else state
    output: tuple[Tensor, Any] = mixer(x_BTD, state, starts_BT, torch.full((len(x_BTD),), position))
    return output
