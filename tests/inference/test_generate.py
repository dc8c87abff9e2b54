"""Generated tokens follow the full forward pass, at constant cost per token."""

from __future__ import annotations

import tracemalloc
from collections.abc import Collection, Iterator
from itertools import islice
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ys_llm.config.schema import GenerateConfig, ModelConfig, TokenizerKind
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.inference.compiled_sampling import PENALTY_WINDOW
from ys_llm.inference.generate import (
    complete,
    drained,
    encode_pieces,
    generate,
    prefill,
    prefill_slices,
    prompt_ids,
)
from ys_llm.inference.prompt_reader import PromptReader
from ys_llm.inference.sampling import ScoredToken, distribution, draw
from ys_llm.model.language_model import Model

TEXT = (
    'The cat sat on the mat.\n\n"Who sat there?" asked Anna. "I did," said the cat.\n'
    "  She had 12 apples, 3 of them red; École ½ 日本語 🙂 don’t — ok.\r\n\tThe END of it all.\n"
)
KINDS = get_args(TokenizerKind)
GREEDY = GenerateConfig(temperature=0.0, max_tokens=40)
OPEN = GenerateConfig(temperature=1.0, top_p=1.0, max_tokens=40, seed=5)


def tokenizer_of(kind: str) -> Tokenizer:
    assert kind in KINDS
    return train_tokenizer([TEXT * 20], kind=kind, vocab_size=400)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of("bytes")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    torch.manual_seed(1)
    config = ModelConfig(d_model=32, n_layers=2, d_mlp=64, options={"three_tier": {"d_state": 32}})
    model = Model(config, vocab_size=tokenizer.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # far from uniform predictions
    return model


def full_logits(model: Model, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0][0]


def tokens_of(
    model: Model, ids: list[int], sampling: GenerateConfig, *, end_ids: Collection[int] = (0,)
) -> list[ScoredToken]:
    return list(generate(model, prefill(model, ids), sampling=sampling, end_ids=end_ids))


# Prompts


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_pieces_has_the_ids_of_the_whole(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @given(text=st.text() | st.text("ab C.\n \t\r\u00a01", max_size=60), data=st.data())
    @settings(deadline=None, max_examples=150)
    def check(text: str, data: st.DataObject) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        edges = zip([0, *cuts], [*cuts, len(text)], strict=True)
        pieces = [text[first:last] for first, last in edges]
        assert list(encode_pieces(tokenizer, pieces)) == tokenizer.encode(text)

    check()


def test_a_long_prompt_is_never_held_whole() -> None:
    tokenizer = tokenizer_of("bpe")
    pieces = (TEXT for _ in range(4_000))  # 0.9 MB
    tracemalloc.start()
    n_tokens = sum(1 for _ in encode_pieces(tokenizer, pieces))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_tokens > 100_000
    assert peak_bytes < 200_000


def test_a_text_without_any_space_is_still_read_in_bounded_memory(tokenizer: Tokenizer) -> None:
    pieces = ("x" * 10_000 for _ in range(60))
    assert list(encode_pieces(tokenizer, pieces)) == tokenizer.encode("x" * 600_000)


def test_a_prompt_is_a_record_or_a_plain_beginning(tokenizer: Tokenizer) -> None:
    text = tokenizer.encode("Hi <end> you")
    end, start = tokenizer.end_id, tokenizer.start_id
    assert list(prompt_ids(tokenizer, ["Hi <e", "nd> you"], raw=False)) == [end, *text, start]
    assert list(prompt_ids(tokenizer, ["Hi <end> you"], raw=True)) == [end, *text]
    assert list(prompt_ids(tokenizer, [], raw=True)) == [end]


# Reading


@pytest.mark.parametrize("sizes", [(1,), (7,), (64,), (64, 16, 5)])
def test_reading_in_pieces_is_reading_at_once(model: Model, sizes: tuple[int, ...]) -> None:
    ids = torch.randint(2, model.vocab_size, (150,)).tolist()
    whole, cut = list[ScoredToken](), list[ScoredToken]()
    at_once, in_pieces = (
        drained(prefill_slices(PromptReader(model, None, *scoring), iter(ids), piece_sizes=of))
        for of, scoring in (((150,), (whole.append, 3)), (sizes, (cut.append, 3)))
    )
    assert in_pieces.n_tokens == at_once.n_tokens == 150
    assert in_pieces.recent == at_once.recent == tuple(ids[-PENALTY_WINDOW:])
    torch.testing.assert_close(in_pieces.logits_V, at_once.logits_V, atol=1e-4, rtol=1e-4)
    assert [token.id for token in cut] == [token.id for token in whole] == ids[1:]
    for a, b in zip(whole, cut, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert len(b.candidates) == 3


def test_the_prompt_is_read_piece_by_piece(model: Model) -> None:
    n_read = 0

    def source() -> Iterator[int]:
        nonlocal n_read
        for id in [0] + [5] * 99:
            n_read += 1
            yield id

    ahead: list[int] = []
    reader = PromptReader(model, None, lambda _: ahead.append(n_read))
    drained(prefill_slices(reader, source(), piece_sizes=(10,)))
    # Token i (the first has no score) is scored with its own piece, before the next is read.
    assert ahead == [10 * (i // 10 + 1) for i in range(1, 100)]


def test_a_carried_state_goes_on_where_it_stopped(model: Model) -> None:
    ids = torch.randint(2, model.vocab_size, (40,)).tolist()
    first = prefill(model, ids[:23])
    second = prefill(model, ids[23:], first.state)
    torch.testing.assert_close(second.logits_V, full_logits(model, ids)[-1], atol=1e-4, rtol=1e-4)


def test_scores_are_the_models_log_softmax(model: Model) -> None:
    ids = torch.randint(2, model.vocab_size, (300,)).tolist()
    tokens: list[ScoredToken] = []
    prefill(model, ids, observe=tokens.append, n_candidates=2)
    expected = torch.log_softmax(full_logits(model, ids), dim=-1)
    for position, token in enumerate(tokens):
        best, best_ids = expected[position].topk(2)
        assert token.id == ids[position + 1]
        assert token.logprob == pytest.approx(float(expected[position, token.id]), abs=1e-4)
        assert [c.id for c in token.candidates] == best_ids.tolist()
        assert [c.logprob for c in token.candidates] == pytest.approx(best.tolist(), abs=1e-4)


def test_no_ids_at_all_is_an_error(model: Model) -> None:
    with pytest.raises(ValueError, match="at least one id"):
        prefill(model, [])


# Writing


def test_greedy_text_is_the_argmax_of_the_full_forward_pass(model: Model) -> None:
    ids = [0, 20, 30, 40]
    tokens = tokens_of(model, ids, GREEDY, end_ids=())
    logits = full_logits(model, ids + [token.id for token in tokens])[3:-1]
    assert [token.id for token in tokens] == logits.argmax(-1).tolist()
    expected = torch.log_softmax(logits, -1).max(-1).values
    torch.testing.assert_close(
        torch.tensor([token.logprob for token in tokens]), expected, atol=1e-4, rtol=1e-4
    )


def test_sampled_text_is_what_the_full_forward_pass_would_draw(model: Model) -> None:
    sampling = GenerateConfig(
        temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.3, max_tokens=80, seed=11
    )
    ids, generator = [0, 20, 30, 40], torch.Generator().manual_seed(11)
    tokens = tokens_of(model, ids, sampling, end_ids=())
    for token in tokens:
        probabilities = distribution(full_logits(model, ids)[-1], sampling, ids[-PENALTY_WINDOW:])
        uniform = float(torch.rand((), dtype=torch.float64, generator=generator))
        assert token.id == draw(probabilities, uniform)
        ids.append(token.id)
    assert len(ids) == 84


def test_the_same_seed_gives_the_same_text_and_another_gives_another(
    model: Model, tokenizer: Tokenizer
) -> None:
    def text(seed: int) -> str:
        sampling = GenerateConfig(temperature=1.0, seed=seed, max_tokens=40)
        return "".join(complete(model, tokenizer, "The cat", sampling=sampling, raw=True))

    torch.manual_seed(3)
    first = text(1)
    torch.manual_seed(4)  # the global generator plays no part
    assert text(1) == first
    assert text(2) != first


def test_generation_stops_at_end_or_at_max_tokens(model: Model) -> None:
    free = [token.id for token in tokens_of(model, [0, 20], GREEDY, end_ids=())]
    assert len(free) == 40
    chosen_end = free[10]
    first_use = free.index(chosen_end)
    stopped = [token.id for token in tokens_of(model, [0, 20], GREEDY, end_ids=[chosen_end])]
    assert stopped == free[: first_use + 1]
    assert tokens_of(model, [0, 20], GenerateConfig(max_tokens=0)) == []


def test_a_token_costs_one_step_of_the_model_whatever_came_before(model: Model) -> None:
    widths: list[int] = []
    prefilled = prefill(model, [0] + [20] * 500)
    hook = model.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    try:
        list(islice(generate(model, prefilled, sampling=OPEN, end_ids=()), 30))
    finally:
        hook.remove()
    assert widths == [1] * 29  # the first token needs no step, and the last is never read


def test_a_model_in_training_generates_without_dropout_and_stays_in_training() -> None:
    config = ModelConfig(
        d_model=32, n_layers=1, d_mlp=0, dropout=0.5, options={"three_tier": {"d_state": 32}}
    )
    model = Model(config, vocab_size=60).train()
    texts = {tuple(token.id for token in tokens_of(model, [0, 9], GREEDY)) for _ in range(3)}
    assert len(texts) == 1
    assert model.training
    assert all(module.training for module in model.modules())
