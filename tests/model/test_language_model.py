"""The trunk: initial weights, the carried state as a file, and the preset as a whole model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from ys_llm.config.schema import ModelConfig
from ys_llm.config.sources import load_config
from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import mixer_module, mixer_names
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import (
    EMBEDDING_STD,
    Model,
)
from ys_llm.model.state import detach, flatten, unflatten

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VOCAB_SIZE = 50
MATRICES = ("state_controller", "input_influencer", "output_shaper")
TIERS = ("local_summary", "global_summary")

every_mixer = pytest.mark.parametrize("mixer", mixer_names())


def small_model(**changes: Any) -> Model:
    settings = {"d_model": 16, "n_layers": 2, "d_mlp": 24, **changes}
    return Model(ModelConfig(**settings), vocab_size=VOCAB_SIZE)


def some_tokens(length: int) -> Tensor:
    return torch.randint(VOCAB_SIZE, (2, length))


def deviation(weight: Tensor) -> float:
    assert abs(weight.mean()) < 5 * weight.std() / math.sqrt(weight.numel())
    return weight.std().item()


@pytest.mark.parametrize("n_layers", [1, 8])
def test_initial_standard_deviations_are_the_documented_ones(n_layers: int) -> None:
    d_model, d_mlp = 128, 320
    model: Any = Model(
        ModelConfig(d_model=d_model, n_layers=n_layers, d_mlp=d_mlp), vocab_size=1000
    )
    assert deviation(model.embedding.weight) == pytest.approx(EMBEDDING_STD, rel=0.02)
    assert deviation(model.output.weight) == pytest.approx(EMBEDDING_STD, rel=0.02)
    for block in model.blocks:
        assert deviation(block.mlp.gate.weight) == pytest.approx(d_model**-0.5, rel=0.02)
        assert deviation(block.mlp.up.weight) == pytest.approx(d_model**-0.5, rel=0.02)
        expected = (2 * n_layers * d_mlp) ** -0.5
        assert deviation(block.mlp.down.weight) == pytest.approx(expected, rel=0.02)
        for norm in (block.mixer_norm, block.mlp_norm, model.final_norm):
            assert (norm.weight == 1).all()


def test_the_bare_frame_starts_as_its_source_does() -> None:
    model: Any = Model(ModelConfig(block="plain", n_layers=1, d_model=64), vocab_size=2000)
    assert deviation(model.embedding.weight) == pytest.approx(1.0, rel=0.02)
    bound = 64**-0.5  # torch's default for nn.Linear is uniform within 1 / sqrt(fan-in)
    assert model.output.weight.abs().max() <= bound
    assert deviation(model.output.weight) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert model.output.bias.abs().max() <= bound


@every_mixer
@pytest.mark.parametrize("tied", [False, True])
def test_a_new_model_predicts_nearly_uniformly(mixer: str, tied: bool) -> None:
    model = small_model(layers=(mixer,), tie_embeddings=tied)
    loss, _ = model(some_tokens(40), targets_BT=some_tokens(40))
    assert loss.item() == pytest.approx(math.log(VOCAB_SIZE), rel=0.02)


@every_mixer
def test_the_loss_is_the_cross_entropy_of_the_logits(mixer: str) -> None:
    model = small_model(layers=(mixer,)).double()
    tokens_BT, targets_BT = some_tokens(20), some_tokens(20)
    logits_BTV, _ = model(tokens_BT)
    expected = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    loss, _ = model(tokens_BT, targets_BT=targets_BT)
    torch.testing.assert_close(loss, expected)


def test_logits_are_float32_under_bf16_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BTV, _ = small_model()(some_tokens(5))
    assert logits_BTV.dtype == torch.float32


@every_mixer
@torch.no_grad()
def test_a_state_comes_back_from_a_file_as_it_was(mixer: str) -> None:
    model = small_model(layers=(mixer,), n_layers=11)  # layer 10 must not come before layer 2
    _, state = model(some_tokens(19))
    data = safetensors.torch.save({k: v.contiguous() for k, v in flatten(state).items()})
    restored = unflatten(safetensors.torch.load(data), like=model.init_state(1))
    assert restored["position_B"].tolist() == state["position_B"].tolist() == [19, 19]
    assert [sorted(layer) for layer in restored["layers"]] == [sorted(x) for x in state["layers"]]
    more_BT = some_tokens(70)
    assert torch.equal(model(more_BT, restored)[0], model(more_BT, state)[0])


@every_mixer
def test_a_detached_state_carries_values_but_no_gradient(mixer: str) -> None:
    model = small_model(layers=(mixer,))
    _, state = model(some_tokens(5))
    cut = flatten(detach(state))
    assert not any(tensor.requires_grad for tensor in cut.values())
    for name, tensor in flatten(state).items():
        assert torch.equal(cut[name], tensor)


def test_a_tied_head_is_one_matrix_with_the_embedding() -> None:
    apart, tied = small_model(), small_model(tie_embeddings=True)
    assert parameter_count(tied) == parameter_count(apart) - VOCAB_SIZE * 16
    assert tied.output.weight is tied.embedding.weight
    zeros_BT = torch.zeros(2, 5, dtype=torch.int64)
    loss, _ = tied(zeros_BT, targets_BT=zeros_BT)
    loss.backward()
    assert tied.embedding.weight.grad is not None
    assert tied.embedding.weight.grad[1].count_nonzero()  # as a class, though never an input


def test_dropout_acts_in_training_alone() -> None:
    for block in ("pre_norm", "plain"):
        model, tokens_BT = small_model(dropout=0.5, block=block), some_tokens(5)
        model.train()
        assert not torch.equal(model(tokens_BT)[0], model(tokens_BT)[0])
        model.eval()
        assert torch.equal(model(tokens_BT)[0], model(tokens_BT)[0])


def test_an_unknown_mixer_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError) as caught:
        small_model(layers=("three_teer",))
    assert caught.value.exit_code == EXIT_USAGE
    for name in mixer_names():
        assert name in str(caught.value)


@every_mixer
def test_a_mixer_says_which_kernel_it_takes(mixer: str) -> None:
    selected = small_model(layers=(mixer,)).select_backends(batch_size=2, precision="fp32")
    taken, why = selected[mixer]
    assert taken
    assert why
    model = small_model(layers=(mixer,))
    again = model.select_backends(batch_size=2, precision="fp32", previous={mixer: taken})
    assert again[mixer][0] == taken
    assert {layer.backend for layer in model.mixers} == {taken}


def preset(**changes: int) -> ModelConfig:
    config = load_config(CONFIGS / "ys_v0_3.yaml").config.model
    sizes = {name: size for name, size in changes.items() if name == "d_model"}
    options = {name: size for name, size in changes.items() if name != "d_model"}
    changed = {"three_tier": {**config.options["three_tier"], **options}}
    return replace(config, **sizes, options=changed)


@pytest.mark.parametrize("vocab_size", [258, 16384])
def test_the_preset_has_the_published_number_of_parameters(vocab_size: int) -> None:
    with torch.device("meta"):
        model = Model(preset(), vocab_size=vocab_size)
    assert parameter_count(model) == 40_901_376 + 1_537 * vocab_size
    assert (
        mixer_module("three_tier").PRESET_V0_3.d_state == preset().options["three_tier"]["d_state"]
    )


def layer_norm(v: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = v - v.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * gain + bias


def logits_by_the_book(model: Model, tokens_BT: Tensor) -> Tensor:
    """Token by token, as the definition of v0.3 has it; dropout off."""
    p = {name.removeprefix("blocks.0.mixer."): v for name, v in model.named_parameters()}
    gain, bias = p["norm.weight"], p["norm.bias"]
    h = L = G = torch.zeros(len(tokens_BT), len(gain), dtype=gain.dtype)
    logits = []
    local, glob = ([p[f"{tier}.{name}"] for name in MATRICES] for tier in TIERS)
    for t, token_B in enumerate(tokens_BT.t()):
        x = p["embedding.weight"][token_B]
        u = x @ p["in_proj.weight"].t() + p["in_proj.bias"]
        pre = h @ p["state_controller"] + u @ p["input_influencer"] + G + L
        h = layer_norm(pre, gain, bias)
        y = h @ p["output_shaper"]
        o = y @ p["out_proj.weight"].t() + p["out_proj.bias"]
        logits.append(o @ p["output.weight"].t() + p["output.bias"])
        if t % 64 == 63:
            A, B, C = glob
            G = layer_norm(G @ A + y @ B, gain, bias) @ C
        if t % 16 == 15:
            A, B, C = local
            L = layer_norm(L @ A + y @ B, gain, bias) @ C
    return torch.stack(logits, 1)


@torch.no_grad()
def test_the_whole_preset_equals_the_loop_of_its_definition() -> None:
    model = Model(preset(d_model=24, d_state=32), vocab_size=VOCAB_SIZE).double().eval()
    for name, parameter in model.named_parameters():
        if ".norm." in name:  # away from gain 1 and bias 0, which would hide a term
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens_BT = some_tokens(150)
    logits_BTV, _ = model(tokens_BT)
    expected = logits_by_the_book(model, tokens_BT)
    torch.testing.assert_close(logits_BTV, expected, rtol=1e-10, atol=1e-10)


@every_mixer
def test_targets_that_do_not_count_change_nothing(mixer: str) -> None:
    model = small_model(layers=(mixer,)).double()
    tokens_BT, targets_BT = some_tokens(20), some_tokens(20)
    weights_BT = torch.rand(2, 20, dtype=torch.float64)
    weights_BT[:, ::3] = 0
    logits_BTV, _ = model(tokens_BT)
    nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    loss, _ = model(tokens_BT, targets_BT=targets_BT, weights_BT=weights_BT)
    torch.testing.assert_close(loss, (weights_BT * nats_BT).sum() / weights_BT.sum())
    targets_BT[weights_BT == 0] = IGNORE_INDEX
    loss, _ = model(tokens_BT, targets_BT=targets_BT)
    torch.testing.assert_close(loss, nats_BT[weights_BT > 0].mean())


@every_mixer
def test_the_last_logits_are_those_of_the_last_token(mixer: str) -> None:
    model, tokens_BT = small_model(layers=(mixer,)).double(), some_tokens(9)
    logits_BTV, state = model(tokens_BT)
    last_B1V, same_state = model(tokens_BT, logits="last")
    torch.testing.assert_close(last_B1V, logits_BTV[:, -1:])
    assert same_state["position_B"].tolist() == state["position_B"].tolist() == [9, 9]


def test_layers_are_repeated_over_the_depth_with_the_options_of_each() -> None:
    options = {"three_tier": {"d_state": 8}, "softmax_attention": {"n_heads": 2, "window": 5}}
    model: Any = small_model(
        layers=("three_tier", "three_tier", "softmax_attention"), n_layers=5, options=options
    )
    kinds = [type(mixer).__module__.rpartition(".")[2] for mixer in model.mixers]
    assert kinds == ["three_tier", "three_tier", "softmax_attention", "three_tier", "three_tier"]
    assert model.mixers[2].window == 5
    assert model.mixers[4].norm.weight.shape == (8,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "layers must name 1 to 2 mixers"),
        ({"layers": ("three_tier",) * 3}, "layers must name 1 to 2 mixers, .* found 3"),
        ({"layers": ("a/b",)}, "without .py, found 'a/b'"),
        ({"convolution": 1}, "convolution must be 2 to 4 taps, or 0 for none, found 1"),
    ],
)
def test_layers_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**settings)


def test_backends_are_those_of_each_mixer() -> None:
    config = ModelConfig(d_model=16, n_layers=2, layers=("three_tier", "softmax_attention"))
    model = Model(config, vocab_size=9, backends={"three_tier": "windowed"})
    assert [mixer.backend for mixer in model.mixers] == ["windowed", "sdpa"]
    selected = model.select_backends(batch_size=2, precision="fp32")
    assert {name: backend for name, (backend, _) in selected.items()} == {
        "three_tier": "windowed",
        "softmax_attention": "sdpa",
    }
    with pytest.raises(UserError, match=r"train\.backend: there is no mixer 'three_teer'"):
        Model(config, vocab_size=9, backends={"three_teer": "cpp"})


def test_every_name_and_option_that_is_none_is_told_at_once() -> None:
    options: dict[str, Any] = {
        "three_tier": {"d_sate": 8},
        "softmax_attention": {"n_heads": "many"},
        "three_teer": {},
    }
    with pytest.raises(UserError) as caught:
        small_model(layers=("three_tier", "softmax"), options=options)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for found in (
        "model.options.three_tier: d_sate is not a field. Did you mean d_state?",
        "model.options.softmax_attention: n_heads must be an integer",
        "model.options: there is no mixer 'three_teer'",
        "model.layers: there is no mixer 'softmax'",
    ):
        assert found in str(caught.value)
