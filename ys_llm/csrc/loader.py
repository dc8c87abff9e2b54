"""The C++ library: compiled once per machine, kept in the user's cache, loaded through cffi.

All of `csrc/**/*.cpp` becomes one shared library in `<cache>/kernels`, named after the hash of
everything it depends on: sources, flags, compiler and processor. It knows nothing of torch or
Python; `api.h` is its whole interface, and a library whose structs are laid out differently from
what Python assumes is refused. OpenMP is torch's, loaded before it, so that both share threads.

`build` compiles what is missing; `load` never compiles. Where they return None, `unavailable`
gives the reason and what to do. `_load` is the only cache of this module; its key is the folders
and the flags.
"""

import ctypes
import errno
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch  # before any library is loaded: it brings OpenMP
from cffi import FFI
from torch import Tensor

from ys_llm.config.cache import CACHE_VARIABLE, cache_dir
from ys_llm.errors import command_line
from ys_llm.system import machine
from ys_llm.system.lock import wait_for_lock

SOURCES = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
# What the compiler may use of the processor under YS_CPU_LEVEL.
_LEVELS = {"avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}
_COMPILE_SECONDS = 300  # per source; 8 s is usual
_INSTALL = "Install a C++ compiler (Debian: apt install g++)"
_FREE_SPACE = "Free some disk space"
_OTHER_CACHE = f'type: export {CACHE_VARIABLE}="$PWD/.ys-cache"'
_C_TYPES = {
    torch.bfloat16: "uint16_t *",
    torch.float32: "float *",
    torch.float64: "double *",
    torch.int64: "int64_t *",
    torch.int32: "int32_t *",
    torch.int8: "int8_t *",
    torch.uint8: "uint8_t *",
}


class Unavailable(NamedTuple):
    """Why there is no library, and what to do about it; an empty `fix`: nothing can be done."""

    problem: str
    fix: str

    def __str__(self) -> str:
        """Read `problem. fix`, in one line."""
        return f"{self.problem}. {self.fix}" if self.fix else self.problem


class _UnsafeError(OSError):
    """A library that another user may have written."""


class Compiler(NamedTuple):
    """A C++ compiler: where it is, and the first line of its --version."""

    path: str
    version: str


@dataclass(frozen=True)
class Library:
    """The loaded library: `lib` has the functions of `api.h`, `ffi` its types."""

    ffi: Any
    lib: Any
    path: Path
    _pointer_types: dict[torch.dtype, Any]

    def pointer(self, tensor: Tensor | None) -> Any:
        """A typed pointer to the tensor's first number; null for None.

        cffi checks its type against the prototype. The caller keeps the tensor alive.
        """
        if tensor is None:
            return self.ffi.NULL
        return self.ffi.cast(self._pointer_types[tensor.dtype], tensor.data_ptr())


def load(*, flags: tuple[str, ...] = ()) -> Library | None:
    """The library if it is compiled already, else None. Cheap after the first call."""
    found = _load(SOURCES, kernels_folder(), (_march(), *flags))
    return found if isinstance(found, Library) else None


def build_or_explain(
    *, flags: tuple[str, ...] = (), announce: Callable[[str], object] | None = None
) -> Library | Unavailable:
    """The library, compiled first if it is missing, or why there is none.

    `announce` is called with one line before anything is compiled.
    """
    flags = (_march(), *flags)
    found = _load(SOURCES, kernels_folder(), flags)
    if isinstance(found, Library):
        return found
    folder, chosen = kernels_folder(), compiler()
    if _platform_problem() or folder is None or chosen is None or _openmp_problem(chosen):
        return found
    path = _library_path(SOURCES, folder, flags)
    assert isinstance(path, Path)
    problem = None
    if not os.path.exists(path):
        if problem := _cannot_keep(path.parent):
            return problem
        if announce is not None:
            announce("compiling the C++ kernels, once on this machine (about 15 s)")
        problem = _compile_once(path, chosen, flags)
    _load.cache_clear()  # this process or another may have compiled it since
    return problem or _load(SOURCES, folder, flags)


def build(
    *, flags: tuple[str, ...] = (), announce: Callable[[str], object] | None = None
) -> Library | None:
    """The library, compiled first if it is missing; None where it cannot be."""
    found = build_or_explain(flags=flags, announce=announce)
    return found if isinstance(found, Library) else None


def unavailable(*, flags: tuple[str, ...] = ()) -> Unavailable | None:
    """Why `build` returns None, and what to do; None where it returns the library."""
    found = build_or_explain(flags=flags)
    return found if isinstance(found, Unavailable) else None


def unavailable_reason(*, flags: tuple[str, ...] = ()) -> str:
    """The problem of `unavailable` in a few words; empty where there is none."""
    found = unavailable(flags=flags)
    return "" if found is None else found.problem


def _march() -> str:
    """What of the processor the compiler may use; a later -march among the flags wins."""
    if platform.machine() in ("aarch64", "arm64"):
        return "-mcpu=native"  # also what clang before 16 calls it
    return _LEVELS.get(machine.cpu_level(), "-march=native")


def compiler_version() -> str:
    """The first line of the compiler's --version; empty where there is none."""
    found = compiler()
    return "" if found is None else found.version


def kernels_folder() -> Path | None:
    """Where compiled libraries are kept; None where there is no cache folder."""
    folder = cache_dir()
    return None if folder is None else _kernels_in(folder)


@cache  # called with every kernel, and a Path keeps its hash
def _kernels_in(folder: Path) -> Path:
    return folder / "kernels"


def compiler() -> Compiler | None:
    """The first C++ compiler found."""
    for name in COMPILERS:
        if path := shutil.which(name):
            answer = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False
            )
            if answer.returncode == 0:
                return Compiler(path, answer.stdout.splitlines()[0])
    return None


def declarations(source: str) -> FFI:
    """The types and functions of `api.h`, which is all that cffi needs to call the library."""
    ffi = FFI()
    ffi.cdef(source)
    return ffi


def layout(ffi: Any) -> dict[str, tuple[int, int]]:
    """Offset and size of every field, and of every struct, as Python lays them out."""
    places: dict[str, tuple[int, int]] = {}
    for name in ffi.list_types()[1]:
        kind = ffi.typeof(f"struct {name}")
        places[name] = (0, ffi.sizeof(kind))
        for field, described in kind.fields:
            places[f"{name}.{field}"] = (described.offset, ffi.sizeof(described.type))
    return places


def layout_mismatch(ffi: Any, lib: Any) -> str:
    """The first difference between the library's structs and those of `ffi`; empty: none."""
    entries, compiled = lib.ys_layout(), {}
    while entries.name != ffi.NULL:
        compiled[ffi.string(entries.name).decode()] = (entries.offset, entries.size)
        entries += 1
    expected = layout(ffi)
    for name in sorted(expected.keys() | compiled.keys()):
        if expected.get(name) != compiled.get(name):
            return (
                f"{name} is at (offset, size) {compiled.get(name)} in the library "
                f"and at {expected.get(name)} in api.h"
            )
    return ""


@cache
def _load(sources: Path, folder: Path | None, flags: tuple[str, ...]) -> Library | Unavailable:
    if reason := _platform_problem() or (None if folder else _no_folder()):
        return reason
    assert folder is not None
    path = _library_path(sources, folder, flags)
    if isinstance(path, Unavailable):
        return path
    try:
        return _open(path, (sources / "api.h").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Unavailable(
            "the C++ kernels are not compiled yet", f"Type: {command_line('doctor')}"
        )
    except _UnsafeError as error:
        return Unavailable(str(error), _remove(folder))
    except OSError as error:
        if _is_noexec(folder):
            problem = f"{folder} is on a file system that is mounted with noexec"
            return Unavailable(problem, f"To keep them elsewhere, {_OTHER_CACHE}")
        return Unavailable(f"{path} cannot be loaded: {error}", _remove(folder))


def _remove(folder: Path) -> str:
    return f"Type: rm -r {shlex.quote(str(folder))}, or where you may not remove it {_OTHER_CACHE}"


def _is_noexec(folder: Path) -> bool:
    """Whether no library can be loaded from there, whatever is in it."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except OSError:
        return False


def _platform_problem() -> Unavailable | None:
    system = platform.system()
    if system == "Linux":
        return None
    name = "macOS" if system == "Darwin" else system
    return Unavailable(f"the C++ kernels are compiled on Linux only, and this is {name}", "")


def _no_folder() -> Unavailable:
    return Unavailable(
        "there is no home folder to keep compiled kernels in",
        f"To keep them in this folder, {_OTHER_CACHE}",
    )


def _openmp_problem(chosen: Compiler) -> Unavailable | None:
    """clang++ calls LLVM's OpenMP runtime, which most builds of torch do not contain."""
    if "clang" not in chosen.version or hasattr(_process(), "__kmpc_fork_call"):
        return None
    return Unavailable(
        f"the only C++ compiler is {chosen.version}, whose OpenMP runtime (libomp) is not the one "
        "that torch has loaded",
        "Install g++ (Debian: apt install g++)",
    )


def _process() -> Any:
    """The symbols that are loaded into this process."""
    return ctypes.CDLL(None)


def _library_path(sources: Path, folder: Path, flags: tuple[str, ...]) -> Path | Unavailable:
    """Where this library is kept.

    A library outlives its compiler: without one, any that was compiled from these sources for
    this processor is used.
    """
    files = sorted([*sources.rglob("*.cpp"), *sources.rglob("*.h")])
    texts = [(path.relative_to(sources).as_posix(), path.read_text("utf-8")) for path in files]
    processor = machine.inspect_machine()
    inputs = (texts, FLAGS, flags, processor.processor, sorted(processor.features))
    stem = f"ys-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]}"
    if (chosen := compiler()) is not None:
        if problem := _openmp_problem(chosen):
            return problem
        return folder / f"{stem}-{hashlib.sha256(chosen.version.encode()).hexdigest()[:8]}.so"
    if kept := sorted(folder.glob(f"{stem}-*.so")):
        return kept[0]
    return Unavailable(f"there is no C++ compiler ({', '.join(COMPILERS)})", _INSTALL)


def _open(path: Path, api: str) -> Library:
    """The library at `path`; OSError where it is missing, unsafe, broken or of another layout."""
    others = stat.S_IWGRP | stat.S_IWOTH
    if any(
        f.st_uid != os.getuid() or f.st_mode & others for f in (path.stat(), path.parent.stat())
    ):
        raise _UnsafeError(f"{path} may have been written by others")
    ffi = declarations(api)
    lib = ffi.dlopen(str(path))
    try:
        for name in re.findall(r"\b(ys_\w+)\(", re.sub(r"//.*", "", api)):
            getattr(lib, name)
    except AttributeError as error:
        raise OSError(str(error)) from error
    if mismatch := layout_mismatch(ffi, lib):
        raise OSError(mismatch)
    return Library(ffi, lib, path, {dtype: ffi.typeof(c) for dtype, c in _C_TYPES.items()})


def _cannot_keep(folder: Path) -> Unavailable | None:
    """Why nothing can be written to this folder, which is created if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return Unavailable(
            f"compiled kernels cannot be kept in {folder}: {error.strerror}",
            f"Make that folder writable, or {_OTHER_CACHE}",
        )


def _compile_once(path: Path, chosen: Compiler, flags: tuple[str, ...]) -> Unavailable | None:
    """Compile into the cache; processes that want the same library wait for the first of them."""
    try:
        with wait_for_lock(path.parent / "compile.lock", seconds=_COMPILE_SECONDS):
            if not path.exists():
                return _compile(path, chosen, flags)
    except OSError as error:
        no_space = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = _FREE_SPACE if no_space else f"Make {path.parent} writable, or {_OTHER_CACHE}"
        return Unavailable(f"the C++ kernels were not compiled: {error}", fix)
    return None


def _compile(path: Path, chosen: Compiler, flags: tuple[str, ...]) -> Unavailable | None:
    """Compile all sources in parallel, link, and move the library to `path`.

    The compiler's temporary files go there, too: elsewhere it may not write, or lack space.
    Linked without OpenMP, whose functions are found where torch has loaded them.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        sources, library = sorted(SOURCES.rglob("*.cpp")), Path(temporary) / "ys.so"
        objects = [Path(temporary) / f"{number}.o" for number in range(len(sources))]
        commands = [
            [chosen.path, *FLAGS, *flags, f"-I{SOURCES}", "-c", str(source), "-o", str(made)]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(machine.inspect_machine().usable_cores) as pool:
            run = partial(_run, temporary=temporary)
            errors = [error for error in pool.map(run, commands) if error]
        link = [f for f in flags if f.startswith("-fsanitize")]
        command = [chosen.path, "-shared", *link, *map(str, objects), "-o", str(library)]
        if error := errors[0] if errors else _run(command, temporary):
            fix = _FREE_SPACE if os.strerror(errno.ENOSPC) in error else "Update the compiler"
            return Unavailable(f"{Path(chosen.path).name} failed: {error}", fix)
        library.chmod(0o700)
        os.replace(library, path)
    return None


def _run(command: list[str], temporary: str) -> str:
    """Run a compiler; returns its first error, or an empty string."""
    try:
        done = subprocess.run(
            ["env", f"TMPDIR={temporary}", *command],
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
            check=False,
        )
    except subprocess.SubprocessError as error:
        return str(error)
    if not done.returncode:
        return ""
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    return errors[0] if errors else done.stderr[:200]
