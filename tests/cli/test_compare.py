"""`ys compare` refuses an unfair comparison before it trains; each row can be reproduced."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ys_llm.cli.main import main
from ys_llm.config.schema import Config
from ys_llm.config.sources import Resolved, to_yaml
from ys_llm.errors import EXIT_DIVERGED, EXIT_INTERRUPTED, EXIT_TERMINATED, UserError
from ys_llm.evaluation import ledger
from ys_llm.training import loop, step_times, trials
from ys_llm.training.trainer import Run

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
        train=replace(SMALL.train, seed=7, eval_tokens=10),
    )
    code, err = compare([SMALL, other])
    assert code == 2
    assert "train.seed is 1337 in default, 7 in other" in err
    assert "train.eval_tokens is 200000 in default, 10 in other" in err
    assert "--allow-different train.eval_tokens --allow-different train.seed" in err
    assert not Path("runs").exists()


def test_unequal_sizes_are_refused_unless_allowed(compare: Compare) -> None:
    wider = replace(SMALL, run="wider", model=replace(SMALL.model, d_mlp=512))
    code, err = compare([SMALL, wider], *NO_DATA)
    assert code == 2
    assert "parameters: more than 2% apart" in err
    assert "model.d_mlp: 64 in wider would make it as large as default" in err
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


@pytest.fixture
def short(tmp_path: Path) -> Config:
    """Two steps of a small model on forty small texts."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        text = f"The fox met crow number {number}, and they shared {number + 1} plums.\n"
        (texts / f"{number}.txt").write_text(text, encoding="utf-8")
    train = replace(
        SMALL.train, max_steps=2, seq_len=16, batch_size=2, threads=1, device="cpu", dtype="fp32"
    )
    return replace(
        SMALL,
        run="one",
        data=replace(SMALL.data, path=str(texts), validation_fraction=0.3),
        tokenizer=replace(SMALL.tokenizer, kind="bytes"),
        model=replace(SMALL.model, d_model=16, d_mlp=16),
        train=train,
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are trained, in order."""
    names: list[str] = []
    real = trials.train

    def counting(resolved: Resolved, **more: Any) -> Any:
        names.append(resolved.config.run)
        return real(resolved, **more)

    monkeypatch.setattr(trials, "train", counting)
    return names


def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/compare.json").read_text(encoding="utf-8"))
    return found


def test_the_same_configuration_twice_is_the_same_and_not_better(
    compare: Compare, short: Config
) -> None:
    code, err = compare([short, replace(short, run="other")], "--set", "train.warmup_steps=1")
    assert code == 0, err
    first, second = figures()["runs"]
    assert (first["run"], second["run"]) == ("one", "other")
    same = ("steps", "tokens", "bits_per_byte", "names_again", "seed", "hardware", "commit")
    assert [first[name] for name in same] == [second[name] for name in same]
    assert first["tokens"] == 2 * 2 * 16
    assert second["command"] == "ys train --config 1.yaml --set train.warmup_steps=1"
    (verdict,) = figures()["verdicts"]
    assert "nothing was shown" in Path("runs/compare.html").read_text(encoding="utf-8").lower()
    (line,) = ledger.read(Path("runs/experiments.jsonl"))
    assert (line["verdicts"], line["kept"]) == (figures()["verdicts"], None)
    assert verdict["verdict"] == "not shown"
    assert (verdict["difference"], verdict["p_over_documents"]) == (0, 1)
    assert verdict["p_over_seeds"] is None  # there is one seed


def test_what_was_kept_is_noted_when_the_comparison_is_typed_again(
    compare: Compare, short: Config
) -> None:
    configs = [short, replace(short, run="other", train=replace(short.train, learning_rate=0.01))]
    assert compare(configs)[0] == 0
    with pytest.raises(SystemExit):
        compare(configs, "--keep", "third")
    assert compare(configs, "--keep", "other")[0] == 0
    (line,) = ledger.read(Path("runs/experiments.jsonl"))
    assert line["kept"] == "other"
    assert [one["settings"] for one in line["configurations"]] == [
        {"train.learning_rate": 0.003},
        {"train.learning_rate": 0.01},
    ]


def reproducible(row: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when it was measured."""
    measured = ("generated_per_second", "peak_memory")
    return {name: value for name, value in row.items() if name not in measured}


def test_seeds_take_turns_and_nothing_is_trained_twice(
    compare: Compare, short: Config, trained: list[str]
) -> None:
    configs = [short, replace(short, run="other", model=replace(short.model, layers=("min_gru",)))]
    words = ("--seeds", "2", "--allow-different", "parameters", "--json")
    assert compare(configs, *words)[0] == 0
    runs = ["one", "other", "one-s1338", "other-s1338"]
    assert trained == runs
    before = figures()
    assert [row["run"] for row in before["runs"]] == [runs[0], runs[2], runs[1], runs[3]]
    assert before["seeds"] == [1337, 1338]
    assert before["runs"][1]["command"] == (
        "ys train --config 0.yaml --run one-s1338 --set train.seed=1338"
    )
    spread = before["configurations"][0]["bits_per_byte"]
    scores = [row["bits_per_byte"] for row in before["runs"][:2]]
    assert spread["mean"] == pytest.approx(sum(scores) / 2)
    assert spread["deviation"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert all(row["generated_per_second"] > 0 for row in before["runs"])
    assert all(row["peak_memory"] is None or row["peak_memory"] >= 0 for row in before["runs"])
    assert all(one["flops_per_token"] > 0 for one in before["configurations"])
    (verdict,) = before["verdicts"]
    means = [one["bits_per_byte"]["mean"] for one in before["configurations"]]
    assert verdict["difference"] == pytest.approx(means[1] - means[0])
    assert verdict["p_over_seeds"] is not None
    # Again, with one result lost: that run is measured again, and no step is made.
    Path("runs/other/held_out.json").write_text("{", encoding="utf-8")
    steps = [(run, Path("runs", run, "metrics.jsonl").read_bytes()) for run in runs]
    assert compare(configs, *words)[0] == 0
    assert trained == [*runs, "other"]
    assert [(run, Path("runs", run, "metrics.jsonl").read_bytes()) for run in runs] == steps
    assert [reproducible(row) for row in figures()["runs"]] == [
        reproducible(row) for row in before["runs"]
    ]
    assert figures()["verdicts"] == before["verdicts"]


def test_the_text_is_prepared_once(compare: Compare, short: Config, trained: list[str]) -> None:
    _, said = compare([short, replace(short, run="other")], "--seeds", "2")
    assert len(trained) == 4
    assert said.count("tokenizer    training") == 1
    assert {Path("runs", run, "tokenizer.json").read_bytes() for run in trained} == {
        Path("runs/one/tokenizer.json").read_bytes()
    }
    assert len({row["bits_per_byte"] for row in figures()["runs"][:2]}) == 2  # two seeds


def test_tuning_finds_a_rate_for_each_and_its_run_is_the_first_seed(
    compare: Compare, short: Config, trained: list[str]
) -> None:
    configs = [short, replace(short, run="other", train=replace(short.train, learning_rate=1e-9))]
    assert compare(configs, "--tune")[0] == 0
    assert trained[:3] == ["one-lr0.0015", "one", "one-lr0.006"]
    assert {"other", "other-lr5e-10", "other-lr2e-09"} <= set(trained)
    assert len(trained) == len(set(trained))
    for row, said in zip(figures()["configurations"], figures()["conclusion"][-2:], strict=True):
        assert said.startswith(f"{row['run']}: learning rate {row['learning_rate']:g}, the best of")
        tried = [one for one in figures()["rates"] if one["run"] == row["run"]]
        assert len(tried) >= 3
        (chosen,) = (one for one in tried if one["chosen"])
        assert chosen["learning_rate"] == row["learning_rate"]
        assert chosen["bits_per_byte"] == min(one["bits_per_byte"] for one in tried)
    tuned = [row["run"] for row in figures()["runs"]]
    assert set(tuned) <= set(trained)


def test_a_comparison_that_is_stopped_says_how_to_go_on(
    compare: Compare, short: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise UserError("stopped by SIGINT at step 3, saved", "x", exit_code=EXIT_INTERRUPTED)

    monkeypatch.setattr(trials, "train", stopped)
    code, err = compare([short, replace(short, run="other")], "--seeds", "2")
    assert code == EXIT_INTERRUPTED
    assert "one stopped by SIGINT at step 3" in err
    assert "type: ys compare 0.yaml 1.yaml --seeds 2" in err


def test_a_stop_in_the_last_step_of_a_run_stops_the_comparison(
    compare: Compare, short: Config, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._evaluate

    def stopped(*arguments: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    configs = [short, replace(short, run="other")]
    monkeypatch.setattr(loop, "_evaluate", stopped)
    code, err = compare(configs, "--set", "train.eval_interval=2")
    assert code == EXIT_TERMINATED and trained == ["one"]
    assert "one was stopped when it was trained" in err and "type: ys compare 0.yaml" in err
    monkeypatch.setattr(loop, "_evaluate", real)
    assert compare(configs, "--set", "train.eval_interval=2")[0] == 0
    assert [row["steps"] for row in figures()["runs"]] == [2, 2]


def test_a_configuration_that_diverges_is_left_out(
    compare: Compare, short: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trials.train

    def diverging(resolved: Resolved, **more: Any) -> Any:
        if resolved.config.run.startswith("wild"):
            raise UserError("the loss is not finite", exit_code=EXIT_DIVERGED)
        return real(resolved, **more)

    monkeypatch.setattr(trials, "train", diverging)
    configs = [replace(short, run=run) for run in ("wild", "one", "other")]
    assert compare(configs)[0] == 0
    assert [one["run"] for one in figures()["configurations"]] == ["one", "other"]
    assert figures()["conclusion"][-1] == "wild is left out: the loss is not finite."
    assert compare(configs[:2])[0] == EXIT_DIVERGED  # nothing is left to compare with


def test_a_run_of_other_settings_is_neither_used_nor_overwritten(
    compare: Compare, short: Config
) -> None:
    configs = [short, replace(short, run="other")]
    assert compare(configs)[0] == 0
    code, err = compare(configs, "--set", "train.max_steps=3")
    assert code == 2
    assert "train.max_steps is 2 in runs/one, 3 in the comparison" in err
    assert "--clean" in err
    assert compare(configs, "--set", "train.max_steps=3", "--clean")[0] == 0
    assert [row["steps"] for row in figures()["runs"]] == [3, 3]


def test_a_task_compares_models_without_any_text(compare: Compare) -> None:
    one = replace(SMALL, train=replace(SMALL.train, threads=1))
    words = (*NO_DATA, "--task", "mqar", "--steps", "2")
    code, err = compare([one, replace(one, run="other")], *words)
    assert code == 0, err
    rows = json.loads(Path("runs/compare.json").read_text(encoding="utf-8"))
    assert [(row["run"], row["size"]) for row in rows] == [
        (run, size) for run in ("default", "other") for size in (2, 4, 8, 16, 32)
    ]
    assert all(row["trained"] for row in rows)
    # The same configuration twice is the same training.
    assert [row["accuracy"] for row in rows[:5]] == [row["accuracy"] for row in rows[5:]]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str | None]]:
    """Batch size, threads and dtype of every turn that is timed; a step takes 10 ms a row."""
    found: list[tuple[int, int, str | None]] = []

    def step_seconds(run: Run, stage: int, burst_seconds: float) -> float:
        size = run.config.train.plan[stage].batch_size
        found.append((size, torch.get_num_threads(), run.compute.dtype))
        return 0.01 * size * (1 + 0.05 * (len(found) // 4))  # rounds become slower

    monkeypatch.setattr(step_times, "step_seconds", step_seconds)
    return found


def test_seconds_are_the_steps_that_were_timed_to_fit_into_them(
    compare: Compare,
    short: Config,
    trained: list[str],
    turns: list[tuple[int, int, str | None]],
) -> None:
    fast = replace(short, run="fast", train=replace(short.train, batch_size=1))
    words = ("--allow-different", "train.batch_size", "--budget", "seconds=0.06")
    code, err = compare([short, fast], *words)
    assert code == 0, err
    # By turns, as each one trains; the fastest round counts.
    assert turns == [(2, 1, "fp32"), (1, 1, "fp32")] * step_times.ROUNDS
    found = figures()
    assert [row["steps"] for row in found["runs"]] == [3, 6]
    assert "the steps that fit in 0.06 s of training" in "\n".join(found["conclusion"])
    (note,) = (line for line in found["conclusion"] if "A step takes" in line)
    assert "0.02 s in one, 0.01 s in fast" in note and "within 5%" in note
    kept = json.loads(Path("runs/step_times.json").read_text(encoding="utf-8"))
    assert {one["run"]: one["seconds"] for one in kept.values()} == {"one": [0.02], "fast": [0.01]}
    assert all(one["hardware"] and one["threads"] == 1 for one in kept.values())
    # Again, with another seed: nothing is timed or trained twice.
    assert compare([short, fast], *words, "--seeds", "2")[0] == 0
    assert len(turns) == 2 * step_times.ROUNDS
    assert len(trained) == len(set(trained)) == 4
    # One more is timed beside those of before, which then take longer: its steps are as many.
    turns += turns
    third = replace(fast, run="third", train=replace(fast.train, eval_tokens=1000))
    assert compare([short, fast, third], *words, "--allow-different", "train.eval_tokens")[0] == 0
    assert [row["steps"] for row in figures()["runs"]] == [3, 6, 6]
    assert not list(Path("runs").glob(".timing-*"))


def test_a_damaged_file_of_step_times_is_written_anew(
    compare: Compare, short: Config, turns: list[tuple[int, int, str | None]]
) -> None:
    Path("runs").mkdir()
    Path("runs/step_times.json").write_text("{", encoding="utf-8")
    configs = [short, replace(short, run="other", model=replace(short.model, d_mlp=17))]
    assert compare(configs, "--budget", "seconds=0.05")[0] == 0
    assert len(json.loads(Path("runs/step_times.json").read_text(encoding="utf-8"))) == 2
    code, err = compare(configs, "--budget", "seconds=0.001")
    assert code == 2
    assert "before one has done 1 step of 0.02 seconds" in err
