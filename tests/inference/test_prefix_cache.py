"""What is generated from a saved state is bit for bit what is generated without one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prefixes import IDS, LAYERS, ROOMY, by_layers, loaded_run, model_of, same

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference import generate as generate_module
from ys_llm.inference.engine import Answer, Engine
from ys_llm.inference.generate import prefill, prefill_cached
from ys_llm.inference.prefix_cache import (
    PIECE_SIZES,
    PrefixCache,
    SavedPrefix,
    is_checkpoint,
    keys_of,
    pieces_of,
)

SAMPLING = GenerateConfig(temperature=1.0, max_tokens=12, seed=4)


def timeless(answer: Answer) -> Answer:
    return replace(answer, prompt_seconds=0.0, answer_seconds=0.0, cached_tokens=0)


# Equal bits

# What is evicted depends on bytes alone: a state of one size and one that grows show it.
CACHES = [
    *(pytest.param(layers, ROOMY, id="+".join(layers)) for layers in LAYERS),
    *(
        pytest.param((name,), max_bytes, id=f"{name}-{max_bytes}")
        for name in ("three_tier", "softmax_attention")
        for max_bytes in (200_000, 5_000)
    ),
]
shared_and_own = st.tuples(st.integers(0, 600), st.integers(0, 90), st.integers(0, 3))


@pytest.mark.parametrize(("layers", "max_bytes"), CACHES)
def test_logits_and_state_are_those_without_a_cache(
    layers: tuple[str, ...], max_bytes: int
) -> None:
    model = model_of(layers)

    @given(prompts=st.lists(shared_and_own, min_size=2, max_size=5))
    @settings(max_examples=5)
    def check(prompts: list[tuple[int, int, int]]) -> None:
        cache = PrefixCache(max_bytes)
        for n_shared, n_own, id in prompts:
            ids = IDS[:n_shared] + [id] * n_own or [id]
            assert same(prefill_cached(model, ids, cache), prefill(model, ids))
            assert cache.n_bytes <= max_bytes

    check()


@by_layers
def test_a_prompt_of_many_pieces_is_looked_up_group_by_group(
    layers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "_LOOKED_UP", 2)
    model, cache = model_of(layers), PrefixCache(ROOMY)
    for length in (700, 512, 700, 690, 1):
        found = prefill_cached(model, iter(IDS[:length]), cache)
        assert same(found, prefill(model, IDS[:length]))
    assert prefill_cached(model, IDS, cache).n_cached == 700


@pytest.mark.parametrize("layers", [("three_tier",), ("softmax_attention",)], ids="+".join)
@pytest.mark.parametrize("max_batch", [1, 4])
def test_answers_alone_and_in_batches_are_those_without_a_cache(
    layers: tuple[str, ...], max_batch: int
) -> None:
    loaded = loaded_run(layers)
    common = "the cat sat on the mat and " * 4
    prompts = [common + word for word in ("sat", "ran", "sat", "", "the cat sat" * 9)] + ["cat"]
    plain, cached = Engine(loaded), Engine(loaded, PrefixCache(ROOMY))
    expected = list(plain.answer_batch(prompts, SAMPLING, max_batch=max_batch))
    found = list(cached.answer_batch(prompts, SAMPLING, max_batch=max_batch))
    assert list(map(timeless, found)) == list(map(timeless, expected))
    assert [answer.cached_tokens > 0 for answer in found] == [False, True, True, True, True, False]
    for prompt in prompts:
        assert timeless(cached.answer(prompt, SAMPLING)) == timeless(plain.answer(prompt, SAMPLING))


def test_a_scored_prompt_is_read_whole() -> None:
    engine = Engine(loaded_run(), PrefixCache(ROOMY))
    engine.answer("the cat", SAMPLING)
    answer = engine.answer("the cat", SAMPLING, logprobs=0)
    assert answer.cached_tokens == 0
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == answer.prompt_tokens


# What is found


def test_the_longest_saved_beginning_is_where_reading_starts() -> None:
    model, cache = model_of(("three_tier",)), PrefixCache(ROOMY)
    n_read: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: n_read.append(args[0].shape[1]))
    try:
        prefill_cached(model, IDS[:412], cache)
        again = prefill_cached(model, IDS[:412], cache)
        late = prefill_cached(model, [*IDS[:409], 1, 2, 3], cache)
        early = prefill_cached(model, [*IDS[:300], *IDS[:50]], cache)
        other = prefill_cached(model, IDS[1:400], cache)
    finally:
        hook.remove()
    assert [read.n_cached for read in (again, late, early, other)] == [412, 384, 256, 0]
    assert n_read == [256, 64, 64, 28, 28, 64, 30, 256, 64, 64, 15]


def test_a_beginning_of_a_longer_prompt_is_no_whole_prompt() -> None:
    model, cache = model_of(("three_tier",)), PrefixCache(ROOMY)
    prefill_cached(model, IDS[:300], cache)
    assert prefill_cached(model, IDS[:256], cache).n_cached == 0  # its logits were not computed
    assert prefill_cached(model, IDS[:256], cache).n_cached == 256
    assert prefill_cached(model, IDS[:310], cache).n_cached == 256


def test_a_key_tells_ids_order_and_cut() -> None:
    cuts = [[[1, 2, 3]], [[1, 2], [3]], [[1], [2, 3]], [[3, 2, 1]], [[1, 2, 3, 0]]]
    assert len({keys_of(pieces)[-1] for pieces in cuts}) == len(cuts)
    whole = keys_of([[1], [2], [3]])
    assert keys_of([[2], [3]], whole[0]) == whole[1:]


@given(length=st.integers(0, 2_000))
def test_pieces_are_the_ids_and_the_same_for_every_prompt_that_begins_alike(length: int) -> None:
    ids = list(range(length))
    pieces = list(pieces_of(ids))
    assert [id for piece in pieces for id in piece] == ids
    sizes = [len(piece) for piece in pieces]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size in PIECE_SIZES for size in sizes[:-1])
    longer = list(pieces_of(range(length + 300)))
    n_long = length // PIECE_SIZES[0]
    assert longer[:n_long] == pieces[:n_long]


def test_a_long_prompt_leaves_few_states_and_little_to_read_again() -> None:
    ends = [n for n in range(256, 1_000_001, 256) if is_checkpoint(n)]
    assert len(ends) < 170
    assert all(end - begin <= max(256, begin / 16) for begin, end in pairwise([256, *ends]))


# What is kept


def saved(n_bytes: int) -> SavedPrefix:
    state = {"position_B": torch.tensor([1]), "layers": [torch.zeros(1, n_bytes // 4)]}
    return SavedPrefix(state, torch.zeros(1))


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(35_000)
    for key in (b"a", b"b", b"c"):
        cache.add(key, saved(8_000))
    assert cache.longest([b"a"], whole=True)[0] == 1
    cache.add(b"d", saved(8_000))
    assert [key for key, _ in cache.items()] == [b"c", b"a", b"d"]
    assert cache.n_bytes == sum(one.n_bytes for _, one in cache.items())


def test_saving_a_prefix_again_takes_no_more_memory() -> None:
    cache = PrefixCache(35_000)
    cache.add(b"a", saved(8_000))
    before = cache.n_bytes
    cache.add(b"a", saved(8_000))
    assert (len(cache), cache.n_bytes) == (1, before)


def test_what_is_larger_than_the_memory_is_not_kept_and_evicts_nothing() -> None:
    cache = PrefixCache(35_000)
    cache.add(b"a", saved(8_000))
    cache.add(b"b", saved(40_000))
    assert [key for key, _ in cache.items()] == [b"a"]


def test_the_bytes_of_what_grows_with_the_text_are_counted() -> None:
    model, cache = model_of(("softmax_attention",)), PrefixCache(ROOMY)
    prefill_cached(model, IDS[:10], cache)
    short = cache.n_bytes
    prefill_cached(model, IDS[5:65], cache)
    assert cache.n_bytes - short > 60 * 2 * 2 * 32 * 4  # keys and values, 2 layers of 32 channels
