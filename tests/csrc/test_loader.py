"""The library is compiled once, kept for this processor, checked, and refused in clear words."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ys_llm.config import cache
from ys_llm.csrc import loader
from ys_llm.csrc.loader import Compiler

needs_compiler = pytest.mark.skipif(
    platform.system() != "Linux" or loader.compiler() is None, reason="there is no C++ compiler"
)
API = """
struct ys_field { const char* name; int64_t offset, size; };
const struct ys_field* ys_layout(void);
int ys_answer(void);
"""
SOURCE = """
#include <cstddef>
#include <cstdint>
extern "C" {
#include "api.h"
const ys_field* ys_layout(void) {
  static const ys_field fields[] = {
      {"ys_field", 0, sizeof(ys_field)},
      {"ys_field.name", offsetof(ys_field, name), 8},
      {"ys_field.offset", offsetof(ys_field, offset), 8},
      {"ys_field.size", offsetof(ys_field, size), 8},
      {nullptr, 0, 0},
  };
  return fields;
}
int ys_answer(void) { return 42; }
}
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and sources that compile in no time."""
    write_sources(tmp_path / "sources", SOURCE)
    monkeypatch.setattr(loader, "SOURCES", tmp_path / "sources")
    monkeypatch.setenv("YS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def write_sources(folder: Path, source: str, api: str = API) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "api.h").write_text(api, encoding="utf-8")
    (folder / "small.cpp").write_text(source, encoding="utf-8")


def use_sources(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str, api: str = API) -> None:
    write_sources(folder, source, api)
    monkeypatch.setattr(loader, "SOURCES", folder)


def write_damaged(kept: Path) -> None:
    """A file in the library's place that cannot be loaded."""
    kept.mkdir(parents=True, mode=0o700)
    path = loader._library_path(loader.SOURCES, kept, (loader._march(),))
    assert isinstance(path, Path)
    path.write_bytes(b"no library")
    path.chmod(0o700)


def answer() -> int:
    library = loader.load()
    assert library is not None
    return int(library.lib.ys_answer())


def libraries(kept: Path) -> list[Path]:
    return sorted(kept.glob("*.so"))


@needs_compiler
def test_it_is_compiled_when_asked_for_and_kept(kept: Path) -> None:
    assert loader.load() is None
    announced: list[str] = []
    library = loader.build(announce=announced.append)
    assert loader.load() is library
    assert answer() == 42
    assert len(libraries(kept)) == 1
    assert len(announced) == 1 and "once" in announced[0]
    assert loader.build(announce=announced.append) is library
    assert len(announced) == 1


@needs_compiler
def test_sources_in_folders_belong_to_it(kept: Path) -> None:
    (loader.SOURCES / "small.cpp").unlink()
    (loader.SOURCES / "part").mkdir()
    (loader.SOURCES / "part" / "small.cpp").write_text(SOURCE, encoding="utf-8")
    loader.build()
    assert answer() == 42


@needs_compiler
def test_another_source_is_another_library(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader.build()
    use_sources(monkeypatch, tmp_path / "others", SOURCE.replace("42", "43"))
    loader.build()
    assert answer() == 43
    assert len(libraries(kept)) == 2


@needs_compiler
def test_what_does_not_compile_is_told_in_the_words_of_the_compiler(
    kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_sources(monkeypatch, tmp_path / "bad", "int answer() { return missing; }")
    assert loader.build() is None
    assert "missing" in loader.unavailable_reason()
    assert not libraries(kept)


@needs_compiler
def test_a_damaged_library_is_not_loaded(kept: Path) -> None:
    write_damaged(kept)
    assert loader.build() is None
    assert "cannot be loaded" in loader.unavailable_reason()


@needs_compiler
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_library_that_others_may_write_is_not_loaded(kept: Path, what: str) -> None:
    loader.build()
    (kept if what == "folder" else libraries(kept)[0]).chmod(0o777)
    loader._load.cache_clear()
    assert loader.load() is None
    assert "written by others" in loader.unavailable_reason()


def test_without_a_compiler_there_is_none_and_the_reason_is_given(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert loader.build() is None
    found = loader.unavailable()
    assert found is not None
    assert "no C++ compiler" in found.problem
    assert "g++" in found.fix
    assert loader.compiler_version() == ""


@needs_compiler
def test_a_kept_library_outlives_its_compiler(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.build()
    loader._load.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert answer() == 42


@pytest.mark.parametrize(
    ("system", "name"), [("Darwin", "macOS"), ("Windows", "Windows"), ("FreeBSD", "FreeBSD")]
)
def test_on_another_platform_the_platform_is_the_reason(
    kept: Path, monkeypatch: pytest.MonkeyPatch, system: str, name: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    assert loader.build() is None
    assert loader.unavailable_reason() == (
        f"the C++ kernels are compiled on Linux only, and this is {name}"
    )
    assert "compiler" not in loader.unavailable_reason()


def test_clang_without_its_openmp_runtime_is_told_what_to_install(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """clang++ calls LLVM's OpenMP, which is not in torch's libgomp."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    clang = Compiler("/usr/bin/clang++", "Debian clang version 14.0.6")
    monkeypatch.setattr(loader, "compiler", lambda: clang)
    monkeypatch.setattr(loader, "_process", object)
    assert loader.build() is None
    found = loader.unavailable()
    assert found is not None
    assert "Debian clang version 14.0.6" in found.problem and "OpenMP" in found.problem
    assert "g++" in found.fix and "clang" not in found.fix


@needs_compiler
def test_clang_with_its_openmp_runtime_compiles(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = loader.compiler()
    assert found is not None
    monkeypatch.setattr(loader, "compiler", lambda: Compiler(found.path, "clang version 14.0.6"))
    monkeypatch.setattr(loader, "_process", lambda: type("Process", (), {"__kmpc_fork_call": 1}))
    assert loader.build() is not None


@needs_compiler
@pytest.mark.parametrize(
    ("api", "what"),
    [
        (API.replace("int64_t offset, size", "int64_t offset, size, more"), "ys_field"),
        (API + "struct ys_more { int a; };", "ys_more"),
        (API + "int ys_missing(void);", "ys_missing"),
    ],
)
def test_a_library_of_another_layout_is_refused(
    kept: Path, monkeypatch: pytest.MonkeyPatch, api: str, what: str
) -> None:
    library = loader.build()
    assert library is not None
    with pytest.raises(OSError, match=what):
        loader._open(library.path, api)


def test_every_struct_and_function_of_the_real_library_is_checked() -> None:
    library = loader.load()
    if library is None:
        pytest.skip(loader.unavailable_reason())
    assert loader.layout_mismatch(library.ffi, library.lib) == ""
    structs = {name for name in loader.layout(library.ffi) if "." not in name}
    assert {"ys_linear", "ys_decode_model", "ys_three_tier_pass"} <= structs


@pytest.mark.parametrize("variable", ["YS_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_folder_may_be_chosen(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["YS_CACHE_DIR", "XDG_CACHE_HOME", "HOME"]
    for name in order[: order.index(variable)]:
        monkeypatch.delenv(name, raising=False)
    for name in order[order.index(variable) :]:
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = {"YS_CACHE_DIR": "", "XDG_CACHE_HOME": "ys", "HOME": ".cache/ys"}[variable]
    assert loader.kernels_folder() == tmp_path / variable / folder / "kernels"


def test_without_a_home_folder_there_is_no_library_and_no_crash(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(loader, "cache_dir", lambda: None)
    assert loader.load() is None
    assert loader.build() is None
    found = loader.unavailable()
    assert found is not None
    assert "no home folder" in found.problem and "YS_CACHE_DIR" in found.fix


def test_a_user_without_home_or_password_entry_has_no_cache_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME", "YS_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(cache, "_cache_dir", cache._cache_dir.__wrapped__)
    assert loader.load() is None and loader.build() is None
    assert "home" in loader.unavailable_reason()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("YS_CACHE_DIR", str(tmp_path / "file"))
    announced: list[str] = []
    assert loader.build(announce=announced.append) is None
    assert not announced, "nothing is compiled"
    found = loader.unavailable()
    assert found is not None
    assert str(tmp_path / "file") in found.problem and "YS_CACHE_DIR" in found.fix


@needs_compiler
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_cache_that_cannot_be_read_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    monkeypatch.setenv("YS_CACHE_DIR", str(tmp_path / "closed" / "cache"))
    assert loader.build() is None
    assert "closed" in loader.unavailable_reason()


@needs_compiler
def test_the_compiler_needs_no_folder_but_the_cache(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/proc")  # nobody may write there
    assert loader.build() is not None, loader.unavailable_reason()
    assert not [path for path in kept.iterdir() if path.is_dir()], "what was temporary is gone"


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        ("as: small.o: No space left on device", "Free some disk space"),
        ("small.cpp:1: error: no such header", "Update the compiler"),
    ],
)
def test_the_advice_fits_what_the_compiler_said(
    kept: Path, monkeypatch: pytest.MonkeyPatch, error: str, advised: str
) -> None:
    monkeypatch.setattr(loader, "compiler", lambda: Compiler("/usr/bin/g++", "g++ 12"))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(loader, "_run", lambda *_, **__: error)
    found = loader.build_or_explain()
    assert str(found) == f"g++ failed: {error}. {advised}"


@needs_compiler
def test_a_mount_without_execution_is_named(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_damaged(kept)
    mounted = SimpleNamespace(f_flag=os.ST_NOEXEC)
    monkeypatch.setattr(os, "statvfs", lambda _: mounted)
    found = loader.unavailable()
    assert found is not None
    assert "mounted with noexec" in found.problem
    assert "export YS_CACHE_DIR=" in found.fix and "rm" not in found.fix


@needs_compiler
def test_what_another_process_has_compiled_meanwhile_is_taken(kept: Path) -> None:
    assert loader.load() is None
    path = loader._library_path(loader.SOURCES, kept, (loader._march(),))
    found = loader.compiler()
    assert isinstance(path, Path) and found is not None
    path.parent.mkdir(parents=True, mode=0o700)
    assert loader._compile_once(path, found, (loader._march(),)) is None
    announced: list[str] = []
    assert loader.build(announce=announced.append) is not None
    assert not announced


@needs_compiler
def test_processes_that_start_together_compile_once(tmp_path: Path, kept: Path) -> None:
    """A compiler that counts its calls: one for the source, one to link."""
    found = loader.compiler()
    assert found is not None
    script = tmp_path / "bin" / "g++"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || echo call >>"{tmp_path}/calls"\n'
        f'exec "{found.path}" "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    code = (
        "import sys, pathlib\nfrom ys_llm.csrc import loader\n"
        "loader.SOURCES = pathlib.Path(sys.argv[1])\nassert loader.build() is not None\n"
    )
    environment = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", code, str(loader.SOURCES)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert (tmp_path / "calls").read_text().split() == ["call", "call"]
    assert len(libraries(kept)) == 1
