"""The twin of every mixer, which an export carries, is the mixer: the same outputs and states."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from support.mixer_cases import D_MODEL, NAMES, SAME, Case, cases, run
from torch import Tensor

from ys_llm.config.strict_reader import to_plain
from ys_llm.mixers import exported
from ys_llm.mixers.protocol import mixer_module
from ys_llm.model.exported import INTEGERS, Convolved
from ys_llm.model.state import flatten

# A mixer of one's own may have none; `ys export` then says so.
every_twin = pytest.mark.parametrize(
    "case", [one for one in cases() if one.values[0].name in exported.MIXERS]
)
PIECES = (70, 1, 6)  # tokens: past the longest period of a summary, a step, and a few more


def twin_of(case: Case, mixer: Any) -> Any:
    """The twin with the mixer's parameters."""
    constants = getattr(mixer_module(case.name), "CONSTANTS", {})
    twin = exported.MIXERS[case.name](D_MODEL, to_plain(case.options), constants)
    if case.taps:
        twin = Convolved(D_MODEL, case.taps, twin)
    twin = twin.double()
    twin.load_state_dict(mixer.state_dict())
    return twin


def zeros(twin: Any, batch_size: int) -> dict[str, Tensor]:
    return {
        name: torch.zeros(
            batch_size, *shape, dtype=INTEGERS.get(name.rpartition(".")[2], torch.float64)
        )
        for name, shape in twin.shapes().items()
    }


def same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Caches of a window have room for all of it from the start: what is there is on the right."""
    assert found.keys() == expected.keys()
    for name, own in expected.items():
        kept = found[name]
        if kept.shape != own.shape:
            kept = kept[:, kept.shape[1] - own.shape[1] :]
        torch.testing.assert_close(kept, own, **SAME)


@every_twin
def test_a_twin_reads_in_pieces_what_its_mixer_reads(case: Case) -> None:
    torch.manual_seed(0)
    mixer = case.mixer().double()
    with torch.no_grad():
        for parameter in mixer.parameters():  # what begins at 0 would hide its equation
            parameter.add_(0.1 * torch.randn_like(parameter))
    twin, position = twin_of(case, mixer), 0
    state, own = mixer.init_state(2), zeros(twin, 2)
    with torch.no_grad():
        for n_tokens in PIECES:
            x_BTD = torch.randn(2, n_tokens, D_MODEL, dtype=torch.float64)
            expected, state = run(mixer, x_BTD, state, position=position)
            found, own = twin(x_BTD, own, torch.full((2,), position))
            torch.testing.assert_close(found, expected, **SAME)
            position += n_tokens
    same_state(own, flatten(state))


def test_rows_may_be_at_different_clocks() -> None:
    """In every twin whose mixer looks at the clock."""
    for name in exported.MIXERS:
        case = Case(name, mixer_module(name).Options())
        torch.manual_seed(0)
        mixer = case.mixer().double()
        twin, positions = twin_of(case, mixer), torch.tensor([3, 14])
        x_BTD = torch.randn(2, 4, D_MODEL, dtype=torch.float64)
        with torch.no_grad():
            expected, _ = mixer(x_BTD, mixer.init_state(2), None, positions)
            found, _ = twin(x_BTD, zeros(twin, 2), positions)
        torch.testing.assert_close(found, expected, **SAME)


def test_every_twin_is_that_of_a_mixer() -> None:
    assert set(exported.MIXERS) <= set(NAMES)
    assert "three_tier" in exported.MIXERS


def test_twins_need_nothing_of_ys_but_each_other() -> None:
    package = Path(exported.__file__).parents[2]
    twins = (package / "mixers/exported").glob("[!_]*.py")
    for path in [package / "ops/exported.py", package / "model/exported.py", *twins]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ys_llm"):
                assert ".exported" in str(node.module), path
