"""Whatever joins, leaves or waits: each answer is the one that its prompt gets alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import pytest
import torch
from support.prefixes import loaded_run
from support.scheduled import scheduled

from ys_llm.config.schema import Config, CopyConfig, GenerateConfig, ModelConfig
from ys_llm.csrc import loader
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference import scheduler as scheduler_module
from ys_llm.inference.decoder import Decoder, StepMemory, decoder_of
from ys_llm.inference.engine import Engine
from ys_llm.inference.generate import generate, prefill, prompt_ids
from ys_llm.inference.generation import Drawn, Failed, GenerationRequest, PromptRead
from ys_llm.inference.kept import Kept, ids_after
from ys_llm.inference.memories import NOTHING_MUTED, memories_called
from ys_llm.inference.scheduler import QueueFullError
from ys_llm.inference.session import Session
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

GREEDY = GenerateConfig(temperature=0, max_tokens=30)
DRAWN = GenerateConfig(temperature=1.0, top_k=40, max_tokens=25, seed=5)


@cache
def loaded(copies: bool = False) -> LoadedRun:
    """Two three-tier layers with weights far from the beginning, so that texts differ."""
    torch.manual_seed(11)
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    tier = CopyConfig(20, 8) if copies else CopyConfig()
    config = ModelConfig(d_model=32, n_layers=2, d_mlp=48, copy=tier)
    model = Model(config, vocab_size=tokenizer.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    described = Config(run="small", model=config)
    return replace(loaded_run(), config=described, model=model, tokenizer=tokenizer)


def alone(run: LoadedRun, prompt: list[int], sampling: GenerateConfig) -> list[int]:
    decoder = decoder_of(run.model)
    read = prefill(run.model, prompt, decoder=decoder)
    end_id = run.tokenizer.end_id
    tokens = generate(run.model, read, sampling=sampling, end_ids=[end_id], decoder=decoder)
    return [token.id for token in tokens]


def prompts_of(n: int) -> list[list[int]]:
    draw = random.Random(4)
    common = [draw.randrange(2, 258) for _ in range(300)]
    return [
        [0, *common[: draw.choice([0, 70, 300])], *(draw.randrange(2, 258) for _ in range(i % 9))]
        for i in range(n)
    ]


def test_answers_with_options_of_their_own_are_those_alone() -> None:
    run, prompts = loaded(), prompts_of(40)
    samplings = [
        replace(GREEDY if i % 2 else DRAWN, max_tokens=1 + 3 * (i % 11)) for i in range(40)
    ]
    expected = [alone(run, *pair) for pair in zip(prompts, samplings, strict=True)]
    assert len({tuple(ids) for ids in expected}) > 20
    with scheduled(run, max_rows=7) as (scheduler, collected):
        pairs = zip(prompts, samplings, strict=True)
        generations = [scheduler.submit(GenerationRequest(*pair)) for pair in pairs]
        for generation in generations:
            collected.finished(generation)
        assert [collected.ids(generation) for generation in generations] == expected
        reads = [collected.of(generation)[0] for generation in generations]
        assert sum(read.n_cached for read in reads if isinstance(read, PromptRead)) > 1000


def test_a_client_that_leaves_frees_its_row_and_changes_no_answer() -> None:
    run, prompts = loaded(), prompts_of(6)
    endless = replace(GREEDY, max_tokens=10**9)
    with scheduled(run, max_rows=3) as (scheduler, collected):
        leaving = [scheduler.submit(GenerationRequest(ids, endless)) for ids in prompts[:3]]
        collected.until(lambda: all(collected.ids(one) for one in leaving))
        staying = [scheduler.submit(GenerationRequest(ids, GREEDY)) for ids in prompts[3:]]
        assert not any(collected.of(one) for one in staying)  # all rows are taken
        for generation in leaving:
            generation.cancelled = True
        for generation, ids in zip(staying, prompts[3:], strict=True):
            collected.finished(generation)
            assert collected.ids(generation) == alone(run, ids, GREEDY)
        assert scheduler.is_idle
        n_events = len(collected.events)
        scheduler.submit(GenerationRequest([0], replace(GREEDY, max_tokens=1)))
        collected.until(lambda: len(collected.events) == n_events + 3)


def test_tokens_of_many_rows_are_delivered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_DELIVERY_SECONDS", 3600.0)
    run, prompts = loaded(), prompts_of(16)
    with scheduled(run) as (scheduler, collected):
        generations = [scheduler.submit(GenerationRequest(ids, GREEDY)) for ids in prompts]
        for generation, ids in zip(generations, prompts, strict=True):
            collected.finished(generation)
            assert collected.ids(generation) == alone(run, ids, GREEDY)
        assert collected.n_deliveries < sum(len(collected.ids(one)) for one in generations) / 8
        before = collected.n_deliveries
        one = scheduler.submit(GenerationRequest(prompts[0], GREEDY))
        collected.finished(one)
        assert collected.n_deliveries - before >= len(collected.ids(one)) - 1


@pytest.mark.parametrize(("mebibytes", "expected"), [(1, 1), (15, 1), (16, 2), (100, 3)])
def test_a_small_model_is_decoded_on_fewer_threads_than_alone(
    mebibytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked, step = loaded(), set[int | None](), Decoder.step
    if (decoder := decoder_of(run.model)) is None:
        pytest.skip(loader.unavailable_reason())

    def noting(*given: Any, threads: int | None = None, memory: StepMemory | None = None) -> Any:
        asked.add(threads)
        return step(*given, threads=threads, memory=memory)

    monkeypatch.setattr(Decoder, "step", noting)
    monkeypatch.setattr(Decoder, "bytes_per_token", property(lambda _: mebibytes << 20))
    monkeypatch.setattr(decoder, "threads", 3)
    with scheduled(run) as (scheduler, collected):
        answered = scheduler.submit(GenerationRequest([0, 7, 9], GREEDY))
        collected.finished(answered)
    assert asked == {expected}
    assert collected.ids(answered) == alone(run, [0, 7, 9], GREEDY)


def test_others_are_answered_while_an_endless_prompt_is_read_and_given_up() -> None:
    run = loaded()
    taken = count()

    def endless() -> Iterator[int]:
        for _ in taken:
            yield 5

    with scheduled(run) as (scheduler, collected):
        reading = scheduler.submit(GenerationRequest(endless(), GREEDY))
        other = scheduler.submit(GenerationRequest([0, 7, 9], GREEDY))
        collected.finished(other)
        assert collected.ids(other) == alone(run, [0, 7, 9], GREEDY)
        reading.cancelled = True
        collected.until(lambda: not collected.of(reading))
        last = scheduler.submit(GenerationRequest([0, 8], GREEDY))
        collected.finished(last)
        assert scheduler.is_idle
        n_taken = next(taken)
        collected.finished(scheduler.submit(GenerationRequest([0, 8], GREEDY)))
        assert next(taken) == n_taken + 1


def test_a_full_queue_refuses() -> None:
    with scheduled(loaded(), max_rows=1, max_waiting=2) as (scheduler, collected):
        request = GenerationRequest([0], replace(GREEDY, max_tokens=10**9))
        generations = [scheduler.submit(request) for _ in range(3)]
        with pytest.raises(QueueFullError):
            scheduler.submit(request)
        assert scheduler.n_waiting >= 2
        collected.until(lambda: bool(collected.ids(generations[0])))
        generations[0].cancelled = True
        collected.until(lambda: bool(collected.ids(generations[1])))
        scheduler.submit(request)


def test_a_prompt_that_fails_fails_alone() -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise ValueError("no more")

    with scheduled(loaded()) as (scheduler, collected):
        failing = scheduler.submit(GenerationRequest(broken(), GREEDY))
        other = scheduler.submit(GenerationRequest([0, 3], GREEDY))
        collected.finished(other)
        assert isinstance(collected.of(failing)[-1], Failed)


def test_what_is_not_finished_when_it_is_closed_fails() -> None:
    with scheduled(loaded()) as (scheduler, collected):
        endless = scheduler.submit(GenerationRequest([0], replace(GREEDY, max_tokens=10**9)))
        collected.until(lambda: bool(collected.ids(endless)))
    assert isinstance(collected.of(endless)[-1], Failed)


def test_a_stop_string_ends_the_text_before_it() -> None:
    run = loaded()
    whole = run.tokenizer.decode(alone(run, [0, 3], GREEDY))
    stop = whole[7:9]
    with scheduled(run) as (scheduler, collected):
        stopped = scheduler.submit(GenerationRequest([0, 3], GREEDY, stop=("never there", stop)))
        assert collected.finished(stopped).reason == "stop"
        assert collected.text(stopped) == whole[: whole.find(stop)]


def test_a_kept_state_goes_on_as_the_text_would_have() -> None:
    run = loaded()
    tokenizer, long = run.tokenizer, alone(run, [0, 3], replace(GREEDY, max_tokens=40))
    with scheduled(run) as (scheduler, collected):
        request = GenerationRequest([0, 3], replace(GREEDY, max_tokens=15), keep="each")
        first = scheduler.submit(request)
        kept = collected.finished(first).kept
        befores = [event.before for event in collected.of(first) if isinstance(event, Drawn)]
        assert kept is not None
        for start, fork in [(15, kept), (15, kept), (6, befores[6]), (0, befores[0])]:
            assert fork is not None
            rest = replace(GREEDY, max_tokens=40 - start)
            ids = ids_after(fork, tokenizer, None, raw=True)
            again = scheduler.submit(GenerationRequest(ids, rest, after=fork))
            collected.finished(again)
            assert collected.ids(again) == long[start:]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("pending", [(0,), (9,)])
def test_what_follows_a_kept_answer_is_the_next_record_or_the_same_text(
    raw: bool, pending: tuple[int, ...]
) -> None:
    run = loaded()
    kept = Kept(run.model.init_state(1), pending, ())
    text = run.tokenizer.encode("and")
    found = list(ids_after(kept, run.tokenizer, ["an", "d"], raw=raw))
    if raw:
        assert found == [*(() if pending == (0,) else pending), *text]
    else:
        assert found == [*(id for id in pending if id), 0, *text, 1]


def test_a_scored_prompt_has_the_scores_of_one_alone() -> None:
    run = loaded()
    expected = Engine(run).answer("the cat", replace(GREEDY, max_tokens=2), logprobs=2, raw=True)
    ids = list(prompt_ids(run.tokenizer, ["the cat"], raw=True))
    with scheduled(run) as (scheduler, collected):
        sampling = replace(GREEDY, max_tokens=0)
        request = GenerationRequest(ids, sampling, n_candidates=2, score_prompt=True)
        generation = scheduler.submit(request)
        assert collected.finished(generation).n_tokens == 0
        read = collected.of(generation)[0]
    assert isinstance(read, PromptRead)
    assert expected.prompt_logprobs is not None
    assert [one.logprob for one in read.scored] == [
        one.logprob for one in expected.prompt_logprobs[1:]
    ]


@pytest.mark.parametrize("copies", [False, True])
def test_what_is_explained_changes_no_token(copies: bool) -> None:
    run = loaded(copies)
    with scheduled(run) as (scheduler, collected):
        request = GenerationRequest([0, 3, 4, 3, 4], GREEDY, n_candidates=3, explain=True)
        seen = scheduler.submit(request)
        collected.finished(seen)
        assert collected.ids(seen) == alone(run, [0, 3, 4, 3, 4], GREEDY)
    drawn = [event for event in collected.of(seen) if isinstance(event, Drawn)]
    explained = [event.explained for event in drawn if event.explained is not None]
    assert len(explained) == len(drawn)
    names = ("main", "local_summary", "global_summary")
    every = {f"{layer}.{name}" for layer in (1, 2) for name in names}
    assert all(set(one.memory) == every for one in explained)
    assert explained[0].memory["1.main"].change is None
    assert all((one.memory["1.main"].change or 0) > 0 for one in explained[1:])
    still = [one.memory["2.local_summary"].change for one in explained[1:]]
    assert sum(change is not None and change > 0 for change in still) == (5 + 29) // 16
    shares = [one.copied for one in explained]
    assert shares[0] is None
    assert all(share is not None and 0 <= share <= 1 for share in shares[1:]) == copies


@pytest.mark.parametrize("names", [("main", "2"), ("copy",), ("copy.keys", "1.global")])
def test_a_muted_memory_is_muted_from_the_prompt_on_as_in_a_session(names: tuple[str, ...]) -> None:
    run, ids = loaded(copies=True), [0, 3, 9, 3, 9, *range(20, 60), 3]
    muted_names = NOTHING_MUTED.union(*(memories_called(run.model, name) for name in names))
    session = Session(Engine(run))
    session.muted = muted_names
    session.read_ids(ids)
    expected = [token.id for token in session.generate(GREEDY)]
    with scheduled(run) as (scheduler, collected):
        request = GenerationRequest(ids, GREEDY, muted=muted_names, explain=True)
        muted = scheduler.submit(request)
        plain = scheduler.submit(GenerationRequest(ids, GREEDY))
        collected.finished(muted)
        collected.finished(plain)
        assert collected.ids(plain) == alone(run, ids, GREEDY)
        assert collected.ids(muted) == expected != collected.ids(plain)
