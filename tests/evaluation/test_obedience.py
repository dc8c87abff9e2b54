"""Obedience is the share of generated answers that a judge accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.evaluated import small_model

from ys_llm.config.schema import Config, GenerateConfig
from ys_llm.data.records import Document
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.obedience import measure_obedience
from ys_llm.inference.engine import Engine
from ys_llm.runs.model_files import LoadedRun


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    tokenizer = train_tokenizer(["x"], kind="bytes", vocab_size=258)
    model = small_model(tokenizer)
    config = Config(model=model.config, generate=GenerateConfig(max_tokens=4))
    return Engine(LoadedRun(tmp_path, config, model, tokenizer, step=1, has_records=True))


DOCUMENTS = [Document(f"written {i}", f"ask {i}") for i in range(5)] + [Document("a text")]


def test_the_shares_are_those_of_the_judge(engine: Engine) -> None:
    seen: list[tuple[str, str]] = []

    def judge(prompt: str, answer: str) -> dict[str, bool]:
        seen.append((prompt, answer))
        if answer.startswith("written"):
            return {"even": True}
        return {"even": int(prompt[-1]) % 2 == 0}

    [row] = measure_obedience(engine, DOCUMENTS, {"own": judge}, n_prompts=9)
    assert (row.kind, row.check) == ("own", "even")
    assert (row.prompts, row.share, row.in_the_text) == (5, 0.6, 1.0)
    assert row.standard_error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)
    generated = {prompt for prompt, answer in seen if not answer.startswith("written")}
    assert generated == {f"ask {i}" for i in range(5)}
    [row] = measure_obedience(engine, DOCUMENTS, {"own": judge}, n_prompts=2)
    assert row.prompts == 2


def test_every_kind_has_its_own_prompts_and_checks(engine: Engine) -> None:
    def last(prompt: str, answer: str) -> dict[str, bool]:
        return {"said": answer.startswith("written")} if prompt == "ask 4" else {}

    def others(prompt: str, answer: str) -> dict[str, bool]:
        checks = {"said": answer.startswith("written"), "asked": prompt.startswith("ask")}
        return checks if prompt != "ask 0" else {"asked": True}

    rows = measure_obedience(engine, DOCUMENTS, {"last": last, "others": others}, n_prompts=9)
    assert {(row.kind, row.check): (row.prompts, row.share, row.in_the_text) for row in rows} == {
        ("last", "said"): (1, 0, 1),
        ("others", "all"): (4, 0.25, 1),
        ("others", "said"): (3, 0, 1),
        ("others", "asked"): (4, 1, 1),
    }


def test_text_without_such_prompts_is_an_error(engine: Engine) -> None:
    with pytest.raises(UserError, match="no prompt"):
        measure_obedience(engine, DOCUMENTS, {"own": lambda *_: {}}, n_prompts=2)
