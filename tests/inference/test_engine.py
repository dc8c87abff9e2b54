"""An answer has the same content and shape, alone or in a batch, in text or in JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ys_llm.config.schema import Config, GenerateConfig, ModelConfig
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference import engine as engine_module
from ys_llm.inference.engine import Answer, Engine
from ys_llm.inference.generate import complete
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

SAMPLING = GenerateConfig(temperature=1.0, max_tokens=12, seed=4)
PROMPTS = ["the cat", "", "a mat, a mat", "the cat", "sat"]


def loaded_run(dtype: torch.dtype = torch.float32) -> LoadedRun:
    torch.manual_seed(1)
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    config = ModelConfig(d_model=32, n_layers=2, d_mlp=64, options={"three_tier": {"d_state": 32}})
    model = Model(config, vocab_size=tokenizer.vocab_size).to(dtype).eval()
    return LoadedRun(
        path=Path("runs/small"),
        config=Config(run="small", model=config),
        model=model,
        tokenizer=tokenizer,
        step=7,
        has_records=True,
    )


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(loaded_run())


def timeless(answer: Answer) -> Answer:
    return replace(answer, prompt_seconds=0.0, answer_seconds=0.0)


def test_an_answer_holds_what_was_asked_and_what_came_of_it(engine: Engine) -> None:
    answer = engine.answer("the cat", SAMPLING)
    tokenizer = engine.loaded.tokenizer
    assert (answer.run, answer.step, answer.seed) == ("small", 7, 4)
    assert answer.prompt == "the cat"
    assert answer.prompt_tokens == len("the cat") + 2  # <end> and <start>
    assert answer.answer_tokens == len(answer.ids) == 12
    assert answer.finish_reason == "length"
    assert answer.text == tokenizer.decode(answer.ids)
    assert answer.prompt_seconds > 0 and answer.answer_seconds > 0
    assert answer.prompt_logprobs is answer.answer_logprobs is None


def test_the_text_is_what_complete_streams(engine: Engine) -> None:
    loaded = engine.loaded
    for raw in (False, True):
        pieces = complete(loaded.model, loaded.tokenizer, "a mat", sampling=SAMPLING, raw=raw)
        assert engine.answer("a mat", SAMPLING, raw=raw).text == "".join(pieces)


def test_json_is_flat_and_names_no_logprobs_that_were_not_asked_for(engine: Engine) -> None:
    described = engine.answer("the cat", SAMPLING).to_json()
    assert list(described) == [
        *("run", "step", "seed", "prompt", "text", "ids", "finish_reason"),
        *("prompt_tokens", "answer_tokens"),
    ]
    assert "logprobs" in engine.answer("the cat", SAMPLING, logprobs=0).to_json()


def test_logprobs_are_the_models_own_for_prompt_and_answer(engine: Engine) -> None:
    tokenizer = engine.loaded.tokenizer
    answer = engine.answer("the cat", SAMPLING, raw=True, logprobs=3)
    described: dict[str, Any] = answer.to_json()["logprobs"]
    prompt = [0, *tokenizer.encode("the cat")]
    with torch.inference_mode():
        logits, _ = engine.loaded.model(torch.tensor([prompt + list(answer.ids)]))
    expected = torch.log_softmax(logits[0].double(), -1)
    assert described["prompt"][0] == {"id": 0, "text": "<end>", "logprob": None}
    scored = described["prompt"][1:] + described["answer"]
    assert [token["id"] for token in scored] == [*prompt[1:], *answer.ids]
    for i, token in enumerate(scored):
        assert token["text"] == tokenizer.token_text(token["id"])
        assert token["logprob"] == pytest.approx(float(expected[i, token["id"]]), abs=1e-4)
        best = expected[i].topk(3).values.tolist()
        assert [top["logprob"] for top in token["top"]] == pytest.approx(best, abs=1e-4)
        assert all(top["text"] == tokenizer.token_text(top["id"]) for top in token["top"])


def test_logprobs_of_no_alternatives_are_those_of_the_tokens_alone(engine: Engine) -> None:
    described = engine.answer("the cat", SAMPLING, logprobs=0).to_json()["logprobs"]
    assert all(set(token) == {"id", "text", "logprob"} for token in described["answer"])


def test_no_tokens_are_an_answer_that_only_scores_the_prompt(engine: Engine) -> None:
    answer = engine.answer("the cat", replace(SAMPLING, max_tokens=0), logprobs=0)
    assert (answer.text, answer.ids, answer.finish_reason) == ("", (), "length")
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == answer.prompt_tokens


def test_the_seed_of_an_answer_makes_it_again(engine: Engine) -> None:
    first = engine.answer("the cat", replace(SAMPLING, seed=None))
    again = engine.answer("the cat", replace(SAMPLING, seed=first.seed))
    assert timeless(again) == timeless(first)
    assert engine.answer("the cat", replace(SAMPLING, seed=None)).seed != first.seed


def test_an_answer_that_ends_says_stop(engine: Engine) -> None:
    end_id = engine.loaded.tokenizer.end_id
    loaded = loaded_run()
    with torch.no_grad():  # every logit the same, so that greedy takes the smallest id: <end>
        loaded.model.output.weight.zero_()
    assert end_id == 0
    answer = Engine(loaded).answer("the cat", replace(SAMPLING, temperature=0.0))
    assert (answer.finish_reason, answer.ids, answer.text) == ("stop", (end_id,), "")


def test_a_run_without_records_continues_every_prompt() -> None:
    loaded = loaded_run()
    record, raw = (Engine(loaded).answer("the cat", SAMPLING, raw=raw) for raw in (False, True))
    assert record.prompt_tokens == raw.prompt_tokens + 1
    without = Engine(replace(loaded, has_records=False))
    assert timeless(without.answer("the cat", SAMPLING)) == timeless(raw)


@pytest.mark.parametrize("raw", [False, True])
def test_a_batch_gives_each_prompt_its_own_answer_in_order(raw: bool) -> None:
    engine = Engine(loaded_run(torch.float64))  # in which no rounding turns a draw
    answers = list(engine.answer_batch(iter(PROMPTS), SAMPLING, raw=raw, max_batch=3))
    alone = [engine.answer(prompt, SAMPLING, raw=raw) for prompt in PROMPTS]
    assert list(map(timeless, answers)) == list(map(timeless, alone))


def test_with_the_compiled_decoder_a_batch_equals_single_answers_in_float32() -> None:
    engine = Engine(loaded_run())
    assert engine.decoder is not None
    sampling = replace(SAMPLING, max_tokens=60)
    answers = list(engine.answer_batch(PROMPTS * 5, sampling))
    alone = {prompt: engine.answer(prompt, sampling).text for prompt in PROMPTS}
    assert [answer.text for answer in answers] == [alone[prompt] for prompt in PROMPTS * 5]


def test_a_batch_without_a_seed_has_one_seed_that_answers_each_alike() -> None:
    engine = Engine(loaded_run(torch.float64))
    answers = list(engine.answer_batch(PROMPTS, replace(SAMPLING, seed=None)))
    assert len({answer.seed for answer in answers}) == 1
    alone = engine.answer(PROMPTS[2], replace(SAMPLING, seed=answers[0].seed))
    assert timeless(alone) == timeless(answers[2])


def test_the_decoder_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    build: Callable[..., Any] = engine_module.decoder_of
    n_built = 0

    def counting(model: Model) -> Any:
        nonlocal n_built
        n_built += 1
        return build(model)

    monkeypatch.setattr(engine_module, "decoder_of", counting)
    engine = Engine(loaded_run())
    for prompt in PROMPTS:
        engine.answer(prompt, SAMPLING)
    list(engine.answer_batch(PROMPTS, SAMPLING))
    assert n_built == 1
