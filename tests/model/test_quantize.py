"""Quantised linear layers: what they keep, what they compute, and what they lose."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training_runs import TrainRun
from torch import Tensor, nn

from ys_llm.config.schema import CopyConfig, ModelConfig
from ys_llm.csrc import loader
from ys_llm.evaluation.bits_per_byte import evaluate_paths
from ys_llm.inference.decoder import Decoder, decoder_of
from ys_llm.model.language_model import Model
from ys_llm.model.quantize import Quantization, QuantizedLinear, int8_rows, quantize_linears
from ys_llm.runs.model_files import load_run

D, D_MLP, S, R, V, LAYERS = 32, 48, 24, 8, 101, 2
SIZES: list[tuple[Quantization, int]] = [("bf16", 2), ("int8", 1)]
FACTORED = {"d_summary": 0, "factored": True, "shared_norm": True, "summary_scale": "fixed"}
SHAPES: dict[str, dict[str, Any]] = {
    "default": {"options": {"d_state": S, "d_summary": R}},
    "odd": {"d_model": 33, "d_mlp": 17, "options": {"d_state": 7, "d_summary": 5}},
    "heads": {"options": {"d_state": S, "d_summary": 6, "n_heads": 3, "factored": True}},
    "no summaries": {"options": {"d_state": S, "local_interval": 0, "global_interval": 0}},
    "tied": {"tie_embeddings": True, "options": {"d_state": S}},
    "v0.3": {"block": "plain", "d_mlp": 0, "options": {"d_state": 40, **FACTORED}},
    "copy": {"copy": CopyConfig(40, 16), "options": {"d_state": S}},
}


def model_of(shape: str = "default", **changes: Any) -> Model:
    torch.manual_seed(1)
    config = {"d_model": D, "n_layers": LAYERS, "d_mlp": D_MLP, **SHAPES[shape], **changes}
    config["options"] = {"three_tier": config["options"]}
    model = Model(ModelConfig(**config), vocab_size=V).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no bias at 0, no gain at 1
    return model


def logits_of(model: Model, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0][0]


def decoder_for(model: Model) -> Decoder:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())
    decoder = decoder_of(model)
    assert decoder is not None
    return decoder


def bytes_of(module: nn.Module) -> int:
    """Of every tensor in a module, shared ones once."""
    tensors = {
        value.data_ptr(): value.nbytes
        for part in module.modules()
        for value in [*vars(part).values(), *part._parameters.values(), *part._buffers.values()]
        if isinstance(value, Tensor)
    }
    return sum(tensors.values())


@given(
    rows=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5
    )
)
def test_a_row_in_int8_is_off_by_half_a_step_at_most(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows)
    quantized, scales = int8_rows(weight)
    assert quantized.dtype == torch.int8
    assert quantized.abs().max() <= 127
    error = (quantized * scales[:, None] - weight).abs()
    assert (error <= scales[:, None] * 0.5001 + 1e-30).all()
    assert torch.equal(quantized[weight == 0], torch.zeros_like(quantized[weight == 0]))


@pytest.mark.parametrize(("quantization", "size"), SIZES)
def test_only_the_quantised_weight_is_kept(quantization: Quantization, size: int) -> None:
    linear = nn.Linear(64, 48)
    layer = QuantizedLinear(linear, quantization)
    scales = 4 * 48 if quantization == "int8" else 0
    assert bytes_of(layer) == size * 64 * 48 + scales + 4 * 48
    layer(torch.randn(3, 64))
    assert bytes_of(layer) == size * 64 * 48 + scales + 4 * 48


@pytest.mark.parametrize(("quantization", "share"), [("bf16", 0.6), ("int8", 0.35)])
def test_a_quantised_model_takes_less_memory(quantization: Quantization, share: float) -> None:
    model = model_of(d_model=128, d_mlp=384)
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    before, in_linears = bytes_of(model), sum(bytes_of(linear) for linear in linears)
    del linears
    quantize_linears(model, quantization)
    assert bytes_of(model) < before - (1 - share) * in_linears


@pytest.mark.parametrize("quantization", ["bf16", "int8"])
def test_it_computes_with_the_rounded_weight(quantization: Quantization) -> None:
    linear, x = nn.Linear(64, 48), torch.randn(5, 64)
    layer = QuantizedLinear(linear, quantization)
    rounded = linear.weight.bfloat16().float()
    if quantization == "int8":
        quantized, scales = int8_rows(linear.weight.detach())
        rounded = quantized.float() * scales[:, None]
    assert torch.equal(layer.weight, rounded)
    expected = torch.nn.functional.linear(x, rounded, linear.bias)
    torch.testing.assert_close(layer(x), expected)
    assert not torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("quantization", ["bf16", "int8"])
def test_a_state_dict_holds_all_of_it(quantization: Quantization) -> None:
    model = model_of()
    quantize_linears(model, quantization)
    other = model_of()
    quantize_linears(other, quantization)
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.zero_()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(logits_of(other, [1, 2, 3]), logits_of(model, [1, 2, 3]))
    with pytest.raises(RuntimeError, match="weight"):
        model_of().load_state_dict(model.state_dict())


@pytest.mark.parametrize("quantization", ["bf16", "int8"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_decoder_reads_what_torch_computes_with(shape: str, quantization: Quantization) -> None:
    model, ids = model_of(shape), torch.arange(70).tolist()
    exact = logits_of(model, ids)
    quantize_linears(model, quantization)
    decoder = decoder_for(model)
    sequence = decoder.sequence(model.init_state(1))
    found = torch.cat([decoder.step([sequence], [id]) for id in ids])
    expected = logits_of(model, ids)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (found - exact).norm() > 1e-4 * exact.norm(), "nothing was rounded"


@pytest.mark.parametrize(("quantization", "loss"), [("bf16", 2e-3), ("int8", 5e-3)])
def test_a_trained_model_loses_next_to_nothing(
    train_run: TrainRun, corpus: Path, quantization: Quantization, loss: float
) -> None:
    run = train_run("train.max_steps=60", "train.learning_rate=0.01").run

    def bits(chosen: Quantization | None) -> float:
        loaded = load_run(run)
        if chosen:
            quantize_linears(loaded.model, chosen)
        (found,) = evaluate_paths(loaded, [corpus])
        return found.result.bits_per_byte

    exact, quantized = bits(None), bits(quantization)
    assert exact < 5
    assert quantized != exact
    assert abs(quantized / exact - 1) < loss


@pytest.mark.parametrize(("quantization", "size"), SIZES)
@pytest.mark.parametrize("shape", ["default", "no summaries", "tied"])
def test_a_token_reads_fewer_bytes(shape: str, quantization: Quantization, size: int) -> None:
    model = model_of(shape)
    width = R if shape == "default" else S
    intervals = (16, 64) if shape != "no summaries" else ()
    linears = LAYERS * (2 * D * S + 3 * D * D_MLP) + V * D
    others = LAYERS * (S * S + sum(3 * S * (width or 64) / n for n in intervals))
    if shape == "tied":
        others = LAYERS * (S * S + sum(3 * S * 64 / n for n in intervals))
    assert decoder_for(model).bytes_per_token == pytest.approx(4 * (linears + others))
    quantize_linears(model, quantization)
    assert decoder_for(model).bytes_per_token == pytest.approx(size * linears + 4 * others)


def test_every_linear_layer_and_nothing_else_is_quantised() -> None:
    model = model_of("tied")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    linears = [name for name, m in model.named_modules() if type(m) is nn.Linear]
    quantize_linears(model, "int8")
    quantize_linears(model, "int8")  # once more changes nothing
    quantized = [name for name, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    assert linears == quantized
    after = model.state_dict()
    for name, value in before.items():
        module, _, part = name.rpartition(".")
        if module in linears and part == "weight":
            assert after[f"{module}.quantized"].dtype == torch.int8
        else:
            assert torch.equal(after[name], value)
