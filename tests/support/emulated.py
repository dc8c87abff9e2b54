"""The C++ library compiled for 64-bit ARM, each of its functions run by QEMU's emulator.

`EmulatedLibrary` stands in for `loader.Library`: a call copies every array that it can reach to a
process of its own (`emulated.cpp`), runs it there, and copies the results back. Layouts of structs
are the same on both machines (LP64).
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from ys_llm.csrc import loader

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PACKAGES = "Debian: apt install g++-aarch64-linux-gnu qemu-user"
# The oldest 64-bit ARM, and one with SVE, which gcc uses where it vectorises loops by itself.
PROCESSORS = {"oldest": "-mcpu=cortex-a53", "newest": "-mcpu=neoverse-v1"}
_DRIVER = Path(__file__).with_suffix(".cpp")


def missing(*programs: str) -> str:
    """Which of these programs is not installed, and what to do; empty: none."""
    names = [name for name in programs if shutil.which(name) is None]
    return f"{', '.join(names)} not installed ({PACKAGES})" if names else ""


def compile_objects(folder: Path, flags: tuple[str, ...]) -> list[Path]:
    """All sources of the library, compiled for ARM with every warning as an error."""
    sources = sorted(loader.SOURCES.rglob("*.cpp"))
    objects = [folder / f"{number}.o" for number in range(len(sources))]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: _compile(*pair, flags), zip(sources, objects, strict=True)))
    return objects


def _compile(source: Path, made: Path, flags: tuple[str, ...]) -> None:
    strict = ("-Wall", "-Wextra", "-Werror", f"-I{loader.SOURCES}", f"-I{made.parent}")
    command = [COMPILER, *loader.FLAGS, *flags, *strict, "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def build_driver(folder: Path, flags: tuple[str, ...]) -> Path:
    """A program for ARM that calls one function of the library."""
    objects = compile_objects(folder, flags)
    names = re.findall(r"\b(ys_\w+)\(", re.sub(r"//.*", "", _api()))
    lines = (f'{{"{name}", reinterpret_cast<void (*)()>({name})}},' for name in names)
    (folder / "functions.inc").write_text("\n".join(lines), encoding="utf-8")
    _compile(_DRIVER, folder / "driver.o", ("-Wno-cast-function-type",))
    driver = folder / "driver"
    linked = [*map(str, objects), str(folder / "driver.o"), "-o", str(driver)]
    subprocess.run([COMPILER, "-static", "-fopenmp", *linked], check=True)
    return driver


def _api() -> str:
    return (loader.SOURCES / "api.h").read_text(encoding="utf-8")


class EmulatedLibrary:
    """What the package uses of `loader.Library`: `lib`, `ffi` and `pointer`."""

    def __init__(self, driver: Path) -> None:
        self.path, self.real_ffi = driver, loader.declarations(_api())
        self.arrays: dict[int, tuple[int, bool, Any]] = {}  # address: bytes, has pointers, owner
        self.ffi, self.lib = _Ffi(self), _Functions(self)
        self.called: set[str] = set()

    def pointer(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return self.real_ffi.NULL
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self.arrays[storage.data_ptr()] = (storage.nbytes(), False, storage)
        ctype = loader._C_TYPES[tensor.dtype]
        return self.real_ffi.cast(ctype, tensor.data_ptr())

    def call(self, name: str, arguments: tuple[Any, ...]) -> int:
        """The function's result; arrays are as it left them."""
        self.called.add(name)
        reals = [a for a in arguments if isinstance(a, float)]
        integers = [self._integer(a) for a in arguments if not isinstance(a, float)]
        reached = sorted(self._reached(integers))
        parts = [struct.pack("<3q", len(reached), len(integers), len(reals))]
        for address in reached:
            size, has_pointers, _ = self.arrays[address]
            parts += [struct.pack("<3Q", address, size, has_pointers), self._bytes(address)]
        parts += [struct.pack("<q", i) for i in integers] + [struct.pack("<d", r) for r in reals]
        files = [self.path.with_name(kind) for kind in ("input", "output")]
        files[0].write_bytes(b"".join(parts))
        subprocess.run([EMULATOR, str(self.path), name, *map(str, files)], check=True, timeout=300)
        result, at = files[1].read_bytes(), 8
        for address in reached:
            size, has_pointers, _ = self.arrays[address]
            if not has_pointers:
                self._bytes(address)[:] = result[at : at + size]
                at += size
        assert at == len(result)
        return int(struct.unpack_from("<q", result)[0])

    def keep(self, value: Any, has_pointers: bool) -> Any:
        """Remember an array that cffi has allocated."""
        size = self.real_ffi.sizeof(self.real_ffi.typeof(value).item) if has_pointers else 0
        if self.real_ffi.typeof(value).kind == "array":
            size = self.real_ffi.sizeof(value)
        self.arrays[int(self.real_ffi.cast("uintptr_t", value))] = (size, has_pointers, value)
        return value

    def _integer(self, value: Any) -> int:
        if isinstance(value, bytes):
            value = self.keep(self.real_ffi.new("char[]", value), has_pointers=False)
        if isinstance(value, self.real_ffi.CData):
            return int(self.real_ffi.cast("uintptr_t", value))
        return int(value)

    def _bytes(self, address: int) -> Any:
        size = self.arrays[address][0]
        return self.real_ffi.buffer(self.real_ffi.cast("char *", address), size)

    def _reached(self, words: list[int]) -> set[int]:
        """Addresses of the arrays that these words, or words in such arrays, point into."""
        found: set[int] = set()
        while words:
            new = {a for word in words for a in self._array_of(word)} - found
            found |= new
            words = [w for a in new if self.arrays[a][1] for w in self._words(a)]
        return found

    def _array_of(self, word: int) -> Iterator[int]:
        for address, (size, _, _) in self.arrays.items():
            if address <= word < address + max(1, size):
                yield address

    def _words(self, address: int) -> list[int]:
        return [word for (word,) in struct.iter_unpack("<Q", bytes(self._bytes(address)))]


class _Ffi:
    def __init__(self, library: EmulatedLibrary) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library.real_ffi, name)

    def new(self, ctype: str, value: Any = None) -> Any:
        """As cffi's, remembered by the library."""
        made = self._library.real_ffi.new(ctype, value)
        has_pointers = "struct" in ctype or "*[" in ctype.replace(" ", "")
        return self._library.keep(made, has_pointers)


class _Functions:
    def __init__(self, library: EmulatedLibrary) -> None:
        self._library = library
        enums = re.findall(r"^enum \w+", _api(), re.MULTILINE)
        found = [library.real_ffi.typeof(enum).relements for enum in enums]
        self._constants = {name: value for constants in found for name, value in constants.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("YS_"):
            return self._constants[name]
        return lambda *arguments: self._library.call(name, arguments)
