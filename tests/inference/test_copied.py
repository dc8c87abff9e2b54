"""How much of a token's probability was copied, and from where: in numbers, as JSON, after /why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ys_llm.config.schema import Config, CopyConfig, GenerateConfig, ModelConfig
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference.engine import Engine
from ys_llm.inference.generate import copied_from, prefill
from ys_llm.inference.repl import run_interactive, run_json
from ys_llm.inference.sampling import ScoredToken
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

V = 30
SAMPLING = GenerateConfig(temperature=1.0, max_tokens=12, seed=4)


def model_of(
    window: int,
    vocab_size: int = V,
    gate: float = 0.5,
    keep: Literal["recent", "surprising"] = "recent",
) -> Model:
    torch.manual_seed(1)
    options = {"three_tier": {"d_state": 24}}
    config = ModelConfig(
        **{"d_model": 16, "n_layers": 2, "d_mlp": 24, "options": options},
        copy=CopyConfig(window, width=8, keep=keep),
    )
    model = Model(config, vocab_size=vocab_size).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if name == "copy_tier.gate.bias":
                parameter.fill_(gate)
    return model


def run_of(window: int, gate: float = 0.5) -> LoadedRun:
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    model = model_of(window, tokenizer.vocab_size, gate)
    described = Config(run="small", model=model.config)
    return LoadedRun(Path("runs/small"), described, model, tokenizer, step=7, has_records=True)


@pytest.mark.parametrize("window", [1, 7, 512])
@torch.no_grad()
def test_the_share_is_that_of_the_mixture(window: int) -> None:
    model, ids = model_of(window).double(), torch.randint(V, (700,)).tolist()
    scored: list[ScoredToken] = []
    prefill(model, ids, observe=scored.append)  # in pieces
    tokens_BT = torch.tensor([ids])
    log_p, _, reading = model.read(tokens_BT[:, :-1])
    assert model.copy_tier is not None and reading is not None
    _, copied_BT = model.copy_tier.mixture(reading, tokens_BT[:, 1:])
    nats = log_p[0].gather(1, tokens_BT[0, 1:, None])[:, 0]
    found = torch.tensor([token.copied.share for token in scored if token.copied])
    torch.testing.assert_close(found.double(), copied_BT[0] / nats.exp(), rtol=1e-4, atol=1e-6)
    assert 0.5 < found.max() <= 1


@pytest.mark.parametrize("window", [7, 512])
def test_the_sources_are_earlier_tokens_of_the_same_id(window: int) -> None:
    model, ids = model_of(window), torch.randint(V, (700,)).tolist()
    copied = copied_from(model, ids[:290], ids[290:])
    assert len(copied) == len(ids) - 290
    for position, token in enumerate(copied, start=290):
        shares = [source.share for source in token.sources]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= token.share + 1e-5
        in_view = range(max(0, position - window), position)
        expected = [i for i in in_view if ids[i] == ids[position]]
        assert len(shares) == min(3, len(expected))
        assert {source.position for source in token.sources} <= set(expected)
    assert any(token.share > 0.5 for token in copied)


def test_the_position_of_a_token_kept_for_its_surprise_is_not_known() -> None:
    model, ids = model_of(16, keep="surprising"), torch.randint(V, (60,)).tolist()
    copied = copied_from(model, ids[:-20], ids[-20:])
    far = [source for token in copied for source in token.sources if source.position is None]
    near = [
        (ids[source.position], ids[40 + number])
        for number, token in enumerate(copied)
        for source in token.sources
        if source.position is not None
    ]
    assert far
    assert near
    assert all(found == expected for found, expected in near)


def test_the_answer_may_follow_a_prompt_of_one_token() -> None:
    model = model_of(5)
    copied = copied_from(model, [3], [3, 4])
    assert [len(token.sources) for token in copied] == [1, 0]
    assert copied_from(model, [3], []) == []
    assert copied_from(model_of(0), [3], [3, 4]) == []


def test_json_tells_it_of_every_token_that_has_a_probability(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of(window=64)
    run_json(run, "the cat sat on the mat", SAMPLING, logprobs=0)
    logprobs = json.loads(capsys.readouterr().out)["logprobs"]
    first, *rest = [*logprobs["prompt"], *logprobs["answer"]]
    assert "copied" not in first
    texts = [first["text"], *(token["text"] for token in rest)]
    for token in rest:
        for source in token["copied"]["sources"]:
            assert texts[source["position"]] == token["text"]
            begin, end = max(0, source["position"] - 4), source["position"] + 1
            assert source["text"] == "".join(texts[begin:end])
    assert any(token["copied"]["sources"] for token in logprobs["answer"])


def test_json_without_a_copy_tier_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    run_json(run_of(window=0), "the cat", SAMPLING, logprobs=1)
    assert "copied" not in capsys.readouterr().out


def converse(monkeypatch: pytest.MonkeyPatch, run: LoadedRun, *lines: str) -> None:
    left: Any = iter([*lines, "exit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(left))
    run_interactive(run, SAMPLING, raw=True)


def test_why_shows_what_the_last_answer_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(window=64, gate=-9.0)  # next to everything is copied
    answer = Engine(run).answer("the cat", SAMPLING, raw=True).text
    converse(monkeypatch, run, "the mat", "/new", "the cat", "/why ")
    shown = capsys.readouterr().out
    last, _, title, *lines = shown.partition(answer + "\n")[2].splitlines()
    assert last.startswith(f"the last token, {answer[-1]!r}, had ")
    assert title == "12 of 12 tokens were copied for the most part"
    assert len(lines) == 12
    assert lines[0].startswith(f"  100%  {answer[0]!r} from token ")


def test_why_needs_an_answer_and_a_copy_tier(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(monkeypatch, run_of(window=4), "/why")
    assert capsys.readouterr().out == "nothing was answered yet\n"
    converse(monkeypatch, run_of(window=0), "the cat", "/why")
    assert capsys.readouterr().out.endswith(
        "this model has no copy tier (model.copy.window): nothing was copied\n"
    )
