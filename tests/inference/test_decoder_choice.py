"""Which models the compiled decoder takes, how long it is kept, and that threads may share it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ys_llm.config.schema import CopyConfig, ModelConfig
from ys_llm.csrc import loader
from ys_llm.inference import decoder as decoder_module
from ys_llm.inference.decoder import BYTES_PER_THREAD, Decoder, decoder_of, forget_decoder
from ys_llm.mixers import softmax_attention, three_tier
from ys_llm.model.language_model import Model
from ys_llm.model.quantize import quantize_linears

V, D = 101, 32


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())


def model_of(dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    torch.manual_seed(1)
    options = {"three_tier": {"d_state": 24, "d_summary": 8, "local_interval": 3}}
    settings = {"d_model": D, "n_layers": 2, "d_mlp": 48, "options": options, **changes}
    model = Model(ModelConfig(**settings), vocab_size=V).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def decoder_for(model: Model) -> Decoder:
    decoder = decoder_of(model)
    assert decoder is not None
    return decoder


def by_torch(model: Model, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0][0]


def by_decoder(model: Model, ids: list[int]) -> Tensor:
    decoder = decoder_for(model)
    sequence = decoder.sequence(model.init_state(1))
    return torch.cat([decoder.step([sequence], [id]) for id in ids])


class Adapter(nn.Module):
    """A low-rank adapter around a linear layer that still shows the layer's weight, as peft's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class MyLinear(nn.Linear):
    """A subclass, whose forward may be anything."""


def replace_forward(module: nn.Module) -> None:
    module.forward = lambda x: x  # type: ignore[method-assign]


def use_subclass(model: Any) -> None:
    model.blocks[0].mlp.down = MyLinear(48, D, bias=False)


def wrap_projection(model: Any) -> None:
    model.blocks[1].mixer.in_proj = Adapter(model.blocks[1].mixer.in_proj)


def wrap_head(model: Any) -> None:
    model.output = Adapter(model.output)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "an adapter in a mixer": wrap_projection,
    "an adapter on the head": wrap_head,
    "a subclass": use_subclass,
    "a forward hook": lambda m: m.output.register_forward_hook(lambda *_: None),
    "a pre-hook": lambda m: m.blocks[0].mixer.register_forward_pre_hook(lambda *_: None),
    "a replaced forward": lambda m: replace_forward(m.blocks[0].mlp),
    "a parametrised weight": lambda m: parametrize.register_parametrization(
        m.blocks[0].mlp.up, "weight", Doubled()
    ),
    "a parametrised state controller": lambda m: parametrize.register_parametrization(
        m.blocks[0].mixer, "state_controller", Doubled()
    ),
    "weight norm": lambda m: parametrizations.weight_norm(m.blocks[0].mlp.gate),
    "another device": lambda m: m.to("meta"),
    "bfloat16": lambda m: m.bfloat16(),
    "two dtypes": lambda m: m.output.double(),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_model_that_computes_something_else_is_left_to_torch(change: str) -> None:
    model = model_of()
    assert decoder_of(model) is not None
    CHANGES[change](model)
    assert decoder_of(model) is None


def test_a_global_hook_leaves_every_model_to_torch() -> None:
    model = model_of()
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert decoder_of(model) is None
    assert decoder_of(model) is not None


def test_a_hook_that_only_observes_does_not_count() -> None:
    def observe(*_: Any) -> None:
        pass

    observe.observes_only = True  # type: ignore[attr-defined]
    model = model_of()
    model.output.register_forward_hook(observe)
    assert decoder_of(model) is not None


def test_a_mixer_without_a_compiled_step_leaves_the_model_to_torch() -> None:
    model: Any = model_of()
    attention = softmax_attention.Options(n_heads=2)
    model.blocks[1].mixer = softmax_attention.Mixer(D, attention)
    assert decoder_of(model) is None


@pytest.mark.parametrize("name", ["", ".query", ".key", ".token_key", ".gate"])
def test_a_copy_tier_that_computes_something_else_is_left_to_torch(name: str) -> None:
    model = model_of(copy=CopyConfig(window=20, width=8))
    assert decoder_of(model) is not None
    model.get_submodule(f"copy_tier{name}").register_forward_hook(lambda *_: None)
    assert decoder_of(model) is None


def test_a_copy_tier_that_keeps_what_surprises_is_left_to_torch() -> None:
    tier = CopyConfig(window=20, width=8, keep="surprising")
    assert decoder_of(model_of(copy=tier)) is None


def test_a_model_with_a_convolution_is_left_to_torch() -> None:
    model = model_of(convolution=2)
    assert decoder_of(model) is None
    selected = model.select_backends(batch_size=1, precision="fp32", timed=False)
    assert all("torch decodes" in reason for _, reason in selected.values())


def test_a_kind_that_the_library_does_not_know_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    spec = model.mixers[0].decode_spec()
    assert spec is not None
    monkeypatch.setattr(three_tier.Mixer, "decode_spec", lambda _: spec._replace(kind="unknown"))
    assert decoder_of(model) is None


def test_without_the_library_torch_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    monkeypatch.setattr(loader, "load", lambda: None)
    assert decoder_of(model) is None


def test_quantised_weights_in_double_precision_are_left_to_torch() -> None:
    model = model_of(torch.float64)
    quantize_linears(model, "int8")
    assert decoder_of(model) is None


def test_layers_may_have_different_sizes() -> None:
    model: Any = model_of()
    for number, options in enumerate(
        [
            three_tier.Options(d_state=40, d_summary=8, n_heads=2, local_interval=4),
            three_tier.Options(d_state=9, d_summary=5, local_interval=0, global_interval=7),
        ]
    ):
        model.blocks[number].mixer = three_tier.Mixer(D, options)
    model.double()
    ids = torch.arange(40).tolist()
    torch.testing.assert_close(by_decoder(model, ids), by_torch(model, ids), atol=1e-10, rtol=1e-10)
    decoder = decoder_for(model)
    sequence = decoder.sequence(model.init_state(1))
    shapes = [layer["main"].shape for layer in decoder.state(sequence)["layers"]]
    assert shapes == [(1, 40), (1, 9)]


def test_a_state_of_another_size_than_the_step_keeps_is_refused() -> None:
    model = model_of()
    library, specs = loader.load(), [mixer.decode_spec() for mixer in model.mixers]
    assert library is not None
    broken = [spec._replace(state=("main",)) for spec in specs if spec]
    with pytest.raises(ValueError, match="layer 0"):
        Decoder(model, broken, library)


# Kept with the model


def test_it_is_made_once_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    first = decoder_for(model)
    assert decoder_of(model) is first
    by_torch(model, [1, 2, 3])
    assert decoder_of(model) is first
    assert decoder_of(model_of()) is not first


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.blocks[1].mixer.state_controller.mul_(1.1)


def by_an_optimizer(model: Any, *, fused: bool = False) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    model(torch.tensor([[1, 2]]), targets_BT=torch.tensor([[2, 3]]))[0].backward()
    optimizer.step()


def by_a_fused_optimizer(model: Any) -> None:
    """Which does not raise the tensors' version counters."""
    by_an_optimizer(model, fused=True)


def through_data(model: Any) -> None:
    model.blocks[0].mixer.state_controller.data *= 1.1


def another_parameter(model: Any) -> None:
    model.output.weight = nn.Parameter(model.output.weight.detach() * 1.1)


def loaded(model: Any) -> None:
    changed = {name: value * 1.1 for name, value in model.state_dict().items()}
    model.load_state_dict(changed)


def quantised(model: Any) -> None:
    quantize_linears(model, "int8")


@pytest.mark.parametrize(
    "change",
    [
        in_place,
        by_an_optimizer,
        by_a_fused_optimizer,
        through_data,
        another_parameter,
        loaded,
        quantised,
    ],
)
def test_a_weight_that_changes_makes_it_anew(change: Callable[[Any], None]) -> None:
    model = model_of()
    before = decoder_for(model)
    change(model)
    assert decoder_of(model) is not before
    ids = torch.arange(30).tolist()
    torch.testing.assert_close(by_decoder(model, ids), by_torch(model, ids), atol=1e-4, rtol=1e-4)


def test_it_is_made_anew_when_asked_to() -> None:
    model = model_of()
    before = decoder_for(model)
    model.mixers[0].state_controller.data[1, 2] *= 1.1  # type: ignore[attr-defined]
    forget_decoder(model)
    assert decoder_of(model) is not before
    ids = torch.arange(30).tolist()
    torch.testing.assert_close(by_decoder(model, ids), by_torch(model, ids), atol=1e-4, rtol=1e-4)


def test_a_copy_of_the_model_has_its_own() -> None:
    model = model_of()
    decoder = decoder_for(model)
    copied = copy.deepcopy(model)
    assert decoder_of(copied) not in (None, decoder)
    assert decoder_of(model) is decoder
    assert set(model.state_dict()) == set(model_of().state_dict())


# Threads


def test_four_threads_share_a_decoder_and_get_what_each_gets_alone() -> None:
    model = model_of()
    decoder = decoder_for(model)
    texts = [[(7 * text + t) % V for t in range(60)] for text in range(4)]

    def logits_of(ids: list[int]) -> Tensor:
        sequence = decoder.sequence(model.init_state(1))
        return torch.cat([decoder.step([sequence], [id]) for id in ids])

    alone = [logits_of(ids) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(logits_of, texts), alone, strict=True):
                assert torch.equal(found, expected)


@pytest.mark.parametrize(("bytes_per_thread", "expected"), [(1, 2), (1 << 40, 1)])
def test_the_number_of_threads_follows_from_the_bytes_of_the_weights(
    bytes_per_thread: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    threads_as_they_were: None,
) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(decoder_module, "BYTES_PER_THREAD", bytes_per_thread)
    assert decoder_for(model_of()).threads == expected


def test_a_small_model_takes_one_thread(threads_as_they_were: None) -> None:
    torch.set_num_threads(2)
    decoder = decoder_for(model_of())
    assert decoder.bytes_per_token < BYTES_PER_THREAD
    assert decoder.threads == 1
