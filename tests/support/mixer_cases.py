"""Every mixer with every setting that its file wants tested, also behind a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ys_llm.mixers.protocol import mixer_module, mixer_names
from ys_llm.model.convolution import Convolved

NAMES = mixer_names()
D_MODEL = 32
T = 70  # past the longest period of a summary and a few steps into the next
SAME = {"rtol": 1e-10, "atol": 1e-10}  # float64: another order of the same sums, nothing more


class Case(NamedTuple):
    """A mixer's module and one setting of its options, behind a convolution of so many taps."""

    name: str
    options: Any
    taps: int = 0

    def mixer(self, backend: str = "auto") -> Any:
        mixer = mixer_module(self.name).Mixer(D_MODEL, self.options, backend=backend)
        if not self.taps:
            return mixer
        convolved = Convolved(mixer, d_model=D_MODEL, taps=self.taps)
        nn.init.normal_(convolved.taps, std=0.5)  # at 0 it would be no convolution
        return convolved


def cases() -> Iterator[Any]:
    for name in NAMES:
        module = mixer_module(name)
        settings = (module.Options(), *getattr(module, "CONTRACT_OPTIONS", ()))
        for number, options in enumerate(settings):
            yield pytest.param(Case(name, options), id=f"{name}-{number}")
        yield pytest.param(Case(name, settings[-1], taps=4), id=f"{name}-convolved")


every_mixer = pytest.mark.parametrize("case", [*cases()])


def run(
    mixer: Any, x_BTD: Tensor, state: Any = None, starts_BT: Tensor | None = None, position: int = 0
) -> tuple[Tensor, Any]:
    """One pass from this state, or from the initial one; all rows share one clock."""
    state = mixer.init_state(len(x_BTD)) if state is None else state
    output: tuple[Tensor, Any] = mixer(x_BTD, state, starts_BT, torch.full((len(x_BTD),), position))
    return output
