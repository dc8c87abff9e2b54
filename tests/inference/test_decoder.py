"""The compiled decoder computes what the modules compute, for one sequence and for many."""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ys_llm.config.schema import CopyConfig, GenerateConfig, ModelConfig
from ys_llm.csrc import loader
from ys_llm.errors import UserError
from ys_llm.inference.decoder import MAX_SEQUENCES, Decoder, StepMemory, decoder_of
from ys_llm.inference.generate import generate, generate_batch, prefill
from ys_llm.inference.sampling import ScoredToken
from ys_llm.model.language_model import Model
from ys_llm.model.quantize import Quantization, quantize_linears
from ys_llm.model.state import flatten, select_rows
from ys_llm.system.machine import inspect_machine

V0_3 = {"d_summary": 0, "factored": True, "shared_norm": True, "summary_scale": "fixed"}
SHAPES: dict[str, dict[str, Any]] = {
    "default": {"options": {"d_state": 40}},
    "odd": {"d_model": 33, "d_mlp": 17, "options": {"d_state": 7, "d_summary": 5}},
    "one": {"d_model": 1, "d_mlp": 1, "options": {"d_state": 1, "d_summary": 1}},
    "wide": {"d_model": 70, "d_mlp": 300, "options": {"d_state": 200, "d_summary": 64}},
    "heads": {"options": {"d_state": 24, "d_summary": 6, "n_heads": 3, "factored": True}},
    "no local": {"options": {"d_state": 24, "local_interval": 0}},
    "no tiers": {
        "options": {"d_state": 24, "factored": True, "local_interval": 0, "global_interval": 0}
    },
    "no mlp": {"d_mlp": 0, "options": {"d_state": 24, "local_interval": 5, "global_interval": 1}},
    "tied": {"tie_embeddings": True, "options": {"d_state": 24}},
    "v0.3": {"block": "plain", "d_mlp": 0, "n_layers": 1, "options": {"d_state": 40, **V0_3}},
    "copy": {"copy": CopyConfig(40, 8), "options": {"d_state": 24}},
    "copy one": {"copy": CopyConfig(1, 1), "options": {"d_state": 24}},
    "copy odd": {"d_model": 33, "copy": CopyConfig(33, 7), "options": {"d_state": 7}},
    "copy all": {"tie_embeddings": True, "copy": CopyConfig(512, 64), "options": {"d_state": 9}},
    "copy v0.3": {
        **{"block": "plain", "d_mlp": 0, "n_layers": 1, "copy": CopyConfig(20, 16)},
        "options": {"d_state": 40, **V0_3},
    },
    "plain stack": {"block": "plain", "d_mlp": 0, "options": {"d_state": 18, "n_heads": 2}},
}
LENGTH = 132  # past the second global summary
SAMPLED = GenerateConfig(temperature=1.0, top_k=30, max_tokens=70, seed=3)


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())


def model_of(shape: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Model:
    torch.manual_seed(1)
    config = {"d_model": 32, "n_layers": 2, "d_mlp": 48, **SHAPES[shape], **changes}
    config["options"] = {"three_tier": config["options"]}
    model = Model(ModelConfig(**config), vocab_size=101).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no bias at 0, no gain at 1
    return model


def decoder_for(model: Model) -> Decoder:
    decoder = decoder_of(model)
    assert decoder is not None
    return decoder


def ids_of(length: int = LENGTH) -> list[int]:
    return torch.randint(101, (length,), generator=torch.Generator().manual_seed(7)).tolist()


def by_torch(model: Model, ids: list[int], state: Any) -> tuple[Tensor, Any]:
    with torch.inference_mode():
        logits_BTV, state = model(torch.tensor([ids]), state)
    return logits_BTV[0], state


def assert_same_state(found: Any, expected: Any, tolerance: float) -> None:
    left, right = flatten(found), flatten(expected)
    assert left.keys() == right.keys()
    for name, value in right.items():
        torch.testing.assert_close(left[name], value, atol=tolerance, rtol=tolerance, msg=name)


# One sequence


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_state_are_those_of_the_modules(shape: str) -> None:
    model, ids = model_of(shape), ids_of()
    decoder = decoder_for(model)
    state = model.init_state(1)
    sequences = {threads: decoder.sequence(state) for threads in (1, 2)}
    for t, id in enumerate(ids):
        expected, state = by_torch(model, [id], state)
        for threads, sequence in sequences.items():
            found = decoder.step([sequence], [id], threads=threads)
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
            if t in (0, 14, 15, 16, 62, 63, 64, 65, 127, 128, LENGTH - 1):
                assert_same_state(decoder.state(sequence), state, 1e-10)


@pytest.mark.parametrize("shape", ["default", "heads", "v0.3", "copy"])
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, LENGTH - 1), min_size=1, max_size=4, unique=True))
def test_either_continues_where_the_other_stopped(shape: str, cuts: list[int]) -> None:
    model, ids = model_of(shape), ids_of()
    decoder, expected = decoder_for(model), by_torch(model, ids, None)[0]
    state = model.init_state(1)
    edges = [0, *sorted(cuts), LENGTH]
    for number, (begin, end) in enumerate(pairwise(edges)):
        part = ids[begin:end]
        if number % 2:
            logits, state = by_torch(model, part, state)
        else:
            sequence = decoder.sequence(state)
            logits = torch.cat([decoder.step([sequence], [id]) for id in part])
            state = decoder.state(sequence)
        torch.testing.assert_close(logits, expected[begin:end], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_single_precision_it_is_as_close_as_torch_is(shape: str) -> None:
    exact, ids = model_of(shape), ids_of(40)
    single = copy.deepcopy(exact).float()
    expected = by_torch(exact, ids, None)[0]
    decoder = decoder_for(single)
    sequence = decoder.sequence(single.init_state(1))
    found = torch.cat([decoder.step([sequence], [id]) for id in ids])
    of_torch = by_torch(single, ids, None)[0]
    error, error_of_torch = ((x.double() - expected).norm() for x in (found, of_torch))
    assert error <= 2 * error_of_torch + 1e-6 * expected.norm()


def test_the_number_of_threads_changes_no_bit() -> None:
    model = model_of("wide", torch.float32, copy=CopyConfig(30, 16))
    ids = ids_of(70)
    decoder, logits = decoder_for(model), []
    for threads in (1, 2, 3, None):
        sequence = decoder.sequence(model.init_state(1))
        logits.append(torch.cat([decoder.step([sequence], [id], threads=threads) for id in ids]))
    assert all(torch.equal(other, logits[0]) for other in logits[1:])


def test_the_state_it_starts_from_is_not_changed() -> None:
    model = model_of("default")
    _, state = by_torch(model, ids_of(20), None)
    before, decoder = copy.deepcopy(state), decoder_for(model)
    sequence = decoder.sequence(state)
    decoder.step([sequence], [3])
    kept = decoder.state(sequence)
    decoder.step([sequence], [4])
    assert_same_state(state, before, 0)
    assert kept["position_B"].tolist() == [21]


@pytest.mark.parametrize("quantization", ["", "int8"])
def test_its_own_copy_is_of_all_matrices_but_the_embedding(quantization: Quantization) -> None:
    model = model_of("wide", torch.float32)
    if quantization:
        quantize_linears(model, quantization)
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = [kept for kept in decoder_for(model)._weights._kept if isinstance(kept, Tensor)]
    copied = sum(tensor.nbytes for tensor in kept if tensor.data_ptr() not in own)
    tensors = (*model.parameters(), *model.buffers())
    matrices = sum(tensor.nbytes for tensor in tensors if tensor.dim() >= 2)
    expected = matrices - model.embedding.weight.nbytes
    assert expected <= copied < 1.2 * expected, "panels are padded"


def test_a_copy_tier_sees_nothing_of_documents_before_the_last() -> None:
    model, ids = model_of("copy"), ids_of(90)
    decoder, state = decoder_for(model), model.init_state(2)
    starts_BT = torch.zeros(2, 30, dtype=torch.bool)
    starts_BT[0, 25] = starts_BT[1, 0] = True
    with torch.inference_mode():
        _, state = model(torch.tensor([ids[:30], ids[30:60]]), state, starts_BT)
    for row in range(2):
        sequence, of_torch = decoder.sequence(state, row), select_rows(state, [row])
        for id in ids[60:]:
            expected, of_torch = by_torch(model, [id], of_torch)
            found = decoder.step([sequence], [id])
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_a_copy_tier_keeps_as_much_after_many_tokens_as_after_few() -> None:
    model = model_of("copy", copy=CopyConfig(4, 8))
    decoder = decoder_for(model)
    sequence = decoder.sequence(model.init_state(1))
    for n_read, id in enumerate(ids_of(13), start=1):
        decoder.step([sequence], [id])
        state = decoder.state(sequence)["copy"]
        assert state["tokens"].tolist() == [[id + 1 for id in ids_of(13)[:n_read][-3:]]]
        assert state["keys"].shape == (1, min(n_read, 3), 8)


def test_the_clock_may_be_at_any_position() -> None:
    model = model_of("default")
    _, state = by_torch(model, ids_of(9), None)
    late = 10**12 + 5
    state = {**state, "position_B": torch.tensor([late])}
    decoder = decoder_for(model)
    sequence = decoder.sequence(state)
    for id in ids_of(70):
        expected, state = by_torch(model, [id], state)
        torch.testing.assert_close(decoder.step([sequence], [id]), expected, atol=1e-10, rtol=1e-10)
    assert_same_state(decoder.state(sequence), state, 1e-10)


def test_a_nan_weight_is_seen_in_the_logits() -> None:
    model = model_of("default", torch.float32)
    read = prefill(model, [1, 2, 3])
    with torch.no_grad():
        model.blocks[1].mixer.state_controller[0, 0] = torch.nan  # type: ignore[union-attr,operator]
    decoder = decoder_for(model)
    assert decoder.step([decoder.sequence(read.state)], [5]).isnan().all()
    with pytest.raises(UserError, match="NaN or infinite"):
        list(generate(model, read, sampling=SAMPLED, end_ids=(), decoder=decoder_for(model)))


@pytest.mark.parametrize(
    ("n", "ids"), [(1, [101]), (1, [-1]), (1, [1, 2]), (0, []), (MAX_SEQUENCES + 1, [1] * 65)]
)
def test_invalid_ids_and_counts_are_refused(n: int, ids: list[int]) -> None:
    model = model_of("default")
    decoder = decoder_for(model)
    with pytest.raises(ValueError, match=r"sequences|below"):
        decoder.step([decoder.sequence(model.init_state(1)) for _ in range(n)], ids)


def test_the_limit_on_sequences_is_that_of_the_kernel() -> None:
    library = loader.load()
    assert library is not None
    assert library.lib.YS_MAX_SEQUENCES == MAX_SEQUENCES


# Many sequences


@pytest.mark.parametrize("shape", ["default", "wide", "heads", "v0.3", "copy"])
@pytest.mark.parametrize("n", [2, 3, 4, 7, 21, MAX_SEQUENCES])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_each_of_many_sequences_gets_the_bits_it_gets_alone(
    shape: str, n: int, side_by_side: bool
) -> None:
    model = model_of(shape, torch.float32)
    decoder, ids = decoder_for(model), ids_of(140)
    begun = [by_torch(model, ids[: 1 + 3 * b % 70], None)[1] for b in range(n)]  # clocks apart
    together, alone = ([decoder.sequence(state) for state in begun] for _ in range(2))
    if side_by_side:
        together = decoder.side_by_side(together)
    for t in range(20):
        read = [ids[(t * n + b) % 140] for b in range(n)]
        logits_NV = decoder.step(together, read)
        for b, sequence in enumerate(alone):
            assert torch.equal(decoder.step([sequence], [read[b]])[0], logits_NV[b])
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.numbers, other.numbers)
        assert one.position == other.position


@pytest.mark.parametrize("max_batch", [1, 3, 16])
@pytest.mark.parametrize("shape", ["default", "copy"])
def test_each_of_many_continuations_is_the_one_alone(shape: str, max_batch: int) -> None:
    model = model_of(shape, torch.float32)
    read = [prefill(model, ids_of(1 + 5 * b)) for b in range(8)]
    options: dict[str, Any] = {"sampling": SAMPLED, "end_ids": [4], "decoder": decoder_for(model)}
    alone = [list(generate(model, one, **options)) for one in read]
    assert len({len(steps) for steps in alone}) > 1, "all end at the same length: nothing is shown"
    many = generate_batch(model, iter(read), max_batch=max_batch, **options)
    assert dict(many) == dict(enumerate(alone))


def test_memory_that_is_used_again_changes_no_bit() -> None:
    model, memory = model_of("default", torch.float32), StepMemory()
    decoder = decoder_for(model)
    used, fresh = ([decoder.sequence(model.init_state(1)) for _ in range(5)] for _ in range(2))
    for n in (5, 2, 4, 1):
        expected = decoder.step(fresh[:n], ids_of(n))
        assert torch.equal(decoder.step(used[:n], ids_of(n), memory=memory), expected)


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_prompts_join_as_rows_become_free(max_tokens: int) -> None:
    model, taken = model_of("default", torch.float32), 0

    def prompts() -> Iterator[Any]:
        nonlocal taken
        for b in range(9):
            taken += 1
            yield prefill(model, [b])

    sampling, ahead = replace(SAMPLED, max_tokens=max_tokens), []
    options: dict[str, Any] = {"sampling": sampling, "end_ids": (), "decoder": decoder_for(model)}
    for number, steps in generate_batch(model, prompts(), max_batch=3, **options):
        assert len(steps) == max_tokens
        ahead.append((number, taken))
    assert ahead == [(b, 3 * (b // 3 + 1)) for b in range(9)]


# In generation


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", ["default", "copy"])
def test_torch_and_the_decoder_generate_the_same_text(shape: str, temperature: float) -> None:
    sampling = replace(SAMPLED, temperature=temperature, repetition_penalty=1.1)
    model = model_of(shape)
    read = prefill(model, ids_of(30))

    def made(decoder: Decoder | None) -> tuple[list[ScoredToken], dict[int, list[ScoredToken]]]:
        options: dict[str, Any] = {"sampling": sampling, "end_ids": (), "decoder": decoder}
        alone = list(generate(model, read, n_candidates=2, **options))
        return alone, dict(generate_batch(model, [read, read], **options))

    alone, many = made(decoder_for(model))
    by_torch_alone, many_by_torch = made(None)
    assert [step.id for step in by_torch_alone] == [step.id for step in alone]
    assert [step.logprob for step in by_torch_alone] == pytest.approx(
        [s.logprob for s in alone], abs=1e-5
    )
    for number in (0, 1):
        for steps in (many[number], many_by_torch[number]):
            assert [step.id for step in steps] == [step.id for step in alone]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize(
    "flag", [pytest.param("-march=x86-64", marks=pytest.mark.slow), "-march=x86-64-v3"]
)
def test_older_processors_compute_the_same(flag: str) -> None:
    if flag.endswith("v3") and "avx2" not in inspect_machine().features:
        pytest.skip("the processor has no AVX2")
    library = loader.build(flags=(flag,))
    assert library is not None, loader.unavailable_reason(flags=(flag,))
    quantizations: tuple[Quantization | None, ...] = (None, "bf16", "int8")
    for quantization, dtype in [(None, torch.float64), *product(quantizations, [torch.float32])]:
        model, ids = model_of("odd", dtype, copy=CopyConfig(19, 5)), ids_of(66)
        if quantization:
            quantize_linears(model, quantization)
        specs = [spec for mixer in model.mixers if (spec := mixer.decode_spec())]
        with torch.no_grad():
            decoder = Decoder(model, specs, library)
        sequences = [decoder.sequence(model.init_state(1)) for _ in range(5)]
        alone = decoder.sequence(model.init_state(1))
        found = [decoder.step(sequences, [id] * 5, threads=2) for id in ids]
        expected = by_torch(model, ids, None)[0]
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        for logits_NV, id, wanted in zip(found, ids, expected, strict=True):
            torch.testing.assert_close(logits_NV[4], wanted, atol=tolerance, rtol=tolerance)
            assert torch.equal(decoder.step([alone], [id])[0], logits_NV[0])
