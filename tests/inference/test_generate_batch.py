"""Answers of a batch are those of one prompt at a time, for every mixer, whoever joins."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.config.schema import GenerateConfig, ModelConfig
from ys_llm.inference.decode_step import TorchRows
from ys_llm.inference.decoder import decoder_of
from ys_llm.inference.generate import Prefilled, generate, generate_batch, prefill
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model
from ys_llm.model.state import state_bytes

SAMPLED = GenerateConfig(temperature=1.0, top_k=30, max_tokens=40, seed=3)
VOCAB_SIZE, END = 17, 7
LAYERS = [*((name,) for name in mixer_names()), tuple(mixer_names())]
by_layers = pytest.mark.parametrize("layers", LAYERS, ids="+".join)


def model_of(layers: tuple[str, ...], dtype: torch.dtype = torch.float64) -> Model:
    """A model far from uniform predictions; in float64, where no rounding turns a draw.

    A hybrid's mixers are behind convolutions.
    """
    torch.manual_seed(1)
    taps = 4 if len(layers) > 1 else 0
    n_layers = max(2, len(layers))
    config = ModelConfig(d_model=32, n_layers=n_layers, d_mlp=48, layers=layers, convolution=taps)
    model = Model(config, vocab_size=VOCAB_SIZE).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def prompts_of(lengths: list[int]) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]


def batch_ids(
    model: Model, prompts: list[list[int]], sampling: GenerateConfig, max_batch: int
) -> dict[int, list[int]]:
    answers = generate_batch(
        model,
        (prefill(model, ids) for ids in prompts),
        sampling=sampling,
        end_ids=[END],
        max_batch=max_batch,
    )
    return {number: [token.id for token in tokens] for number, tokens in answers}


def single_ids(model: Model, prompt: list[int], sampling: GenerateConfig) -> list[int]:
    tokens = generate(model, prefill(model, prompt), sampling=sampling, end_ids=[END])
    return [token.id for token in tokens]


@by_layers
def test_prompts_of_any_length_are_answered_as_if_alone(layers: tuple[str, ...]) -> None:
    model, prompts = model_of(layers), prompts_of([1, 70, 3, 17, 17, 120, 2])
    sampling = replace(SAMPLED, max_tokens=24)  # past token 128, a period of the longest summary
    expected = {i: single_ids(model, prompt, sampling) for i, prompt in enumerate(prompts)}
    if layers != ("min_lstm",):  # whose random model ends all texts at one length
        assert len({len(ids) for ids in expected.values()}) > 1  # some leave while others stay
    for max_batch in (1, 3, 64):
        assert batch_ids(model, prompts, sampling, max_batch) == expected, max_batch


@by_layers
def test_in_single_precision_a_row_is_equal_up_to_rounding(layers: tuple[str, ...]) -> None:
    model, prompts = model_of(layers, torch.float32), prompts_of([1, 40, 9])
    states = [prefill(model, ids).state for ids in prompts]
    together, alone = TorchRows(model), [TorchRows(model) for _ in states]
    together.add(states)
    for rows, state in zip(alone, states, strict=True):
        rows.add([state])
    for ids in ([3, 4, 5], [0, 16, 7], [9, 9, 9]):
        expected_NV = torch.cat([rows.step([id]) for rows, id in zip(alone, ids, strict=True)])
        torch.testing.assert_close(together.step(ids), expected_NV, atol=1e-4, rtol=1e-4)


@given(lengths=st.lists(st.integers(1, 25), min_size=1, max_size=6), max_batch=st.integers(1, 4))
@settings(max_examples=10)
def test_whoever_joins_or_leaves_changes_no_other_answer(
    lengths: list[int], max_batch: int
) -> None:
    model, prompts = model_of(("three_tier", "softmax_attention")), prompts_of(lengths)
    sampling = replace(SAMPLED, max_tokens=12)
    expected = {i: single_ids(model, prompt, sampling) for i, prompt in enumerate(prompts)}
    assert batch_ids(model, prompts, sampling, max_batch) == expected


@pytest.mark.parametrize("max_tokens", [0, 1, 9])
def test_prompts_are_read_as_rows_become_free(max_tokens: int) -> None:
    model, n_read = model_of(("three_tier",)), 0

    def read() -> Iterator[Prefilled]:
        nonlocal n_read
        for ids in prompts_of([2] * 9):
            n_read += 1
            yield prefill(model, ids)

    sampling, n_answers = replace(SAMPLED, max_tokens=max_tokens), 0
    for _, tokens in generate_batch(model, read(), sampling=sampling, end_ids=(), max_batch=4):
        n_answers += 1
        assert len(tokens) == max_tokens
        assert n_read <= n_answers - 1 + 4
    assert n_answers == 9


def test_a_batch_holds_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="max_batch"):
        batch_ids(model_of(("three_tier",)), prompts_of([2]), SAMPLED, max_batch=0)


def test_no_prompts_make_no_answers() -> None:
    assert batch_ids(model_of(("three_tier",)), [], SAMPLED, 4) == {}


def test_a_state_that_joins_a_batch_stays_as_it_was() -> None:
    model = model_of(("softmax_attention",))
    first, second = (prefill(model, ids) for ids in prompts_of([5, 9]))
    before = single_ids(model, prompts_of([5, 9])[0], SAMPLED)
    list(generate_batch(model, [first, second], sampling=SAMPLED, end_ids=[END]))
    again = generate(model, first, sampling=SAMPLED, end_ids=[END])
    assert [token.id for token in again] == before


def test_padding_does_not_grow_while_rows_come_and_go() -> None:
    model, (prompt,) = model_of(("softmax_attention",)), prompts_of([3])
    rows = TorchRows(model)
    rows.add([prefill(model, prompt).state])
    for _ in range(60):  # a long queue of short answers: each row lives for two steps
        rows.add([prefill(model, prompt).state])
        rows.step([1, 1])
        rows.keep([1])
    longest = prefill(model, [*prompt, 1, 1]).state
    assert rows.state is not None
    assert state_bytes(rows.state) <= state_bytes(longest)


def test_a_batch_may_hold_more_rows_than_one_call_of_the_compiled_decoder() -> None:
    model, prompts = model_of(("three_tier",)), prompts_of([1 + i % 5 for i in range(70)])
    sampling = replace(SAMPLED, max_tokens=6)
    read = [prefill(model, ids) for ids in prompts]
    answers = generate_batch(
        model, read, sampling=sampling, end_ids=[END], max_batch=70, decoder=decoder_of(model)
    )
    found = {number: [token.id for token in tokens] for number, tokens in answers}
    assert found == {i: single_ids(model, prompt, sampling) for i, prompt in enumerate(prompts)}
