"""The page of a run: what it shows, from a folder made by hand, and that damage costs a section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.html_pages import Page, problems_of

from ys_llm.cli.main import main
from ys_llm.config.sources import load_config, to_yaml
from ys_llm.errors import EXIT_NO_MODEL
from ys_llm.runs.report import report_page, write_report
from ys_llm.runs.report_comparison import comparison_page
from ys_llm.system.lock import RUN_LOCK

STEPS = 1_000
FACTS: dict[str, Any] = {
    "status": "done",
    "ended_badly": False,
    "prompt": "Once <upon> a time",
    "baselines": {"unigram": 4.25, "xz": 1.75},
    "origins": {"train.seed": "--set", "data.path": "configs/mine.yaml:3", "run": "default"},
    "parameters": 12_345,
    "layers": ["gru"],
    "corpus": {
        "path": "my <texts>",
        "leak_check": "no held-out document is in the training text",
        "notes": {"cut": "novel.txt"},
        "training": {"documents": 19, "bytes": 4_000, "tokens": 900},
        "held_out": {"documents": 1, "bytes": 200, "tokens": 45},
        "sources": [
            {"kind": "tale", "records": 7, "model": "llama3.1", "model_digest": "ab", "recipe": "c"}
        ],
    },
    "state": [
        {"layer": "layer 1", "part": "main", "numbers": 16, "tokens": n, "rms": 0.5, "change": c}
        for n, c in ((16, None), (64, 0.25))
    ],
    "by_position": [{"first": 0, "last": 255, "loss": 2.5, "tokens": 9}],
    "sessions": [
        {
            "began": "2030-01-01 10:00:00",
            "from_step": 0,
            "processor": "A processor",
            "cores": 2,
            "threads": 2,
            "device": "cpu",
            "dtype": "fp32",
            "backends": {"gru": "cpp"},
            "versions": {"ys": "9"},
            "seconds": 90.0,
            "joules": 7_200.0,
        }
    ],
    "result": {"bits_per_byte": 0.4321},
}
EXPECTED = (
    *("12,345 parameters", "0.4321", "1.750", "2.00 Wh", "A processor", "Once <upon> a time"),
    *("my <texts>", "llama3.1, digest ab", "layer 1, main", "25%", "configs/mine.yaml:3", "--set"),
    *("a fox <b> & a hen", "no held-out document", "Training is done.", "0 to 255"),
    *("passkey", "0.7500", "<tales>"),
)


def row(step: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "step": step,
        "tokens": step * 64,
        "loss": 5 / step + 0.01 * (step % 7),
        "learning_rate": 0.01,
        "grad_norm": 1.0,
        "step_seconds": 0.01,
        "seconds": step * 0.01,
    }
    if step % 100 == 0:
        found |= {"val_loss": 3.0, "val_bits_per_byte": 0.5, "val_names_again_loss": 1.5}
        found["sample"] = f"At {step}, a fox <b> & a hen."
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = (json.dumps(row(step)) for step in range(1, STEPS + 1))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "report.json").write_text(json.dumps(FACTS))
    (folder / "evaluations").mkdir()
    measured = {"tokens": 100, "accuracy": 0.75, "kind": "<tales>"}
    result = {"task": "passkey", "about": "digits", "step": 5, "rows": [measured]}
    (folder / "evaluations" / "passkey.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(to_yaml(load_config(None).config))
    return folder


def test_the_page_shows_everything_and_needs_nothing_else(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    assert problems_of(html) == []
    text = Page(html).text
    missing = [said for said in EXPECTED if said not in text]
    assert not missing
    assert html.count("<svg") == 7
    assert "post-mortem" not in html
    lines = [part.partition('"')[0].split() for part in html.split(' points="')[1:]]
    assert max(map(len, lines)) < STEPS / 2  # curves are thinned


def test_settings_left_at_their_defaults_are_folded_away(run: Path) -> None:
    before, folded = report_page(run).split("Settings left at their defaults", 1)
    assert "train.seed" in before and "train.seed" not in folded.partition("</details>")[0]


@pytest.mark.parametrize("ended_badly", [True, False])
def test_a_post_mortem_comes_first_where_the_run_failed_and_last_where_it_went_on(
    run: Path, ended_badly: bool
) -> None:
    facts = {**FACTS, "status": "training <diverged> at step 9", "ended_badly": ended_badly}
    (run / "report.json").write_text(json.dumps(facts))
    rollback = {"step": 9, "back_to": 5, "stage": 0, "skipped": 8, "reason": "loss nan"}
    (run / "rollbacks.json").write_text(json.dumps({"rollbacks": [rollback]}))
    (run / "post-mortem").mkdir()
    diagnosis = {"step": 9, "reason": "loss nan", "sentence": "layer 2: not finite", "replay": "x"}
    (run / "post-mortem" / "step-00000009.json").write_text(json.dumps(diagnosis))
    html = report_page(run)
    assert problems_of(html) == []
    assert "Training <diverged> at step 9" in Page(html).text
    assert (html.index('id="post-mortem"') < html.index('id="curves"')) == ended_badly
    assert "layer 2: not finite" in html


@pytest.mark.parametrize(
    "damage",
    [
        {"state": [{"layer": 1}]},
        {"sessions": ["none"], "corpus": [1]},
        {"baselines": {"xz": "two"}, "origins": 5, "by_position": 7},
        {"result": [], "status": None, "layers": "gru", "parameters": "many"},
    ],
)
def test_damaged_facts_cost_their_section_alone(run: Path, damage: dict[str, Any]) -> None:
    (run / "report.json").write_text(json.dumps(FACTS | damage))
    html = report_page(run)
    assert "a fox &lt;b&gt; &amp; a hen" in html
    assert problems_of(html) == []


def test_a_folder_with_nothing_in_it_gives_a_page_too(tmp_path: Path) -> None:
    assert problems_of(report_page(tmp_path)) == []


def test_several_runs_share_their_charts_and_show_what_differs(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config = load_config(None, overrides=["train.seed=7"]).config
    (other / "config.yaml").write_text(to_yaml(config))
    html = comparison_page([run, other])
    assert problems_of(html) == []
    assert "train.seed" in html and "data.path" not in html
    assert html.count("<svg") == 5


def test_the_command_writes_the_page_of_one_run_or_of_several(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / RUN_LOCK).touch()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    out = tmp_path / "both.html"
    assert main(["report", str(run), str(run), "--out", str(out)]) == 0
    assert "mine and mine" in out.read_text(encoding="utf-8")
    assert main(["report", "nothing"]) == EXIT_NO_MODEL
