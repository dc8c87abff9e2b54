"""A token is drawn from exactly the distribution that the options describe."""

from __future__ import annotations

import math
from itertools import accumulate, islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.csrc import loader
from ys_llm.errors import UserError
from ys_llm.inference.compiled_sampling import NOT_FINITE, PENALTY_WINDOW, draw_rows
from ys_llm.inference.sampling import Sampler, distribution, draw, sample_rows, uniform_numbers

END = 0


def draw_token(
    logits: Tensor, sampling: GenerateConfig, recent: list[int], end_id: int = END
) -> int:
    return Sampler(sampling, end_ids=[end_id], recent=recent).sample(logits).id


# The distribution, against a literal implementation of its description


def literal(logits: list[float], sampling: GenerateConfig, recent: list[int]) -> list[float]:
    r = sampling.repetition_penalty
    z = [(x / r if x > 0 else x * r) if i in recent else x for i, x in enumerate(logits)]
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    if sampling.temperature == 0:
        return [float(i == order[0]) for i in range(len(z))]
    weights = [math.exp((x - z[order[0]]) / sampling.temperature) for x in z]
    p = [w / sum(weights) for w in weights]
    if sampling.top_k:
        p = rescaled(p, order[: sampling.top_k])
    if sampling.top_p < 1:
        before = [0.0, *accumulate(p[i] for i in order)]
        p = rescaled(p, [i for i, b in zip(order, before, strict=False) if b < sampling.top_p])
    return rescaled(p, [i for i in order if p[i] >= sampling.min_p * max(p)])


def rescaled(p: list[float], keep: list[int]) -> list[float]:
    total = sum(p[i] for i in keep)
    return [x / total if i in keep else 0.0 for i, x in enumerate(p)]


# Steps of 1/8 make ties likely; thresholds off the sums' grid keep rounding from deciding.
@given(
    logits=st.lists(st.integers(-64, 64), min_size=1, max_size=30),
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.1234567, 0.5123457, 0.9123457, 1.0]),
    min_p=st.sampled_from([0.0, 0.0512345, 0.3123457]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 5.0]),
    data=st.data(),
)
@settings(deadline=None, max_examples=300)
def test_the_filters_do_what_their_description_says(
    logits: list[int], data: st.DataObject, **options: float
) -> None:
    sampling = GenerateConfig(**options)  # type: ignore[arg-type]
    recent = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=8))
    z = [x / 8 for x in logits]
    probabilities = distribution(torch.tensor(z), sampling, recent)
    assert probabilities.tolist() == pytest.approx(literal(z, sampling, recent), abs=1e-12)
    assert probabilities.dtype == torch.float64


def by_sorting_all(logits: Tensor, sampling: GenerateConfig) -> Tensor:
    """The filters as they are described, each over the whole vocabulary in order."""

    def scaled(p: Tensor, keep: Tensor) -> Tensor:
        return p * keep / (p * keep).sum()

    ordered, ids = torch.sort(logits.double(), descending=True, stable=True)
    p = torch.softmax((ordered - ordered[0]) / sampling.temperature, dim=0)
    if sampling.top_k:
        p = scaled(p, torch.arange(len(p)) < sampling.top_k)
    if sampling.top_p < 1:
        p = scaled(p, p.cumsum(0) - p < sampling.top_p)
    p = scaled(p, p >= sampling.min_p * p[0])
    return torch.zeros_like(p).scatter_(0, ids, p)


@given(
    seed=st.integers(0, 1 << 30),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 300.0]),
    grid=st.sampled_from([0.0, 0.5]),  # 0.5: many tokens are equals
    temperature=st.sampled_from([1e-8, 0.1, 0.8, 3.0, 1e6]),
    top_k=st.sampled_from([0, 1, 2, 63, 64, 65, 1999, 2000, 5000]),
    top_p=st.sampled_from([1e-9, 0.1234567, 0.95123456, 0.9999912345, 1.0]),
    min_p=st.sampled_from([0.0, 1e-7, 0.0512345, 1.0]),
)
@settings(deadline=None, max_examples=300)
def test_sorting_a_part_gives_what_sorting_all_gives(
    seed: int, spread: float, grid: float, **options: float
) -> None:
    sampling = GenerateConfig(**options)  # type: ignore[arg-type]
    logits = spread * torch.randn(2000, generator=torch.Generator().manual_seed(seed)).double()
    if grid:
        logits = (logits / grid).round() * grid
    expected = by_sorting_all(logits, sampling)
    found = distribution(logits, sampling)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert torch.equal(found > 0, expected > 0)


@pytest.mark.parametrize("temperature", [1e-8, 1.0, 1e300])
@pytest.mark.parametrize("repetition_penalty", [1e-300, 1.0, 1e300])
def test_no_number_is_too_large_for_the_distribution(
    temperature: float, repetition_penalty: float
) -> None:
    sampling = GenerateConfig(temperature=temperature, repetition_penalty=repetition_penalty)
    logits = torch.tensor([-3e38, 3e38, 1.0, 0.0, 3e38])
    probabilities = distribution(logits, sampling, [0, 1, 3])
    assert float(probabilities.sum()) == pytest.approx(1)
    assert bool((probabilities >= 0).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_logit_that_is_no_number_is_an_error(bad: float) -> None:
    logits = torch.tensor([1.0, 2.0, bad, 0.5])
    with pytest.raises(UserError, match="the model produced a NaN or infinite logit"):
        distribution(logits, GenerateConfig())


# The compiled draw


def compiled(
    logits: Tensor, sampling: GenerateConfig, recent: list[int], uniform: float
) -> tuple[int, float]:
    if (library := loader.build()) is None:
        pytest.skip(loader.unavailable_reason())
    ((id, logprob),) = draw_rows(library, logits[None], sampling, [recent], [uniform])
    return id, logprob


@given(
    seed=st.integers(0, 1 << 30),
    vocab_size=st.sampled_from([1, 2, 7, 8, 9, 100, 2000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 300.0]),
    grid=st.sampled_from([0.0, 0.5]),  # 0.5: many tokens are equals
    dtype=st.sampled_from([torch.float32, torch.float64]),
    uniform=st.sampled_from([0.0, 1e-300, 0.25, 0.5, 0.75, 1 - 2**-53]) | st.floats(0, 0.999),
    n_recent=st.integers(0, PENALTY_WINDOW),
    temperature=st.sampled_from([0.0, 1e-8, 0.1, 0.8, 1.0, 3.0, 1e6]),
    top_k=st.sampled_from([0, 1, 2, 63, 64, 65, 1999, 2000, 5000]),
    top_p=st.sampled_from([1e-9, 0.1234567, 0.95123456, 0.9999912345, 1.0]),
    min_p=st.sampled_from([0.0, 1e-7, 0.0512345, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 1e300]),
)
@settings(deadline=None, max_examples=600)
def test_the_compiled_draw_is_the_one_that_is_described(
    seed: int,
    vocab_size: int,
    spread: float,
    grid: float,
    dtype: torch.dtype,
    uniform: float,
    n_recent: int,
    **options: float,
) -> None:
    sampling, generator = GenerateConfig(**options), torch.Generator().manual_seed(seed)  # type: ignore[arg-type]
    logits = spread * torch.randn(vocab_size, generator=generator).to(dtype)
    if grid:
        logits = (logits / grid).round() * grid
    recent = torch.randint(vocab_size, (n_recent,), generator=generator).tolist()
    id, logprob = compiled(logits, sampling, recent, uniform)
    assert logprob == pytest.approx(float(torch.log_softmax(logits.double(), 0)[id]), abs=1e-9)
    expected = distribution(logits, sampling, recent)
    ends = expected.cumsum(0)
    begin, end = float(ends[id] - expected[id]), float(ends[id])
    assert expected[id] > 0
    assert begin - 1e-12 <= uniform <= end + 1e-12  # at a border rounding decides
    if begin + 1e-12 < uniform < end - 1e-12:
        assert id == draw(expected, uniform)


@pytest.mark.parametrize("size", [3e38, 1e300, 1.7e308])
@pytest.mark.parametrize("temperature", [1e-8, 1.0, 1e300])
@pytest.mark.parametrize("repetition_penalty", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 3}, {"top_p": 1.0}, {"top_p": 1.0, "min_p": 0.1}]
)
def test_no_logit_is_too_large_for_the_compiled_draw(
    size: float, temperature: float, repetition_penalty: float, filters: dict[str, Any]
) -> None:
    sampling = GenerateConfig(
        temperature=temperature, repetition_penalty=repetition_penalty, **filters
    )
    logits = torch.tensor([-1.0, 1.0, 1 / size, 0.0, 1.0], dtype=torch.float64) * size
    for uniform in (0.0, 0.31, 0.62, 1 - 2**-53):
        expected = draw(distribution(logits, sampling, [0, 1, 3]), uniform)
        assert compiled(logits, sampling, [0, 1, 3], uniform)[0] == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 11, 16])
def test_the_compiled_draw_reports_a_logit_that_is_no_number(bad: float, position: int) -> None:
    logits = torch.zeros(17)
    logits[position] = bad
    assert compiled(logits, GenerateConfig(), [], 0.5)[0] == NOT_FINITE
    with pytest.raises(UserError, match="the model produced a NaN or infinite logit"):
        draw_token(logits, GenerateConfig(), [])


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_rows_are_drawn_as_each_alone(penalty: float) -> None:
    sampling = GenerateConfig(temperature=1.2, max_tokens=9, seed=3, repetition_penalty=penalty)
    logits_NV = torch.randn(12, 4000, generator=torch.Generator().manual_seed(5))

    def samplers() -> list[Sampler]:
        return [Sampler(sampling, end_ids=[END], recent=range(5 * row)) for row in range(12)]

    together, alone = samplers(), samplers()
    for _ in range(9):
        expected = [one.sample(row) for one, row in zip(alone, logits_NV, strict=True)]
        assert sample_rows(together, logits_NV) == expected


def test_uniform_numbers_are_those_of_single_calls() -> None:
    numbers = islice(uniform_numbers(torch.Generator().manual_seed(7)), 150)
    generator = torch.Generator().manual_seed(7)
    for number in numbers:
        assert number == float(torch.rand((), dtype=torch.float64, generator=generator))


def test_the_window_of_the_penalty_is_that_of_the_library() -> None:
    assert (library := loader.build()) is not None
    assert library.lib.YS_PENALTY_WINDOW == PENALTY_WINDOW


# The sampler


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.3, 2.0, 1.1, -1.0, 1.9, 0.0])
    sampling = GenerateConfig(temperature=1.5, top_k=4, top_p=1.0, max_tokens=0, seed=8)
    expected = distribution(logits, sampling)
    sampler = Sampler(sampling, end_ids=[END])
    n = 2_000
    counts = torch.zeros_like(expected)
    for _ in range(n):
        counts[sampler.sample(logits).id] += 1
    # Four standard deviations of a share of n draws are at most 4 * 0.5 / sqrt(n) = 0.045.
    torch.testing.assert_close(counts / n, expected, atol=0.045, rtol=0)


def test_the_penalty_never_applies_to_the_end_token() -> None:
    heavy = GenerateConfig(temperature=0.0, repetition_penalty=1e9, max_tokens=1)
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert draw_token(logits, heavy, recent=[1], end_id=1) == 1
    assert draw_token(logits, heavy, recent=[1], end_id=0) == 2


def test_the_penalty_forgets_what_is_far_back() -> None:
    heavy = GenerateConfig(temperature=0.0, repetition_penalty=1e9, max_tokens=1)
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])
    assert draw_token(logits, heavy, recent=[1, *[3] * (PENALTY_WINDOW - 1)]) == 2
    assert draw_token(logits, heavy, recent=[1, *[3] * PENALTY_WINDOW]) == 1


def test_the_penalty_applies_to_what_was_just_drawn() -> None:
    heavy = GenerateConfig(temperature=0.0, repetition_penalty=1e9, max_tokens=3)
    sampler, logits = Sampler(heavy, end_ids=[END]), torch.tensor([-1.0, 3.0, 2.0, 1.0])
    assert [sampler.sample(logits).id for _ in range(3)] == [1, 2, 3]


def test_a_sampler_is_finished_by_the_end_token_or_the_limit() -> None:
    ends, goes_on = torch.tensor([9.0, 0.0]), torch.tensor([0.0, 9.0])
    greedy = GenerateConfig(temperature=0.0, max_tokens=2)
    assert Sampler(GenerateConfig(max_tokens=0), end_ids=[END]).finished
    sampler = Sampler(greedy, end_ids=[END])
    assert not sampler.finished
    sampler.sample(ends)
    assert sampler.finished
    sampler = Sampler(greedy, end_ids=[END])
    sampler.sample(goes_on)
    assert not sampler.finished
    sampler.sample(goes_on)
    assert sampler.finished


@given(seed=st.integers(0, 1 << 31), logits=st.lists(st.floats(-30, 30), min_size=2, max_size=20))
def test_the_same_seed_draws_the_same_tokens(seed: int, logits: list[float]) -> None:
    sampling = GenerateConfig(temperature=1.0, top_p=1.0, max_tokens=8, seed=seed)
    first, second = Sampler(sampling, end_ids=()), Sampler(sampling, end_ids=())
    torch.manual_seed(seed + 1)  # the global generator plays no part
    for _ in range(8):
        assert first.sample(torch.tensor(logits)) == second.sample(torch.tensor(logits))
