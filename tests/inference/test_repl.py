"""`ys run` as its user meets it: text on stdout, timings on stderr, one object as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ys_llm.config.schema import Config, GenerateConfig, ModelConfig
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference.generate import complete
from ys_llm.inference.repl import pieces_of, run_batch, run_interactive, run_once
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

SAMPLING = GenerateConfig(temperature=1.0, max_tokens=12, seed=4)


@pytest.fixture(scope="module")
def loaded() -> LoadedRun:
    torch.manual_seed(1)
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    config = ModelConfig(d_model=32, n_layers=2, d_mlp=64, options={"three_tier": {"d_state": 32}})
    model = Model(config, vocab_size=tokenizer.vocab_size).eval()
    return LoadedRun(
        path=Path("runs/small"),
        config=Config(run="small", model=config),
        model=model,
        tokenizer=tokenizer,
        step=7,
        has_records=True,
    )


def answer(loaded: LoadedRun, prompt: str, *, plain: bool = False) -> str:
    pieces = complete(loaded.model, loaded.tokenizer, prompt, sampling=SAMPLING, plain=plain)
    return "".join(pieces)


def typed(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """An `input` at which these lines are typed; an exception is Ctrl-C, or the end."""
    left = iter([*lines, EOFError])

    def read(prompt: str = "") -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return read


def as_json(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], sampling: GenerateConfig, **options: Any
) -> dict[str, Any]:
    run_once(loaded, "the cat", sampling, as_json=True, **options)
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_the_text_goes_to_stdout_and_the_timings_to_stderr(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(loaded, "the cat", SAMPLING, plain=True)
    out, err = capsys.readouterr()
    assert out == answer(loaded, "the cat", plain=True) + "\n"
    assert "prompt 8 tokens in" in err
    assert "answer 12 tokens in" in err
    assert "tokens/s" in err


def test_a_prompt_in_pieces_is_the_same_prompt(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(loaded, iter(["the", " c", "at"]), SAMPLING)
    in_pieces = capsys.readouterr().out
    run_once(loaded, "the cat", SAMPLING)
    assert capsys.readouterr().out == in_pieces


def test_prompt_after_prompt_each_from_a_fresh_state(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", typed("the mat", "", "   ", "the cat", "exit", "never"))
    run_interactive(loaded, SAMPLING, plain=True)
    expected = [answer(loaded, prompt, plain=True) for prompt in ("the mat", "the cat")]
    assert capsys.readouterr().out == "".join(text + "\n" for text in expected)


@pytest.mark.parametrize("last", ["exit", "quit", " exit ", EOFError, KeyboardInterrupt])
def test_the_conversation_can_be_left(
    loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch, last: str | type[BaseException]
) -> None:
    reader = typed(last, "not read")
    monkeypatch.setattr("builtins.input", reader)
    run_interactive(loaded, SAMPLING, plain=True)
    assert reader("") == "not read"


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    def interrupt(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", typed("the mat", "the cat"))
    hook = loaded.model.register_forward_pre_hook(interrupt)
    try:
        run_interactive(loaded, SAMPLING, plain=True)
    finally:
        hook.remove()
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert answer(loaded, "the mat", plain=True).startswith(first)
    assert rest == answer(loaded, "the cat", plain=True) + "\n"


def test_json_holds_ids_texts_and_logprobs_of_prompt_and_answer(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = as_json(loaded, capsys, SAMPLING, logprobs=3, plain=True)
    assert (printed["run"], printed["step"], printed["seed"]) == ("small", 7, 4)
    prompt, answered = printed["prompt"], printed["answer"]
    ids = [0, *loaded.tokenizer.encode("the cat")]
    assert prompt["ids"] == ids
    assert prompt["texts"] == ["<end>", *"the cat"]
    assert answered["finish_reason"] == "length"
    assert len(answered["ids"]) == 12
    assert answered["text"] == loaded.tokenizer.decode(answered["ids"])
    with torch.inference_mode():
        logits, _ = loaded.model(torch.tensor([ids + answered["ids"]]))
    expected = torch.log_softmax(logits[0].double(), -1)
    followers = [*ids[1:], *answered["ids"]]
    assert prompt["logprobs"][0] is None
    found = prompt["logprobs"][1:] + answered["logprobs"]
    assert found == pytest.approx(
        [float(expected[i, id]) for i, id in enumerate(followers)], abs=1e-4
    )
    assert prompt["top"][0] == []
    for i, top in enumerate(prompt["top"][1:] + answered["top"]):
        assert [c["logprob"] for c in top] == pytest.approx(
            expected[i].topk(3).values.tolist(), abs=1e-4
        )
        assert [c["text"] for c in top] == [loaded.tokenizer.token_text(c["id"]) for c in top]


def test_zero_tokens_only_score_the_prompt(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = as_json(loaded, capsys, replace(SAMPLING, max_tokens=0))
    assert printed["answer"] == {
        "text": "",
        "ids": [],
        "texts": [],
        "logprobs": [],
        "finish_reason": "length",
    }
    assert len(printed["prompt"]["ids"]) == len(printed["prompt"]["logprobs"])
    assert "top" not in printed["prompt"]


def test_the_seed_in_the_json_makes_the_answer_again(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    first = as_json(loaded, capsys, replace(SAMPLING, seed=None))
    again = as_json(loaded, capsys, replace(SAMPLING, seed=first["seed"]))
    assert again == first


def test_an_answer_that_ends_says_stop(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    bias = torch.zeros(loaded.model.vocab_size)
    bias[loaded.tokenizer.end_id] = 1e3
    hook = loaded.model.output.register_forward_hook(lambda _, __, logits: logits + bias)
    try:
        printed = as_json(loaded, capsys, SAMPLING)
    finally:
        hook.remove()
    assert printed["answer"]["finish_reason"] == "stop"
    assert printed["answer"]["ids"] == [loaded.tokenizer.end_id]
    assert printed["answer"]["text"] == ""


def test_an_answer_to_a_record_is_not_the_continuation_of_a_text(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    record, plain = (as_json(loaded, capsys, SAMPLING, plain=plain) for plain in (False, True))
    assert record["prompt"]["ids"] == [*plain["prompt"]["ids"], loaded.tokenizer.start_id]
    without = replace(loaded, has_records=False)
    assert as_json(without, capsys, SAMPLING, plain=False) == plain


@pytest.mark.parametrize("plain", [False, True])
def test_many_prompts_are_each_answered_as_if_alone(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str], plain: bool
) -> None:
    prompts = ["the cat", "", "a mat, a mat", "the cat", "sat"]
    run_batch(loaded, iter(prompts), SAMPLING, plain=plain)
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [one["prompt"] for one in answers] == prompts
    assert [one["text"] for one in answers] == [answer(loaded, p, plain=plain) for p in prompts]
    assert all(one["seed"] == SAMPLING.seed and one["tokens"] <= 12 for one in answers)
    assert {one["finish_reason"] for one in answers} <= {"stop", "length"}
    total = sum(one["tokens"] for one in answers)
    assert f"answers {total} tokens in" in err


def test_many_prompts_name_the_seed_that_answers_one_alike(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_batch(loaded, ["the mat", "the cat"], replace(SAMPLING, seed=None))
    second = json.loads(capsys.readouterr().out.splitlines()[1])
    alone = as_json(loaded, capsys, replace(SAMPLING, seed=second["seed"]))
    assert alone["answer"]["text"] == second["text"]
    assert alone["answer"]["finish_reason"] == second["finish_reason"]


def test_an_answer_of_no_tokens_is_an_answer(
    loaded: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_batch(loaded, ["the mat"], replace(SAMPLING, max_tokens=0))
    (line,) = capsys.readouterr().out.splitlines()
    described = {"prompt": "the mat", "text": "", "finish_reason": "length", "tokens": 0, "seed": 4}
    assert json.loads(line) == described


def test_a_file_is_read_in_bounded_pieces() -> None:
    def sizes(text: str) -> Iterator[int]:
        return map(len, pieces_of(io.StringIO(text)))

    assert sum(sizes("x" * 200_000)) == 200_000
    assert max(sizes("x" * 200_000)) <= 1 << 16
    assert "".join(pieces_of(io.StringIO("a\r\nb"))) == "a\r\nb"
    assert list(sizes("")) == []
