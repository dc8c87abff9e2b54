"""`ys run` and `ys eval` compile the kernels where they are missing, and say what they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.training_runs import TrainRun

from ys_llm.cli.main import main
from ys_llm.csrc import loader
from ys_llm.csrc.loader import Library, Unavailable


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
