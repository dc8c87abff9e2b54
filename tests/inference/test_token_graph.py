"""Tokens on memory that stays where it is, replayed; `test_gpu.py` has the capture itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.op_cases import rerun

from ys_llm.config.schema import ModelConfig
from ys_llm.inference.token_graph import TokenGraph, has_token_graph
from ys_llm.model.language_model import Model
from ys_llm.ops.three_tier.gpu.cuda_graph import Replay


def model_of(**options: Any) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, n_layers=2, d_mlp=32, options={"d_state": 24, **options})
    model = Model(config, vocab_size=50).double().eval()
    with torch.no_grad():  # away from 0, where summaries start
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("options", "cases"),
    [({}, 3), ({"local_interval": 3, "global_interval": 7}, 4), ({"local_interval": 0}, 2)],
)
@torch.inference_mode()
def test_replayed_tokens_give_what_the_model_gives(options: dict[str, int], cases: int) -> None:
    model = model_of(**options)
    ids = torch.randint(50, (1, 135))
    _, state = model(ids[:, :5])
    before = state["layers"][0]["main"].clone()
    advance = TokenGraph(model, state, record=rerun)
    expected_BTV, _ = model(ids)
    for position in range(5, 135):
        logits_V = advance(int(ids[0, position]))
        assert torch.allclose(logits_V, expected_BTV[0, position], atol=1e-12), position
    assert len(advance.replays) == cases
    assert torch.equal(state["layers"][0]["main"], before)  # the caller's state is its own


@torch.inference_mode()
def test_logits_stay_what_they_are_when_the_next_token_is_read() -> None:
    model = model_of()
    advance = TokenGraph(model, model.init_state(1), record=rerun)
    first = advance(3)
    kept = first.clone()
    advance(4)
    assert torch.equal(first, kept)


@torch.inference_mode()
def test_tokens_that_cannot_be_captured_are_launched_and_it_is_said() -> None:
    def broken(functions: list[Callable[[], None]]) -> list[Replay]:
        for function in functions:
            function()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model, ids = model_of(), torch.randint(50, (1, 40))
    expected_BTV, _ = model(ids)
    advance = TokenGraph(model, model.init_state(1), record=broken)
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        found = [advance(int(id)) for id in ids[0]]
    assert torch.allclose(torch.stack(found), expected_BTV[0], atol=1e-12)


def test_there_is_none_on_a_cpu_nor_for_a_state_that_grows() -> None:
    assert not has_token_graph(model_of())
    attention = ModelConfig(d_model=16, n_layers=1, d_mlp=32, mixer="softmax_attention")
    with pytest.raises(AssertionError, match="grows"):
        TokenGraph(Model(attention, vocab_size=50), {"position": 0, "layers": []}, record=rerun)
