"""`ys compare` refuses an unfair comparison before it trains; each row can be reproduced."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ys_llm.cli.main import main
from ys_llm.config.schema import Config
from ys_llm.config.sources import to_yaml

SMALL = replace(
    Config(),
    model=replace(Config().model, d_model=32, n_layers=1, d_mlp=64, layers=("softmax_attention",)),
)
NO_DATA = ("--set", "data.path=nowhere")  # a fair comparison gets as far as this
Compare = Callable[..., tuple[int, str]]


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Compare:
    """Run `ys compare` on some configurations; gives the exit code and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(configs: Sequence[Config], *words: str) -> tuple[int, str]:
        paths = [f"{number}.yaml" for number in range(len(configs))]
        for path, config in zip(paths, configs, strict=True):
            Path(path).write_text(to_yaml(config), encoding="utf-8")
        return main(["compare", *paths, *words]), capsys.readouterr().err

    return run


def test_every_difference_that_makes_it_unfair_is_named(compare: Compare) -> None:
    other = replace(
        SMALL,
        run="other",
        data=replace(SMALL.data, validation_fraction=0.2),
        train=replace(SMALL.train, seed=7, eval_tokens=10),
    )
    code, err = compare([SMALL, other])
    assert code == 2
    assert "split: data.validation_fraction is 0.05 in default, 0.2 in other" in err
    assert "seed: train.seed is 1337 in default, 7 in other" in err
    assert "evaluation: train.eval_tokens is 200000 in default, 10 in other" in err
    assert "--allow-different split --allow-different evaluation" in err
    assert not Path("runs").exists()


def test_unequal_sizes_are_refused_unless_allowed(compare: Compare) -> None:
    wider = replace(SMALL, run="wider", model=replace(SMALL.model, d_mlp=512))
    code, err = compare([SMALL, wider], *NO_DATA)
    assert code == 2
    assert "parameters: more than 2% apart" in err
    _, err = compare([SMALL, wider], *NO_DATA, "--allow-different", "parameters")
    assert "nowhere" in err


def test_a_difference_within_two_percent_is_fair(compare: Compare) -> None:
    wider = replace(SMALL, run="wider", model=replace(SMALL.model, d_mlp=65))
    assert "nowhere" in compare([SMALL, wider], *NO_DATA)[1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_comparison_needs_two_runs_with_names_of_their_own(compare: Compare, count: int) -> None:
    code, err = compare([SMALL] * count)
    assert code == 2
    assert "Give two or more files" in err


def test_settings_reach_every_run(compare: Compare) -> None:
    other = replace(SMALL, run="other", train=replace(SMALL.train, seed=7))
    assert compare([SMALL, other], *NO_DATA)[0] == 2
    assert "nowhere" in compare([SMALL, other], *NO_DATA, "--set", "train.seed=3")[1]


def test_the_table_says_how_each_row_was_made(compare: Compare, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        text = f"The fox met crow number {number}, and they shared {number + 1} plums.\n"
        (texts / f"{number}.txt").write_text(text, encoding="utf-8")
    short = replace(
        SMALL,
        data=replace(SMALL.data, path=str(texts), validation_fraction=0.3),
        tokenizer=replace(SMALL.tokenizer, kind="bytes"),
        train=replace(
            SMALL.train,
            max_steps=2,
            seq_len=16,
            batch_size=2,
            threads=1,
            device="cpu",
            dtype="fp32",
        ),
    )
    code, err = compare([short, replace(short, run="other")], "--set", "train.warmup_steps=1")
    assert code == 0, err
    first, second = json.loads(Path("runs/compare.json").read_text(encoding="utf-8"))
    assert (first["run"], second["run"]) == ("default", "other")
    # The same configuration twice is the same training.
    same = ("layers", "parameters", "tokens", "loss", "bits_per_byte", "seed", "hardware", "commit")
    assert [first[name] for name in same] == [second[name] for name in same]
    assert first["layers"] == "1 softmax_attention"
    assert first["tokens"] == 2 * 2 * 16
    assert second["command"] == "ys train --config 1.yaml --set train.warmup_steps=1"


def test_a_task_compares_models_without_any_text(compare: Compare) -> None:
    one = replace(SMALL, train=replace(SMALL.train, threads=1))
    words = (*NO_DATA, "--task", "recall", "--steps", "2")
    code, err = compare([one, replace(one, run="other")], *words)
    assert code == 0, err
    rows = json.loads(Path("runs/compare.json").read_text(encoding="utf-8"))
    assert [(row["run"], row["size"]) for row in rows] == [
        (run, size) for run in ("default", "other") for size in (2, 4, 8, 16, 32)
    ]
    # The same configuration twice is the same training.
    assert [row["accuracy"] for row in rows[:5]] == [row["accuracy"] for row in rows[5:]]
