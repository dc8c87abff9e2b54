"""Parts of the trunk that any mixer may stand in: channel mix, layer order, prediction heads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ys_llm.config.cross import CrossConfig
from ys_llm.config.schema import CopyConfig, ModelConfig
from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.inference.decoder import decoder_of
from ys_llm.model.channel_mix import ChannelMix
from ys_llm.model.language_model import Model
from ys_llm.model.state import concat_rows, flatten

VOCAB_SIZE, T = 30, 24
STARTS = (5, 6, 15)
PARTS: dict[str, dict[str, Any]] = {
    "channel mix": {"mlp": "channel_mix"},
    "order": {"n_layers": 3, "layer_order": (0, 1, 1, 0, 2)},
    "cross": {"cross": CrossConfig(layers=2, n_heads=2, n_kv_heads=1)},
    "all": {
        **{"mlp": "channel_mix", "n_layers": 3, "layer_order": (0, 1, 1, 2)},
        **{"layers": ("min_gru", "softmax_attention"), "prediction_heads": 3},
        **{"convolution": 3, "copy": CopyConfig(8, 4)},
        "cross": CrossConfig(layers=2, n_heads=2, window=6),
    },
}

every_part = pytest.mark.parametrize("part", PARTS)


def model_of(**changes: Any) -> Model:
    torch.manual_seed(1)
    settings = {"d_model": 16, "n_layers": 2, "d_mlp": 16, "layers": ("min_gru",), **changes}
    return Model(ModelConfig(**settings), vocab_size=VOCAB_SIZE).double()


def tokens_of(rows: int = 2, length: int = T) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(VOCAB_SIZE, (rows, length), generator=generator)


def starts_of(rows: int = 2) -> Tensor:
    starts_BT = torch.zeros(rows, T, dtype=torch.bool)
    starts_BT[0, list(STARTS)] = True
    return starts_BT


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@every_part
@torch.no_grad()
def test_text_in_pieces_is_read_as_in_one_pass(part: str) -> None:
    model, tokens_BT, starts_BT = model_of(**PARTS[part]), tokens_of(), starts_of()
    whole, last = model(tokens_BT, None, starts_BT)
    for cuts in ((7,), (1, 5, 6, 15, 23), tuple(range(1, T))):
        state, outputs = None, []
        for begin, end in pairwise((0, *cuts, T)):
            part_BT = slice(begin, end)
            output, state = model(tokens_BT[:, part_BT], state, starts_BT[:, part_BT])
            outputs.append(output)
        assert_same(torch.cat(outputs, 1), whole)
        assert state is not None
        expected = flatten(last)
        for name, tensor in flatten(state).items():
            assert_same(tensor, expected[name])


@every_part
@torch.no_grad()
def test_a_document_is_read_as_it_is_alone(part: str) -> None:
    model, tokens_BT = model_of(**PARTS[part]), tokens_of(1)
    packed, _ = model(tokens_BT, None, starts_of(1))
    for begin, end in pairwise((0, *STARTS, T)):
        assert_same(packed[:, begin:end], model(tokens_BT[:, begin:end])[0])


@every_part
@torch.no_grad()
def test_rows_at_different_clocks_know_nothing_of_each_other(part: str) -> None:
    model, tokens_BT = model_of(**PARTS[part]), tokens_of(3)
    states = [model(row[None, :n])[1] for row, n in zip(tokens_BT, (3, 11, 1), strict=True)]
    together, _ = model(tokens_BT[:, 11:14], concat_rows(states))
    for row, state in enumerate(states):
        alone, _ = model(tokens_BT[row : row + 1, 11:14], state)
        assert_same(together[row : row + 1], alone)


def test_no_gradient_of_a_channel_mix_crosses_a_document_start() -> None:
    mix = ChannelMix(6, 8).double()
    mix.initialise(depth=0.5, n_layers=2)
    x_BTD = torch.randn(2, T, 6, dtype=torch.float64, requires_grad=True)
    y_BTD, _ = mix(x_BTD, mix.init_state(2), starts_of())
    y_BTD[0, 6:].sum().backward()
    assert x_BTD.grad is not None
    assert x_BTD.grad[0, :6].count_nonzero() == 0
    assert x_BTD.grad[0, 6:].abs().amax(-1).min() > 0


@torch.no_grad()
def test_a_channel_mix_is_that_of_its_source() -> None:
    mix = ChannelMix(6, 8).double()
    mix.initialise(depth=0.25, n_layers=2)
    channel = torch.arange(6, dtype=torch.float64)
    expected = (1 - (channel / 6) ** 0.75).repeat(2, 1)
    torch.testing.assert_close(mix.shift, expected, rtol=1e-6, atol=1e-6)
    x_BTD = torch.randn(2, T, 6, dtype=torch.float64)
    found, _ = mix(x_BTD, mix.init_state(2), None)
    before = torch.zeros(2, 6, dtype=torch.float64)
    for t, x in enumerate(x_BTD.unbind(1)):
        key, receptance = (x + (before - x) * shift for shift in mix.shift)
        hidden = torch.relu(key @ mix.key.weight.T) ** 2
        gate = torch.sigmoid(receptance @ mix.receptance.weight.T)
        assert_same(found[:, t], gate * (hidden @ mix.value.weight.T))
        before = x


@torch.no_grad()
def test_a_block_that_comes_again_is_a_copy_of_itself() -> None:
    shared, order = model_of(n_layers=3, layer_order=(0, 1, 1, 0, 2)), (0, 1, 1, 0, 2)
    apart = model_of(n_layers=5)
    weights = shared.state_dict()
    for name, tensor in apart.state_dict().items():
        head, number, *rest = name.split(".")
        if head == "blocks":
            tensor.copy_(weights[".".join((head, str(order[int(number)]), *rest))])
        else:
            tensor.copy_(weights[name])
    tokens_BT = tokens_of()
    assert_same(shared(tokens_BT)[0], apart(tokens_BT)[0])
    assert len(shared.init_state(1)["layers"]) == 5


@torch.no_grad()
def test_the_compiled_decoder_knows_orders_and_leaves_further_heads_out() -> None:
    options = {"three_tier": {"d_state": 16}}
    changes = {"layers": ("three_tier",), "options": options, "prediction_heads": 2}
    model = model_of(n_layers=3, layer_order=(0, 1, 1, 0, 2), **changes).eval()
    decoder, ids = decoder_of(model), tokens_of(1)[0].tolist()
    if decoder is None:
        pytest.skip("there is no compiled decoder here")
    sequence = decoder.sequence(model.init_state(1))
    found = torch.cat([decoder.step([sequence], [id]) for id in ids])
    assert_same(found, model(torch.tensor([ids]))[0][0])
    assert decoder_of(model_of(mlp="channel_mix", layers=("three_tier",), options=options)) is None


def test_further_heads_change_the_loss_of_training_alone() -> None:
    model, plain = model_of(prediction_heads=3), model_of()
    plain.load_state_dict(model.state_dict(), strict=False)
    tokens_BT, targets_BT = tokens_of(), tokens_of(2)
    assert_same(model(tokens_BT)[0], plain(tokens_BT)[0])
    expected, _ = plain(tokens_BT, targets_BT=targets_BT)
    assert_same(model.eval()(tokens_BT, targets_BT=targets_BT)[0], expected)
    trained, _ = model.train()(tokens_BT, targets_BT=targets_BT)
    assert not torch.allclose(trained, expected)
    trained.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_each_head_predicts_its_own_token_of_the_same_document() -> None:
    model, tokens_BT, starts_BT = model_of(prediction_heads=3).train(), tokens_of(), starts_of()
    targets_BT = torch.cat([tokens_BT[:, 1:], torch.full((2, 1), IGNORE_INDEX)], 1)
    loss, _ = model(tokens_BT, None, starts_BT, targets_BT=targets_BT)
    read: dict[str, Tensor] = {}
    handle = model.final_norm.register_forward_hook(lambda _, __, y: read.update(x=y[1]))
    model(tokens_BT, None, starts_BT)
    handle.remove()
    assert model.extra_heads is not None
    losses = []
    for ahead in range(3):
        hidden = read["x"] + (model.extra_heads.mlps[ahead - 1](read["x"]) if ahead else 0)
        log_p = F.log_softmax(model.output(hidden), -1)
        nats = [
            -log_p[row, t, tokens_BT[row, t + 1 + ahead]]
            for row in range(2)
            for t in range(T - 1 - ahead)
            if not starts_BT[row, t + 1 : t + 1 + ahead].any()
        ]
        losses.append(torch.stack(nats).mean())
    assert_same(loss, torch.stack(losses).mean())


def test_a_row_shorter_than_the_heads_reach_has_a_finite_loss() -> None:
    model, tokens_BT = model_of(prediction_heads=4).train(), tokens_of(2, 2)
    loss, _ = model(tokens_BT, targets_BT=tokens_BT)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_order": (0, 2)}, "each of 0 to 1"),
        ({"layer_order": (0, 0)}, r"found \[0, 0\]"),
        ({"prediction_heads": 2, "d_mlp": 0}, "d_mlp is 0"),
    ],
)
def test_settings_that_leave_a_part_out_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(n_layers=2, **changes)
