"""`ys run` and `ys eval` compile the kernels where they are missing, and say what they do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.training_runs import TrainRun

from ys_llm.cli.main import main
from ys_llm.csrc import loader
from ys_llm.csrc.loader import Library, Unavailable
from ys_llm.doctor import doctor


@pytest.fixture
def trained(train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    run = train_run("train.max_steps=2", "generate.max_tokens=3").run
    monkeypatch.chdir(tmp_path)
    return str(run)


def stderr_of_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["run", *arguments, "--prompt", "A text"]) == 0
    return capsys.readouterr().err


def test_what_is_compiled_already_is_not_mentioned(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())
    assert "kernels" not in stderr_of_run(capsys, trained)


def test_missing_kernels_are_compiled_with_a_line_that_says_so(
    trained: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_them(announce: Callable[[str], object]) -> Library | None:
        announce("compiling the C++ kernels, once on this machine (about 15 s)")
        return loader.load()

    monkeypatch.setattr(loader, "build_or_explain", compile_them)
    lines = [line for line in stderr_of_run(capsys, trained).splitlines() if "kernels" in line]
    assert lines == ["ys: compiling the C++ kernels, once on this machine (about 15 s)"]


def test_a_failure_to_compile_is_told_and_torch_takes_over(
    trained: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(announce: Callable[[str], object]) -> Unavailable:
        announce("compiling the C++ kernels")
        return Unavailable("g++ failed: no such header", "Update the compiler")

    monkeypatch.setattr(loader, "build_or_explain", fail)
    monkeypatch.setattr(loader, "load", lambda **_: None)
    stderr = stderr_of_run(capsys, trained)
    assert "ys: torch alone, which is slower: g++ failed: no such header" in stderr


NO_PLACE = {
    "a file in its place": "cannot be kept in",
    "no home folder": "there is no home folder to keep compiled kernels in",
}


@pytest.fixture(params=NO_PLACE)
def problem(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nowhere to keep compiled kernels: what is said of it."""
    if loader.compiler() is None:
        pytest.skip(loader.unavailable_reason())
    if request.param == "no home folder":
        monkeypatch.setattr(loader, "cache_dir", lambda: None)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("YS_CACHE_DIR", str(tmp_path / "file"))
    return NO_PLACE[request.param]


def test_without_a_place_for_kernels_everything_works_and_one_line_says_what_to_type(
    problem: str, train_run: TrainRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run("train.max_steps=2", "train.backend={}", "generate.max_tokens=3").run
    trained = capsys.readouterr().err
    advised = [
        *(line for line in trained.splitlines() if line.startswith("compiler ")),
        *(line for line in stderr_of_run(capsys, str(run)).splitlines() if "slower" in line),
        *(line for line in doctor({}, runs_dir=tmp_path).splitlines() if line[:6] == "advice"),
    ]
    (fix,) = {match for line in advised for match in re.findall(r"type: (export .*)", line)}
    assert [(problem in line, fix in line) for line in advised if "kernels" in line] == [
        (True, True)
    ] * 3
    assert "nstall" not in "".join(advised)
    typed = ["bash", "-c", f'{fix}; echo "$YS_CACHE_DIR"']
    folder = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(folder.strip()).parent == tmp_path


def test_quantised_weights_without_the_decoder_save_memory_and_no_time(
    trained: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load", lambda **_: None)
    monkeypatch.setattr(loader, "build_or_explain", lambda **_: Unavailable("none", ""))
    assert "saves memory, not time" in stderr_of_run(capsys, trained, "--quantize", "int8")


def test_quantised_weights_with_the_decoder_need_no_remark(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())
    assert "saves memory" not in stderr_of_run(capsys, trained, "--quantize", "int8")
