"""The table of what mixers learn to do is that of its file, and of models that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import abilities
from benchmarks.abilities import CONTENDERS, RESULTS, SETTINGS, config_of, main, markdown
from ys_llm.evaluation.tasks.trained import TASKS
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model

ROOT = Path(__file__).resolve().parents[2]
FOUND: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_rows_are_of_these_models_and_tasks() -> None:
    assert tuple(FOUND["settings"]) == SETTINGS
    seen: dict[tuple[str, str, int], list[int]] = {}
    for row in FOUND["rows"]:
        seen.setdefault((row["name"], row["task"], row["seed"]), []).append(row["size"])
        assert row["chance"] == TASKS[row["task"]].chance
    for (name, task, _), sizes in seen.items():
        assert tuple(sizes) == (*TASKS[task].sizes, *TASKS[task].longer)
        with torch.device("meta"):
            model = Model(config_of(name).model, vocab_size=TASKS[task].vocab_size)
        counts = {
            row["parameters"] for row in FOUND["rows"] if (row["name"], row["task"]) == (name, task)
        }
        assert counts == {parameter_count(model)}


def test_the_page_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = "\n".join(markdown(FOUND))
    assert lines in (ROOT / "docs/mixers.md").read_text(encoding="utf-8")
    main(["--table"])
    assert capsys.readouterr().out.strip() == lines


def test_what_is_there_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, str, int]] = []

    def learn(name: str, task: str, seed: int, steps: int) -> list[dict[str, Any]]:
        trained.append((name, task, seed))
        row = {"size": 16, "accuracy": 1.0, "standard_error": 0.0, "parameters": 1, "chance": 0.5}
        return [{"name": name, "task": task, "seed": seed, **row}]

    monkeypatch.setattr(abilities, "RESULTS", tmp_path / "abilities.json")
    monkeypatch.setattr(abilities, "_trained", learn)
    abilities.train_missing(5, 1)
    assert len(trained) == len(set(trained)) == len(CONTENDERS) * len(abilities.SHOWN)
    abilities.train_missing(5, 2)  # another seed alone
    assert len(trained) == len(set(trained)) == 2 * len(CONTENDERS) * len(abilities.SHOWN)
    abilities.train_missing(6, 1)  # other steps are other results
    assert len(trained) == 3 * len(CONTENDERS) * len(abilities.SHOWN)
