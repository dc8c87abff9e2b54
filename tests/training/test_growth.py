"""A deeper model that begins with the weights of a shallower run begins with its loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.training_runs import TrainRun, assert_same_training

from ys_llm.config.cross import CrossConfig
from ys_llm.config.schema import ModelConfig
from ys_llm.errors import UserError
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.runs.folder import checkpoints
from ys_llm.runs.model_files import load_run, load_weights, weights
from ys_llm.training.growth import fitted

VOCAB_SIZE, SOURCE = 30, Path("runs/small")
CROSS = CrossConfig(layers=1, n_heads=2)
BASE = ModelConfig(d_model=16, n_layers=3, d_mlp=16, layers=("min_gru",))
NO_IDENTITY = ("lru", "ys_v0_1")  # their inputs also reach their outputs by another way


def model_of(config: ModelConfig) -> Model:
    return Model(config, vocab_size=VOCAB_SIZE).double()


def grown(small: Model, config: ModelConfig) -> tuple[Model, range]:
    large = model_of(config)
    tensors, new = fitted(large, weights(small), small.config, SOURCE)
    load_weights(large, tensors, SOURCE)
    return large, new


def perturbed(model: Model) -> Model:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def onion(n_layers: int) -> tuple[int, ...]:
    """0 .. L-2, L-2 .. 1, L-1."""
    return (*range(n_layers - 1), *range(n_layers - 2, 0, -1), n_layers - 1)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"n_layers": 5}, [1, 2]),  # as near to the middle as they can be
        ({"layer_order": onion(3)}, {"n_layers": 4, "layer_order": onion(4)}, [2]),
        ({"mlp": "channel_mix"}, {"mlp": "channel_mix", "n_layers": 4}, [1]),
        ({"convolution": 3}, {"convolution": 3, "n_layers": 4}, [1]),
        ({"cross": CROSS}, {"cross": CROSS, "n_layers": 4}, [1]),
        ({}, {"n_layers": 4, "prediction_heads": 2}, [1]),
        ({"prediction_heads": 3}, {"n_layers": 3}, []),
    ],
)
def test_the_loss_is_that_of_the_source(
    before: dict[str, Any], after: dict[str, Any], expected: list[int]
) -> None:
    torch.manual_seed(0)
    small = perturbed(model_of(replace(BASE, **before))).eval()
    large, new = grown(small, replace(BASE, **after))
    tokens_BT = torch.randint(VOCAB_SIZE, (2, 20))
    assert torch.equal(large.eval()(tokens_BT)[0], small(tokens_BT)[0])
    assert list(new) == expected


@pytest.mark.parametrize("mixer", mixer_names())
def test_a_new_block_of_any_mixer_is_an_identity_that_learns(mixer: str) -> None:
    config, n_layers = replace(BASE, layers=(mixer,), n_layers=2), 3
    small = perturbed(model_of(config))
    if mixer in NO_IDENTITY:
        with pytest.raises(UserError, match=f"of {mixer} cannot begin as an identity"):
            grown(small, replace(config, n_layers=n_layers))
        return
    large, (new,) = grown(small, replace(config, n_layers=n_layers))
    tokens_BT = torch.randint(VOCAB_SIZE, (2, 130))  # past a long period
    assert torch.equal(large(tokens_BT)[0], small(tokens_BT)[0])
    optimizer, learned = torch.optim.SGD(large.parameters(), lr=0.01), set[str]()
    for _ in range(3):  # a factor may begin at 0, and the last matrices do
        optimizer.zero_grad()
        large(tokens_BT, targets_BT=tokens_BT)[0].backward()
        optimizer.step()
        block = large.blocks[new].named_parameters()
        learned |= {name for name, p in block if p.grad is not None and p.grad.any()}
    assert learned == {name for name, _ in large.blocks[new].named_parameters()}


def test_a_pattern_that_new_blocks_would_break_is_refused() -> None:
    layers = ("min_gru", "softmax_attention", "min_gru")
    small = model_of(replace(BASE, layers=layers))
    with pytest.raises(UserError, match="no place is found for 1 more"):
        grown(small, replace(BASE, n_layers=4, layers=("softmax_attention",)))
    shared = replace(BASE, n_layers=4, layer_order=(3, 2, 1, 0))
    with pytest.raises(UserError, match=r"model\.layer_order that are the source's"):
        grown(model_of(BASE), shared)


def test_a_run_grows_from_another_and_resumes(train_run: TrainRun) -> None:
    common = ("model.n_layers=2", "model.layers=[min_gru]")
    small = train_run(*common, "run=small")
    grow = ("model.n_layers=3", "model.layers=[min_gru]", "train.init_from=small", "run=large")
    train_run(*grow, "train.max_steps=4", "train.keep_checkpoints=9")
    first = torch.randint(200, (1, 30))
    large = load_run(small.run.parent / "large").model
    [begin, *_] = checkpoints(small.run.parent / "large")
    load_weights(large, load_file(begin / "model.safetensors"), begin)
    assert torch.equal(large(first)[0], load_run(small.run).model(first)[0])
    parts = train_run(*grow, "train.max_steps=7")
    whole = train_run(*grow[:-1], "run=whole", "train.max_steps=7")
    assert_same_training(parts.run, whole.run)
