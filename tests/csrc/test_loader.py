"""Kernels are compiled once, kept for this processor, and never taken from another user."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ys_llm.csrc import loader

needs_compiler = pytest.mark.skipif(
    loader.compiler() is None, reason="there is no C++ compiler that compiles for this machine"
)
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home and one small kernel, `small`."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "small.cpp").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(loader, "SOURCES", tmp_path / "kernels")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    forget()
    yield tmp_path / "home" / ".cache" / "ys" / "kernels"
    forget()


def forget() -> None:
    for remembers in (loader._library, loader._opened, loader.compiler):
        remembers.cache_clear()


@needs_compiler
def test_a_kernel_is_compiled_when_asked_for_and_kept(kept: Path) -> None:
    assert loader.names() == ["small"]
    assert loader.ready("small") is None
    library = loader.build("small")
    assert library is not None and library.answer() == 42
    assert loader.ready("small") is library
    assert [path.suffix for path in kept.iterdir()] == [".so"]


@needs_compiler
def test_another_source_is_another_kernel(kept: Path) -> None:
    loader.build("small")
    (loader.SOURCES / "small.cpp").write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    forget()
    library = loader.build("small")
    assert library is not None and library.answer() == 43
    assert len(list(kept.iterdir())) == 2


@needs_compiler
def test_what_does_not_compile_is_told_in_the_words_of_the_compiler(kept: Path) -> None:
    (loader.SOURCES / "small.cpp").write_text("int answer() { return missing; }", "utf-8")
    assert loader.build("small") is None
    assert "missing" in loader.unavailable_reason("small")
    assert not any(path.suffix == ".so" for path in kept.iterdir())


@needs_compiler
def test_a_damaged_library_is_not_taken(kept: Path) -> None:
    kept.mkdir(parents=True, mode=0o700)
    path = loader._library("small", ())
    assert path is not None
    path.write_bytes(b"no library")
    path.chmod(0o700)
    assert loader.ready("small") is None
    assert "cannot be loaded" in loader.unavailable_reason("small")


@needs_compiler
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_library_that_others_may_write_is_not_run(kept: Path, what: str) -> None:
    loader.build("small")
    (kept if what == "folder" else next(kept.iterdir())).chmod(0o777)
    forget()
    assert loader.ready("small") is None
    assert "written by others" in loader.unavailable_reason("small")


def test_without_a_compiler_there_is_none_and_the_reason_is_said(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert loader.build("small") is None
    assert "no C++ compiler" in loader.unavailable_reason("small")
    assert loader.compiler_version() == ""


@needs_compiler
def test_a_kept_kernel_outlives_its_compiler(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.build("small")
    forget()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    library = loader.ready("small")
    assert library is not None and library.answer() == 42
