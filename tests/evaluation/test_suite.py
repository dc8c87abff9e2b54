"""The tasks of `ys eval --tasks`: what each asks for, and its results beside the run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.evaluated import TEXTS

from ys_llm.cli import compare, eval
from ys_llm.config.schema import Config, TrainConfig
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.evaluation.by_position import PositionLoss
from ys_llm.evaluation.tasks.bits_by_position import doubling
from ys_llm.evaluation.tasks.passkey import PASSKEY
from ys_llm.evaluation.tasks.suite import TASKS, Request, read_results, run_tasks, save_result
from ys_llm.evaluation.tasks.trained import TASKS as TRAINED
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun


@pytest.fixture
def loaded(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> LoadedRun:
    (tmp_path / "run").mkdir()
    config = Config(model=model.config, train=TrainConfig(seq_len=8))
    return LoadedRun(tmp_path / "run", config, model, tokenizer, step=7, has_records=False)


def test_the_command_line_knows_every_task() -> None:
    assert {name: task.needs_text for name, task in TASKS.items()} == {
        **dict.fromkeys(eval.TEXT_TASKS, True),
        **dict.fromkeys(eval.TASKS, False),
    }
    assert tuple(TRAINED) == compare.TASKS
    assert set(eval.LEARNED) == set(TRAINED) - set(TASKS)
    assert TRAINED["passkey"] is PASSKEY


def test_results_are_kept_beside_the_run(loaded: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "text-01.txt").write_text(" ".join(TEXTS))
    request = Request(loaded, [tmp_path / "text-01.txt"], lengths=[120], samples=2)
    names = ["bits_by_kind", "bits_by_position", "passkey"]
    results = list(run_tasks(names, request))
    kinds, positions, passkeys = results
    assert [row["kind"] for row in kinds.rows] == ["text"]
    assert [(row["first"], row["last"]) for row in positions.rows[:3]] == [
        (0, 7),
        (8, 15),
        (16, 31),
    ]
    assert positions.rows[-1]["last"] <= 64 * 8 - 1
    assert [row["depth"] for row in passkeys.rows] == ["all", "20-40 %", "60-80 %"]
    assert (kinds.step, kinds.texts) == (7, [str(tmp_path / "text-01.txt")])
    assert passkeys.texts == []
    for result in (*results, results[0]):  # the second time in place of the first
        save_result(loaded.path, result)
    (loaded.path / "evaluations/stray.json").write_text("[1")
    found = read_results(loaded.path)
    assert [one["task"] for one in found] == sorted(names)
    assert found[0]["rows"] == json.loads(json.dumps(kinds.rows))


def test_positions_are_joined_to_doublings() -> None:
    losses = [PositionLoss(10 * k, 10 * k + 9, float(k), 10 + k) for k in range(7)]
    rows = doubling(losses, tokens_per_byte=0.5)
    assert [(row.first, row.last, row.tokens) for row in rows] == [
        (0, 9, 10), (10, 19, 11), (20, 39, 25), (40, 69, 45),
    ]  # fmt: skip
    assert rows[2].loss == pytest.approx((2 * 12 + 3 * 13) / 25)
    assert rows[2].bits_per_byte == pytest.approx(rows[2].loss / math.log(2) / 2)
