"""Each kind of bad number, planted in a real model at a known place, is found at that place."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from ys_llm.config.schema import CopyConfig, ModelConfig
from ys_llm.data.batches import Batch
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.model.state import map_state
from ys_llm.training.recovery.diagnosis import (
    StepInputs,
    capture_inputs,
    diagnose,
    diagnose_step,
)
from ys_llm.training.recovery.report import Diagnosis

VOCAB_SIZE = 30
B, T = 4, 100
RARE = VOCAB_SIZE - 1  # a token that only the traps contain
HUGE = 3e38  # the largest float32 is 3.4e38
THREE_TIER = {"d_state": 16, "d_summary": 8}

every_mixer = pytest.mark.parametrize("mixer", mixer_names())
every_block = pytest.mark.parametrize("block", ["pre_norm", "plain"])


def small_model(mixer: str = "three_tier", **changes: Any) -> Any:
    options = THREE_TIER if mixer == "three_tier" else {}
    settings = {"d_model": 16, "n_layers": 3, "d_mlp": 24, "layers": (mixer,)}
    settings["options"] = {mixer: options}
    return Model(ModelConfig(**{**settings, **changes}), vocab_size=VOCAB_SIZE).train()


def inputs_of(*, state: Any = None, starts_BT: Tensor | None = None, length: int = T) -> StepInputs:
    inputs_BT, targets_BT = torch.randint(RARE, (2, B, length))
    starts = torch.zeros(B, length, dtype=torch.bool) if starts_BT is None else starts_BT
    return capture_inputs(
        Batch(inputs_BT, targets_BT, starts, carry=state is not None), state, starts_BT
    )


def found(model: Any, inputs: StepInputs) -> Diagnosis:
    """The diagnosis, having checked that it is plain and leaves all as it was."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    diagnosis = diagnose(model, inputs, autocast=torch.autocast("cpu", enabled=False))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, weights[n]) or t.isnan().any() for n, t in model.state_dict().items())
    assert model.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    json.dumps(asdict(diagnosis))
    assert "\n" not in diagnosis.sentence
    return diagnosis


@torch.no_grad()
def plant(parameter: Tensor, value: float) -> None:
    parameter.view(-1)[1] = value


def carried(model: Any) -> Any:
    """A state as a batch leaves it, tensors of its own."""
    _, state = model(torch.randint(RARE, (B, 20)))
    return map_state(state, lambda tensor: tensor.detach().clone())


@torch.no_grad()
def trap(model: Any, layer: int) -> None:
    """Channel 0 of the stream before `layer` is 10 at the rare token and 0 at every other."""
    model.embedding.weight[:, 0] = 0
    model.embedding.weight[RARE] = 0
    model.embedding.weight[RARE, 0] = 10
    for block in model.blocks[:layer]:
        block.mixer.out_proj.weight[0] = 0
        if getattr(block.mixer.out_proj, "bias", None) is not None:
            block.mixer.out_proj.bias[0] = 0
        if hasattr(block, "mlp"):
            block.mlp.down.weight[0] = 0


@every_mixer
@every_block
def test_nothing_wrong_is_told_as_not_reproduced(mixer: str, block: str) -> None:
    model = small_model(mixer, block=block)
    inputs = inputs_of()
    diagnosis = found(model, inputs)
    assert diagnosis.kind == "not reproduced"
    loss, _ = model(inputs.batch.inputs_BT, targets_BT=inputs.batch.targets_BT)
    assert diagnosis.loss == loss.item()
    torch.autograd.backward(loss)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert diagnosis.grad_norm == pytest.approx(norm.item(), rel=1e-5)


@every_mixer
@every_block
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_weight_is_named(mixer: str, block: str, value: float) -> None:
    model = small_model(mixer, block=block)
    plant(model.blocks[1].mixer.out_proj.weight, value)
    plant(model.output.weight, value)
    diagnosis = found(model, inputs_of())
    assert diagnosis.kind == "weights"
    assert (diagnosis.where, diagnosis.layer) == ("blocks.1.mixer.out_proj.weight", 1)
    assert diagnosis.parameters == ("blocks.1.mixer.out_proj.weight", "output.weight")
    assert diagnosis.non_finite_count == 2
    assert "2 weights not finite" in diagnosis.sentence


def tiers_of_every_mixer() -> list[Any]:
    states = {mixer: small_model(mixer).init_state(1)["layers"][0] for mixer in mixer_names()}
    return [
        pytest.param(mixer, name, id=f"{mixer}-{name}")
        for mixer, state in states.items()
        for name, value in state.items()
        if torch.is_tensor(value) and value.is_floating_point()
    ]


@every_block
@pytest.mark.parametrize(("mixer", "tier"), tiers_of_every_mixer())
def test_a_bad_entry_of_the_carried_state_is_named(mixer: str, tier: str, block: str) -> None:
    model = small_model(mixer, block=block)
    state = carried(model)
    state["layers"][2][tier][3] = math.inf
    diagnosis = found(model, inputs_of(state=state))
    assert (diagnosis.kind, diagnosis.layer, diagnosis.entries) == ("state", 2, (tier,))
    assert diagnosis.rows == (3,)
    assert diagnosis.sentence == f"carried state of layer 2: {tier} not finite in row 3"


@pytest.mark.parametrize("entry", ["keys", "pending"])
def test_a_bad_entry_of_the_copy_tier_is_named(entry: str) -> None:
    model = small_model(copy=CopyConfig(window=9, width=4))
    state = carried(model)
    state["copy"][entry][1] = math.nan
    diagnosis = found(model, inputs_of(state=state))
    assert (diagnosis.kind, diagnosis.where, diagnosis.layer) == ("state", "copy_tier", None)
    assert diagnosis.sentence == f"carried state of the copy tier: {entry} not finite in row 1"


def test_an_overflow_in_the_copy_tier_is_found_there() -> None:
    model = small_model(copy=CopyConfig(window=9, width=4))
    with torch.no_grad():
        model.copy_tier.query.weight.fill_(HUGE)
    diagnosis = found(model, inputs_of(state=carried(model)))
    assert (diagnosis.kind, diagnosis.where) == ("forward", "copy_tier")


@pytest.mark.parametrize(("row", "step"), [(0, 0), (2, 37), (3, T - 1)])
@pytest.mark.parametrize("mixer", mixer_names())
def test_an_overflow_outside_the_mixer_is_found_at_its_token(
    mixer: str, row: int, step: int
) -> None:
    model, inputs = small_model(mixer), inputs_of()
    trap(model, 2)
    inputs.batch.inputs_BT[row, step] = RARE
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[:, 0] = HUGE
    diagnosis = found(model, inputs)
    assert (diagnosis.kind, diagnosis.where, diagnosis.layer) == ("forward", "blocks.1.mlp", 1)
    assert (diagnosis.step, diagnosis.rows, diagnosis.entries) == (step, (row,), ())


@pytest.mark.parametrize(("row", "step"), [(0, 0), (2, 37), (3, T - 1)])
@pytest.mark.parametrize("block", ["pre_norm", "plain"])
@pytest.mark.parametrize(
    ("mixer", "projection", "where", "entry"),
    [
        # Their products are one with what is around them.
        ("three_tier", "in_proj", "mixer", "main"),
        ("softmax_attention", "k_proj", "mixer", "keys"),
    ],
)
def test_an_overflow_inside_a_mixer_is_found_at_its_token(
    mixer: str, projection: str, where: str, entry: str, block: str, row: int, step: int
) -> None:
    model, inputs = small_model(mixer, block=block), inputs_of()
    layer = 1 if block == "pre_norm" else 0
    trap(model, layer)
    inputs.batch.inputs_BT[row, step] = RARE
    with torch.no_grad():
        getattr(model.blocks[layer].mixer, projection).weight[:, 0] = HUGE
    diagnosis = found(model, inputs)
    assert diagnosis.kind == "forward"
    assert diagnosis.where == f"blocks.{layer}.{where}"
    assert diagnosis.layer == layer
    assert (diagnosis.step, diagnosis.rows) == (step, (row,))
    assert diagnosis.entries[0] == entry
    assert entry in diagnosis.sentence
    assert f"from step {step} of row {row} on" in diagnosis.sentence


@pytest.mark.parametrize("backend", ["reference", "windowed"])
def test_an_overflow_of_the_main_state_is_found_at_its_step(backend: str) -> None:
    # A state of 0 multiplies whatever it likes: with a document at every step nothing happens.
    starts_BT = torch.ones(B, T, dtype=torch.bool)
    starts_BT[2, 37] = False
    model = small_model()
    for block in model.blocks:
        block.mixer.backend = backend
    with torch.no_grad():
        model.blocks[2].mixer.state_controller.copy_(HUGE * torch.randn(16, 16).sign())
    diagnosis = found(model, inputs_of(starts_BT=starts_BT))
    assert (diagnosis.kind, diagnosis.where) == ("forward", "blocks.2.mixer")
    assert (diagnosis.entries, diagnosis.step, diagnosis.rows) == (("main",), 37, (2,))
    assert diagnosis.sentence == (
        "blocks.2.mixer: main state not finite from step 37 of row 2 on "
        "(weights, carried state and inputs finite)"
    )


@pytest.mark.parametrize(("tier", "every"), [("local_summary", 16), ("global_summary", 64)])
@pytest.mark.parametrize("position", [0, 20])
@every_block
def test_an_overflow_of_a_summary_is_found_at_its_first_renewal(
    tier: str, every: int, position: int, block: str
) -> None:
    model = small_model(block=block)
    state = carried(model) if position else None
    with torch.no_grad():
        getattr(model.blocks[1].mixer, tier).output_shaper.fill_(HUGE)
        getattr(model.blocks[1].mixer, tier).norm.bias.fill_(1)
    diagnosis = found(model, inputs_of(state=state))
    assert (diagnosis.kind, diagnosis.where, diagnosis.entries) == (
        "forward",
        "blocks.1.mixer",
        (tier,),
    )
    assert diagnosis.step == (every - 1 - position) % every
    assert diagnosis.rows == tuple(range(B))


def test_a_state_that_only_the_next_batch_would_read_is_found_too() -> None:
    model = small_model()
    with torch.no_grad():
        model.blocks[0].mixer.global_summary.output_shaper.fill_(HUGE)
        model.blocks[0].mixer.global_summary.norm.bias.fill_(1)
    inputs = inputs_of(length=64)  # renewed after the last token
    loss, _ = model(inputs.batch.inputs_BT, targets_BT=inputs.batch.targets_BT)
    assert loss.isfinite()
    diagnosis = found(model, inputs)
    assert (diagnosis.entries, diagnosis.step) == (("global_summary",), 63)


@every_mixer
def test_logits_that_overflow_are_the_heads(mixer: str) -> None:
    model, inputs = small_model(mixer), inputs_of()
    trap(model, 3)
    inputs.batch.inputs_BT[1, 70] = RARE
    with torch.no_grad():
        model.output.weight[5, 0] = HUGE
    diagnosis = found(model, inputs)
    assert (diagnosis.kind, diagnosis.where) == ("loss", "output")
    assert (diagnosis.step, diagnosis.rows) == (70, (1,))


def test_finite_logits_too_far_apart_are_the_cross_entropys() -> None:
    model, inputs = small_model(), inputs_of()
    trap(model, 3)
    inputs.batch.inputs_BT[1, 70] = RARE
    inputs.batch.targets_BT[1, 70] = 6
    with torch.no_grad():
        model.output.weight[5, 0], model.output.weight[6, 0] = HUGE / 4, -HUGE / 4
        model.final_norm.weight.fill_(0.9)
    diagnosis = found(model, inputs)
    assert (diagnosis.kind, diagnosis.where) == ("loss", "cross_entropy")
    assert (diagnosis.step, diagnosis.rows) == (70, (1,))


class BadBackward(torch.autograd.Function):
    """The identity, whose gradient is NaN at one place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: int, step: int) -> Tensor:
        ctx.place = row, step
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = grads[0].clone()
        grad[ctx.place] = math.nan
        return grad, None, None


@every_mixer
@every_block
def test_a_gradient_is_found_where_it_turns_bad(mixer: str, block: str) -> None:
    model = small_model(mixer, block=block)
    inner = model.blocks[1].mixer
    forward = inner.forward
    inner.forward = lambda x, *rest: forward(BadBackward.apply(x, 2, 37), *rest)
    diagnosis = found(model, inputs_of())
    assert (diagnosis.kind, diagnosis.where, diagnosis.layer) == ("backward", "blocks.1.mixer", 1)
    assert (diagnosis.step, diagnosis.rows) == (37, (2,))
    assert "blocks.0.mixer.out_proj.weight" in diagnosis.parameters
    assert not [name for name in diagnosis.parameters if name.startswith("blocks.2")]
    assert math.isfinite(diagnosis.loss or math.nan)


def test_an_exploding_gradient_is_found_in_its_layer() -> None:
    # LN of 0 is 0, and 1 / sqrt(1e-5) = 316 on the way back: with A = 1000 1, 3e5 for each step.
    model = small_model()
    mixer = model.blocks[1].mixer
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        mixer.in_proj.bias.zero_()
        mixer.state_controller.copy_(1000 * torch.eye(16))
    diagnosis = found(model, inputs_of())
    assert (diagnosis.kind, diagnosis.where) == ("backward", "blocks.1.mixer")
    assert "blocks.1.mixer.state_controller" in diagnosis.parameters
    assert not [name for name in diagnosis.parameters if name.startswith("blocks.2")]


def test_a_gradient_of_weights_alone_is_found_by_its_parameters() -> None:
    model = small_model()
    model.blocks[0].mlp.down.weight.register_hook(lambda grad: grad * math.inf)
    diagnosis = found(model, inputs_of())
    assert (diagnosis.kind, diagnosis.where) == ("backward", "blocks.0.mlp.down")
    assert diagnosis.parameters == ("blocks.0.mlp.down.weight",)


def test_a_norm_that_overflows_over_finite_gradients_is_told() -> None:
    model = small_model()
    model.blocks[0].mlp.down.weight.register_hook(lambda grad: grad * 0 + 1e38)
    diagnosis = found(model, inputs_of())
    assert (diagnosis.kind, diagnosis.where) == ("norm", "blocks.0.mlp.down.weight")


def test_dropout_is_drawn_as_it_was() -> None:
    model = small_model(dropout=0.5)
    inputs = inputs_of()
    loss, _ = model(inputs.batch.inputs_BT, targets_BT=inputs.batch.targets_BT)
    assert found(model, inputs).loss == loss.item()
    torch.rand(3)
    assert found(model, inputs).loss == loss.item()


def test_bf16_operands_are_used_again() -> None:
    model, inputs = small_model("softmax_attention"), inputs_of()
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast:
        loss, _ = model(inputs.batch.inputs_BT, targets_BT=inputs.batch.targets_BT)
    assert diagnose(model, inputs, autocast=autocast).loss == loss.item()


def test_of_accumulated_batches_the_bad_one_is_named() -> None:
    model = small_model()
    inputs = [inputs_of(state=carried(model)) for _ in range(3)]
    state: Any = inputs[1].state
    state["layers"][0]["main"][2] = math.nan
    off = torch.autocast("cpu", enabled=False)
    number, diagnosis = diagnose_step(model, inputs, autocast=off)
    assert (number, diagnosis.kind, diagnosis.rows) == (1, "state", (2,))
    number, diagnosis = diagnose_step(model, inputs[::2], autocast=off)
    assert (number, diagnosis.kind) == (1, "not reproduced")
