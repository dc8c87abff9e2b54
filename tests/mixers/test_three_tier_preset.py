"""The three-tier mixer as published, preset ys_v0_3: its definition as a loop, and its sizes."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from support.op_cases import Case, assert_within, leaf, results
from torch import Tensor

from ys_llm.config.schema import ModelConfig
from ys_llm.mixers import three_tier
from ys_llm.model.language_model import Model
from ys_llm.model.state import initial_positions
from ys_llm.ops.three_tier.select import BACKENDS, EXPERIMENTAL, is_available

D_MODEL, D_STATE = 12, 16
PRESET = replace(three_tier.PRESET_V0_3, d_state=D_STATE)


def literal_loop(x_BTE: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs and the last h, L and G, statement by statement as the definition has them."""

    def ln(v: Tensor) -> Tensor:
        return F.layer_norm(v, [D_STATE], p["norm.weight"], p["norm.bias"], 1e-5)

    def updated(old: Tensor, y: Tensor, tier: str) -> Tensor:
        pre = old @ p[f"{tier}.state_controller"] + y @ p[f"{tier}.input_influencer"]
        return ln(pre) @ p[f"{tier}.output_shaper"]

    h = L = G = x_BTE.new_zeros(len(x_BTE), D_STATE)
    outputs = []
    for t in range(x_BTE.shape[1]):
        u = x_BTE[:, t] @ p["in_proj.weight"].t() + p["in_proj.bias"]
        h = ln(h @ p["state_controller"] + u @ p["input_influencer"] + G + L)
        y = h @ p["output_shaper"]
        outputs.append(y @ p["out_proj.weight"].t() + p["out_proj.bias"])
        if t % 64 == 63:
            G = updated(G, y, "global_summary")
        if t % 16 == 15:
            L = updated(L, y, "local_summary")
    return torch.stack(outputs, dim=1), h, L, G


def from_start(mixer: three_tier.Mixer, x_BTE: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output, state = mixer(x_BTE, mixer.init_state(len(x_BTE)), None, initial_positions(len(x_BTE)))
    return output, state


def preset(backend: str) -> three_tier.Mixer:
    mixer = three_tier.Mixer(D_MODEL, PRESET, backend=backend).double()
    with torch.no_grad():  # away from gain 1 and bias 0, which would hide a term
        for parameter in mixer.norm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def test_the_preset_equals_the_literal_loop_at_every_length() -> None:
    """On every backend that runs here: the loop, which takes most of the time, is run once."""
    names = [name for name in BACKENDS if name not in EXPERIMENTAL and is_available(name, "cpu")]
    mixers, weights = {name: preset(name) for name in names}, preset(names[0]).state_dict()
    for mixer in mixers.values():
        mixer.load_state_dict(weights)
    own = {name: dict(mixer.named_parameters()) for name, mixer in mixers.items()}

    def by_the_mixer(x_BTE: Tensor, mixer: three_tier.Mixer) -> tuple[Tensor, ...]:
        output, state = from_start(mixer, x_BTE)
        return output, state["main"], state["local_summary"], state["global_summary"]

    for length in range(1, 131):
        x_BTE = leaf(2, length, D_MODEL, dtype=torch.float64)
        first = own[names[0]]
        by_loop = Case((x_BTE, first), {}, [x_BTE, *first.values()])
        expected = results(literal_loop, by_loop)
        for name, mixer in mixers.items():
            case = Case((x_BTE, mixer), {}, [x_BTE, *own[name].values()])
            found = results(by_the_mixer, case)
            assert_within(1e-10, found, expected, f"{name}, length {length}")


@pytest.mark.parametrize("k", [1, 15, 16, 17, 63, 64, 65, 200])
@torch.no_grad()
def test_the_token_k_steps_back_changes_the_output(k: int) -> None:
    mixer, x_BTE = preset("auto"), torch.randn(1, 201, D_MODEL, dtype=torch.float64)
    changed_BTE = x_BTE.clone()
    changed_BTE[:, -1 - k] += torch.randn(D_MODEL, dtype=torch.float64)
    before, after = (from_start(mixer, x)[0][:, -1] for x in (x_BTE, changed_BTE))
    assert (after - before).abs().max() > 1e-12  # rounding alone moves it by less than 1e-14


def test_the_preset_carries_its_authors_names_and_sizes() -> None:
    with torch.device("meta"):
        mixer = three_tier.Mixer(768, three_tier.PRESET_V0_3)
    sizes = {name: tuple(parameter.shape) for name, parameter in mixer.named_parameters()}
    matrices = ["state_controller", "input_influencer", "output_shaper"]
    tiers = ["", "local_summary.", "global_summary."]
    assert sizes == {
        **{f"{tier}{matrix}": (2048, 2048) for tier in tiers for matrix in matrices},
        "in_proj.weight": (2048, 768),
        "in_proj.bias": (2048,),
        "out_proj.weight": (768, 2048),
        "out_proj.bias": (768,),
        "norm.weight": (2048,),
        "norm.bias": (2048,),
    }


@pytest.mark.parametrize("vocab_size", [256, 4096])
def test_the_preset_has_the_parameters_of_the_source(vocab_size: int) -> None:
    config = ModelConfig(
        block="plain",
        d_model=768,
        n_layers=1,
        d_mlp=0,
        layers=("three_tier",),
        options={"three_tier": asdict(three_tier.PRESET_V0_3)},
    )
    with torch.device("meta"):
        model = Model(config, vocab_size=vocab_size)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 40_901_376 + 1_537 * vocab_size
