"""Low-rank adapters: what they change, what they leave, and that every path computes with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.exports import shaken, small
from support.sources import ROOT
from torch import Tensor

from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.sft import LoraConfig
from ys_llm.config.sources import load_config
from ys_llm.errors import UserError
from ys_llm.inference.decoder import decoder_of
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.model.lora import Adapter, Adapters, adapter_of, add_adapter
from ys_llm.model.modes import inference_mode

V = 30
TOKENS_BT, TARGETS_BT = torch.randint(V, (2, 2, 24), generator=torch.Generator().manual_seed(4))
SAME = {"rtol": 1e-5, "atol": 1e-5}


def model_of(layers: tuple[str, ...]) -> Model:
    """The same weights every time."""
    sizes = ModelConfig(d_model=16, n_layers=len(layers), d_mlp=24, layers=layers)
    return shaken(replace(Config(), model=sizes), vocab_size=V)


def learn(model: Model, steps: int = 2) -> None:
    """A few steps, after which no factor is 0."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for _ in range(steps):
        loss, _ = model(TOKENS_BT, targets_BT=TARGETS_BT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def learned_by(model: Model, config: LoraConfig) -> Adapter:
    add_adapter(model, config)
    learn(model)
    return adapter_of(model)


def logits_of(model: Model) -> Tensor:
    with inference_mode(model):
        logits: Tensor = model(TOKENS_BT)[0]
        return logits


@pytest.mark.parametrize("mixer", mixer_names())
def test_merged_is_unmerged_for_every_mixer_and_the_base_comes_back_to_the_bit(mixer: str) -> None:
    trained, model = model_of((mixer,)), model_of((mixer,))
    base, before = logits_of(model), {n: p.clone() for n, p in model.named_parameters()}
    adapter = learned_by(trained, LoraConfig(rank=2))
    assert any(".mixer." in name for name in adapter.factors)
    switch = Adapters(model)
    switch.use([adapter])
    torch.testing.assert_close(logits_of(model), logits_of(trained), **SAME)
    assert (logits_of(model) - base).abs().max() > 1e-2
    switch.use([])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_only_the_factors_are_trained() -> None:
    model = model_of(("three_tier",))
    before = {name: p.clone() for name, p in model.named_parameters()}
    n_parameters = add_adapter(model, LoraConfig(rank=2))
    learn(model)
    after = dict(model.named_parameters())
    for name, tensor in before.items():
        path, _, own = name.rpartition(".")
        kept = after.get(name, after.get(f"{path}.parametrizations.{own}.original"))
        assert kept is not None and torch.equal(kept, tensor), f"{name} was trained"
    trained = {name: p for name, p in after.items() if p.requires_grad}
    assert n_parameters == sum(p.numel() for p in trained.values())
    assert all(name.endswith((".a", ".b")) for name in trained)
    assert trained["blocks.0.mixer.in_proj.parametrizations.weight.0.b"].any()


def test_a_matrix_in_blocks_has_an_adapter_in_each() -> None:
    options = {"three_tier": {"d_state": 24, "n_heads": 3, "d_summary": 6}}
    sizes = ModelConfig(d_model=16, n_layers=1, d_mlp=0, options=options)
    model = shaken(replace(Config(), model=sizes), vocab_size=V)
    adapter = learned_by(model, LoraConfig(rank=2, targets=("state_controller",)))
    assert adapter.factors["blocks.0.mixer.state_controller"].a.shape == (3, 2, 8)
    merged = shaken(replace(Config(), model=sizes), vocab_size=V)
    Adapters(merged).use([adapter])
    torch.testing.assert_close(logits_of(merged), logits_of(model), **SAME)


def test_rank_8_on_q_and_o_of_the_39m_preset_trains_196608_parameters() -> None:
    config = load_config(ROOT / "configs" / "lillm_39m.yaml").config
    with torch.device("meta"):
        model = Model(config.model, vocab_size=config.tokenizer.vocab_size)
        lora = LoraConfig(rank=8, targets=("q_proj", "out_proj"))
        assert add_adapter(model, lora) == 196_608


def test_adapters_add_up_in_any_order() -> None:
    config = LoraConfig(rank=2)
    one = learned_by(model_of(("lru",)), config)
    torch.manual_seed(1)
    other = learned_by(model_of(("lru",)), replace(config, alpha=3.0))
    model = model_of(("lru",))
    weight = model.get_parameter("blocks.0.mlp.up.weight")
    sums, before = [], weight.clone()
    for pair in ([one, other], [other, one]):
        switch = Adapters(model)
        switch.use(pair)
        sums.append(weight.clone())
        switch.use([])
    torch.testing.assert_close(sums[0], sums[1], **SAME)
    for adapter in (one, other):
        a, b = adapter.factors["blocks.0.mlp.up"]
        before = before + adapter.scale * (b @ a)
    torch.testing.assert_close(sums[0], before, **SAME)


def test_the_compiled_decoder_computes_with_the_adapter() -> None:
    config = small(load_config(ROOT / "configs" / "quickstart.yaml").config)
    model, trained = shaken(config, vocab_size=V), shaken(config, vocab_size=V)
    adapter = learned_by(trained, LoraConfig(rank=2))
    before = decoder_of(model)
    assert before is not None
    Adapters(model).use([adapter])
    decoder = decoder_of(model)
    assert decoder is not None and decoder is not before
    sequence = decoder.sequence(model.init_state(1))
    decoded = torch.stack([decoder.step([sequence], [id])[0].clone() for id in TOKENS_BT[0]])
    expected = trained.eval()(TOKENS_BT[:1])[0][0].log_softmax(-1)
    torch.testing.assert_close(decoded.log_softmax(-1), expected, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone_and_leaves_the_base() -> None:
    model = model_of(("three_tier",))
    add_adapter(model, LoraConfig(rank=2, dropout=0.5))
    base = logits_of(model_of(("three_tier",)))
    torch.testing.assert_close(model.train()(TOKENS_BT)[0], base, **SAME)  # B is 0 still
    learn(model)
    first, second = model(TOKENS_BT)[0], model(TOKENS_BT)[0]
    assert not torch.equal(first, second)
    assert torch.equal(logits_of(model), logits_of(model))


def test_a_pattern_that_names_no_matrix_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match=r"q_proj.*in_proj.*out_proj.*gate"):
        add_adapter(model_of(("three_tier",)), LoraConfig(rank=2, targets=("mlp.*", "q_proj")))


def test_an_adapter_of_another_model_is_refused_and_the_base_is_left() -> None:
    adapter = learned_by(model_of(("three_tier",)), LoraConfig(rank=2))
    other = model_of(("lru",))
    before = logits_of(other)
    with pytest.raises(UserError, match="does not fit"):
        Adapters(other).use([adapter])
    assert torch.equal(logits_of(other), before)
