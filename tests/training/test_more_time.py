"""What `ys train --minutes` says at its end about more minutes: what was measured, and no more."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.training_runs import ROOT

from ys_llm.cli import main as cli
from ys_llm.config.schema import Config
from ys_llm.config.sizes import size_names
from ys_llm.config.sources import load_config, to_yaml, with_size
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.system.machine import cpu_class
from ys_llm.training import more_time
from ys_llm.training.more_time import line_of, more_time_line, read_table

TABLE = read_table()
RUNS = TABLE["runs"]
CLASSES = {"AMX": "AVX512-BF16", "AVX512-BF16": "AVX512-BF16", "AVX2": "AVX2", "NEON": "AVX2"}


def trained(minutes: float, size: str = "micro", **changes: object) -> Config:
    config = with_size(load_config(ROOT / "configs/quickstart.yaml").config, size)
    return replace(config, run="mine", train=replace(config.train, minutes=minutes, **changes))


def best(of_class: str, minutes: float) -> tuple[str, float]:
    """Size and bits per byte of the best run."""
    rows = [run for run in RUNS if (run["class"], run["minutes"]) == (of_class, minutes)]
    row = min(rows, key=lambda run: run["bits_per_byte"])
    return row["size"], row["bits_per_byte"]


def measured_minutes(of_class: str) -> list[float]:
    return sorted({run["minutes"] for run in RUNS if run["class"] == of_class})


@pytest.mark.parametrize(("here", "of_class"), CLASSES.items())
def test_the_line_gives_the_figures_of_the_table_for_the_class_of_this_machine(
    here: str, of_class: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(more_time, "cpu_class", lambda: here)
    shortest, longer, *_ = measured_minutes(of_class)
    (size, now), (longer_size, later) = best(of_class, shortest), best(of_class, longer)
    line = more_time_line(trained(shortest, longer_size), Path("runs/mine"))
    assert line == (
        f"more time    {longer:g} min of size {longer_size} came to {later:.3f} where "
        f"{shortest:g} min of size {size} came to {now:.3f} (bits per byte of training_data/, "
        f"two cores of an AMD EPYC (Zen 5), {of_class}): "
        f"ys train --run mine --minutes {longer:g}"
    )


def test_less_than_any_measured_run_is_told_of_the_shortest() -> None:
    line = more_time_line(trained(0.1, "small"), Path("runs/mine"))
    assert " where " not in line and line.startswith("more time    1 min of size ")


def test_beyond_the_longest_run_nothing_is_claimed() -> None:
    longest = max(run["minutes"] for run in RUNS)
    line = more_time_line(trained(2 * longest), Path("runs/mine"))
    command = f"ys train --run mine --minutes {4 * longest:g}"
    assert re.fullmatch(
        rf"more time    no run of more than [\d.]+ min was measured; {command}", line
    )


def test_another_size_begins_a_new_run_by_a_command_that_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(more_time, "cpu_class", lambda: "AVX2")
    config, folder = trained(1), tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    line = line_of(folder)
    assert line == more_time_line(config, folder)
    words = shlex.split(line.rpartition("): ")[2])
    size, _ = best("AVX2", 3)
    assert size != "micro" and words[:2] == ["ys", "train"]
    assert words[-2:] == ["--run", f"mine-{size}"]
    asked: list[Config] = []
    monkeypatch.setattr(
        "ys_llm.training.loop.train", lambda resolved, **_: asked.append(resolved.config)
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(words[1:]) == 0
    (begun,) = asked
    assert (begun.run, begun.train.minutes, begun.model.size) == (f"mine-{size}", 3, size)
    assert begun.model.d_model == with_size(Config(), size).model.d_model
    assert begun.tokenizer == config.tokenizer


def test_a_run_that_began_with_other_weights_keeps_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(more_time, "cpu_class", lambda: "AVX2")
    line = more_time_line(trained(1, init_from="another"), Path("runs/mine"))
    assert line.endswith("): ys train --run mine --minutes 3")


def test_the_page_shows_the_runs_of_the_table() -> None:
    assert {run["size"] for run in RUNS} <= set(size_names())
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8").replace("*", "")
    for run in RUNS:
        with torch.device("meta"):
            model = with_size(Config(), run["size"]).model
            count = parameter_count(Model(model, vocab_size=TABLE["vocab_size"]))
        each = run["steps"] * 32 * 256 / count
        kind = {"AVX512-BF16": "bf16 (AVX512-BF16)", "AVX2": "fp32 (held to AVX2)"}[run["class"]]
        start = f"| {kind}, {run['minutes']} minute"
        (row,) = (line for line in text.splitlines() if line.startswith(start))
        bits = run["bits_per_byte"] + 1e-9  # a half is rounded up
        figures = rf"\| {bits:.3f} \(({each:.1f}|{each:.0f})\) \|"
        assert re.search(figures, row), (run, figures)


def test_a_size_with_fewer_layers_than_the_configuration_names_is_not_advised() -> None:
    shortest = measured_minutes(CLASSES[cpu_class()])[0]
    config = load_config(ROOT / "configs/hybrid.yaml").config
    config = replace(config, train=replace(config.train, minutes=shortest / 2))
    line = more_time_line(config, Path("runs/hybrid"))
    assert line.endswith(f": ys train --run hybrid --minutes {shortest:g}")
