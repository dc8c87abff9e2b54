"""Faults at a chosen file operation: a kill, a signal, a full disk, a power cut.

`watching` replaces the functions of `os` that change files and reports each call below a folder
before it is made. `DurableDisk` keeps only what POSIX guarantees: what was never fsynced is lost,
and so are a new name, a rename and a removal until their folder is fsynced.
"""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal[
    *("count", "kill", "power cut", "unlucky power cut", "ENOSPC", "EIO", "EROFS"),
    *("SIGINT", "SIGTERM", "SIGINT twice", "SIGTERM twice"),
]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_REMOVES = ("unlink", "remove", "rmdir")
_RENAMES = ("replace", "rename")
_NAMES = ("open", "write", "fsync", "mkdir", *_RENAMES, *_REMOVES)
_REAL = {name: getattr(os, name) for name in _NAMES}
REFUSED = {  # by a disk in this state; removals free space
    "ENOSPC": {"open", "write", "fsync", "mkdir"},
    "EIO": {"open", "write", "fsync", "mkdir"},
    "EROFS": set(_NAMES),
}


@dataclass(frozen=True)
class Call:
    """A call that changes files. `target` is the new name in a renaming."""

    name: str
    path: str
    target: str = ""
    descriptor: int = -1
    data: bytes = b""


Listener = Callable[[Call], Callable[[], None] | None]


@contextmanager
def watching(folder: Path, *listeners: Listener) -> Iterator[None]:
    """Report each call below `folder` to each listener; what it returns is called afterwards."""
    _watch(folder, *listeners)
    try:
        yield
    finally:
        for name, real in _REAL.items():
            setattr(os, name, real)


def _watch(folder: Path, *listeners: Listener) -> None:
    for name in _NAMES:
        setattr(os, name, _watched(name, os.path.realpath(folder), listeners))


def _watched(name: str, root: str, listeners: tuple[Listener, ...]) -> Callable[..., Any]:
    real = _REAL[name]

    def function(*given: Any, **named: Any) -> Any:
        call = _call(name, given, named)
        if call is None or not f"{call.path}/".startswith(f"{root}/"):
            return real(*given, **named)
        afterwards = [listener(call) for listener in listeners]
        # No power is really cut: waiting for the disk would take most of the tests' time.
        result = None if name == "fsync" else real(*given, **named)
        for then in filter(None, afterwards):
            then()
        return result

    return function


def _call(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Call | None:
    if name in ("write", "fsync"):
        path = os.readlink(f"/proc/self/fd/{given[0]}").removesuffix(" (deleted)")
        data = bytes(given[1]) if name == "write" else b""
        return Call(name, path, descriptor=given[0], data=data)
    if name == "open" and not (given[1] if len(given) > 1 else named["flags"]) & _WRITES:
        return None
    folder = named.get("dir_fd")
    base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
    names = given[: 2 if name in _RENAMES else 1]
    paths = [os.path.normpath(os.path.join(base, os.fspath(path))) for path in names]
    return Call(name, paths[0], target=paths[-1] if name in _RENAMES else "")


@dataclass
class _Node:
    """What a power cut would leave of one file or folder."""

    is_folder: bool
    content: bytes = b""
    listing: dict[str, _Node] = field(default_factory=dict)


class DurableDisk:
    """Listens to the calls below `root`; `crash` writes what a power cut would leave.

    What exists at the start counts as durable.
    """

    def __init__(self, root: Path) -> None:
        self._nodes: dict[int, _Node] = {}  # by inode, of what has a name now
        self._root_path = root
        self._root = self._durable(str(root))

    def __call__(self, call: Call) -> Callable[[], None] | None:
        """Record what a call makes durable, and that an inode number becomes free."""
        if call.name == "fsync":
            return lambda: self._synced(call.descriptor)
        lost = call.target if call.name in _RENAMES else call.path
        if call.name in (*_RENAMES, *_REMOVES) and os.path.lexists(lost):
            number = os.lstat(lost).st_ino
            return lambda: self._forget(number)
        return None

    def crash(self, into: Path, *, luck: random.Random | None = None) -> None:
        """Write the surviving tree to `into`.

        With `luck` the disk has written some of the rest on its own: each folder and file is as it
        was at its last fsync or as it is now, and what was appended since may be cut in half.
        """
        self._write(self._root, into, now=self._root_path, luck=luck)

    def _durable(self, path: str) -> _Node:
        """The node of a path that is durable as it is, with everything below it."""
        node = self._node(os.lstat(path))
        if node.is_folder:
            inside = os.listdir(path)
            node.listing = {name: self._durable(os.path.join(path, name)) for name in inside}
        else:
            node.content = _read(path)
        return node

    def _node(self, found: os.stat_result) -> _Node:
        is_folder = (found.st_mode & 0o170000) == 0o040000
        return self._nodes.setdefault(found.st_ino, _Node(is_folder))

    def _synced(self, descriptor: int) -> None:
        node, path = self._node(os.fstat(descriptor)), f"/proc/self/fd/{descriptor}"
        if node.is_folder:
            node.listing = self._present(os.readlink(path))
        else:
            node.content = _read(path)

    def _present(self, folder: str) -> dict[str, _Node]:
        return {e.name: self._node(e.stat(follow_symlinks=False)) for e in os.scandir(folder)}

    def _forget(self, number: int) -> None:
        self._nodes.pop(number, None)

    def _write(self, node: _Node, into: Path, *, now: Path, luck: random.Random | None) -> None:
        is_there = os.path.lexists(now) and self._nodes.get(os.lstat(now).st_ino) is node
        lucky = luck.choice((0, 1, 2)) if luck and is_there else 0
        if not node.is_folder:
            whole = _read(str(now)) if lucky else node.content
            sure = len(node.content) if whole.startswith(node.content) else 0
            into.write_bytes(whole[: (sure + len(whole)) // 2] if lucky == 1 else whole)
            return
        into.mkdir()
        for name, inner in (self._present(str(now)) if lucky else node.listing).items():
            self._write(inner, into / name, now=now / name, luck=luck)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # not os.open, which is watched
        return file.read()


@dataclass(frozen=True)
class Fault:
    """What happens at operation number `at` (the first is 0) below the folder `below`.

    kill: SIGKILL, a write half done. power cut: the same, and what the disk still holds is written
    to `survivors`; unlucky: with some luck, which is worse. A signal's name: it is sent before the
    operation. An error's name: that operation and all later ones that such a disk refuses fail.
    `journal`, a file, gets a line for each operation. The steps of the optimizer are operations
    too, so that a kill may come where nothing is written.
    """

    below: str
    at: int = -1
    kind: Kind = "count"
    survivors: str = ""
    journal: str = ""


def install(fault: Fault) -> None:
    """Arm the fault in this process, which has been forked for it."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    below = Path(fault.below)
    disk = DurableDisk(below) if "power cut" in fault.kind else None
    strike = _Strike(fault, disk)
    _watch(below, strike, *filter(None, [disk]))
    register_optimizer_step_pre_hook(lambda *_: strike(Call("step", "")))


class _Strike:
    """A listener that counts the calls and triggers the fault at its number."""

    def __init__(self, fault: Fault, disk: DurableDisk | None) -> None:
        self._fault, self._disk, self._count = fault, disk, 0
        self._journal = open(fault.journal, "a") if fault.journal else None  # noqa: SIM115

    def __call__(self, call: Call) -> None:
        fault, number = self._fault, self._count
        self._count += 1
        if self._journal:
            print(call.name, call.path, call.target, sep="\t", file=self._journal, flush=True)
        if number >= fault.at and call.name in REFUSED.get(fault.kind, ()):
            code = getattr(errno, fault.kind)
            raise OSError(code, os.strerror(code), call.path)
        if number == fault.at and fault.kind.startswith("SIG"):
            name, _, twice = fault.kind.partition(" ")
            for _ in range(2 if twice else 1):
                os.kill(os.getpid(), getattr(signal, name))
        elif number == fault.at and (fault.kind == "kill" or self._disk):
            self._end(call)

    def _end(self, call: Call) -> None:
        if call.name == "write":
            _REAL["write"](call.descriptor, call.data[: len(call.data) // 2])
        if self._disk:
            luck = random.Random(self._fault.at) if "unlucky" in self._fault.kind else None
            self._disk.crash(Path(self._fault.survivors), luck=luck)
        os.kill(os.getpid(), signal.SIGKILL)
