"""C++ kernels, compiled on this machine and kept: for its processor, and without a library to ship.

A kernel is one file of `ys_llm/csrc/`, with its headers. It becomes a shared library in
`~/.cache/ys/kernels`, named after the hash of all that decides what it is: its source, the
compiler and the processor. It knows nothing of torch or Python; its functions take plain
pointers. What it needs of OpenMP is torch's, loaded before it, so that both share their threads.

`build` compiles what is missing; `ready` takes only what is there, so that no command waits for a
compiler unasked. Both give None where it cannot be, and `unavailable_reason` says why.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ys_llm.system import machine

SOURCES = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
_COMPILE_SECONDS = 300


def names() -> list[str]:
    """The kernels there are."""
    return sorted(path.stem for path in SOURCES.glob("*.cpp"))


def folder() -> Path:
    """Where compiled kernels are kept."""
    return Path.home() / ".cache" / "ys" / "kernels"


def build(name: str, *, flags: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The kernel, compiled first if need be; None where it cannot be: see `unavailable_reason`."""
    path = _library(name, flags)
    if path is not None and not path.exists():
        _compile(name, flags)
    return ready(name, flags=flags)


def ready(name: str, *, flags: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The kernel where it is compiled already, else None."""
    path = _library(name, flags)
    try:
        return None if path is None else _opened(path)
    except OSError:
        return None


def unavailable_reason(name: str, *, flags: tuple[str, ...] = ()) -> str:
    """Why `build` gives none, in a few words; empty where it gives one."""
    path = _library(name, flags)
    if path is None:
        return "there is no C++ compiler (" + ", ".join(COMPILERS) + ")"
    if not path.exists():
        return _compile(name, flags)
    try:
        _opened(path)
    except OSError as error:
        return f"it cannot be loaded: {error}"
    return ""


def compiler_version() -> str:
    """The compiler as it calls itself; empty where there is none."""
    found = compiler()
    return "" if found is None else found[1]


@cache
def _opened(path: Path) -> ctypes.CDLL:
    """The library; OSError where it is not there, cannot be loaded, or could be another user's."""
    facts = [path.stat(), path.parent.stat()]
    others = stat.S_IWGRP | stat.S_IWOTH
    if any(fact.st_uid != os.getuid() or fact.st_mode & others for fact in facts):
        raise PermissionError(f"{path} may have been written by others")
    return ctypes.CDLL(str(path))


@cache
def compiler() -> tuple[str, str] | None:
    """The first C++ compiler found, and what it calls itself."""
    if platform.system() != "Linux":  # elsewhere OpenMP is not torch's, or not there
        return None
    for name in COMPILERS:
        if path := shutil.which(name):
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if said.returncode == 0:
                return path, said.stdout.splitlines()[0]
    return None


@cache
def _library(name: str, flags: tuple[str, ...]) -> Path | None:
    """Where this kernel is kept; None where nothing could have made it.

    A library outlives its compiler: without one, any made from this source for this processor is
    taken.
    """
    told = "".join(path.read_text(encoding="utf-8") for path in _sources(name))
    processor = machine.inspect_machine()
    made_of = repr((told, FLAGS, flags, processor.processor, sorted(processor.features)))
    stem = f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if (found := compiler()) is None:
        return next(iter(sorted(folder().glob(f"{stem}-*.so"))), None)
    return folder() / f"{stem}-{hashlib.sha256(found[1].encode()).hexdigest()[:8]}.so"


def _sources(name: str) -> list[Path]:
    return [SOURCES / f"{name}.cpp", *sorted(SOURCES.glob("*.h"))]


def _compile(name: str, flags: tuple[str, ...]) -> str:
    """Compile into the cache; returns what is wrong, or nothing.

    Linked without OpenMP, whose functions are found where torch has loaded them.
    """
    found, path = compiler(), _library(name, flags)
    if found is None or path is None:
        return "there is no C++ compiler"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            made, library = Path(aside) / "kernel.o", Path(aside) / "kernel.so"
            source = str(SOURCES / f"{name}.cpp")
            for command in (
                [found[0], *FLAGS, *flags, "-c", source, "-o", str(made)],
                [found[0], "-shared", str(made), "-o", str(library)],
            ):
                said = subprocess.run(
                    command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
                )
                if said.returncode:
                    errors = [line for line in said.stderr.splitlines() if "error" in line]
                    return f"{found[0]} failed: {(errors or [said.stderr[:200]])[0]}"
            library.chmod(0o700)
            os.replace(library, path)
    except (OSError, subprocess.SubprocessError) as error:
        return f"it cannot be compiled: {error}"
    return ""
