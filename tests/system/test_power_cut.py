"""The harness notices what it is there for: each fsync of `files.py` that is left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.power_cut import Call, DurableDisk, watching

from ys_llm.system.files import (
    Journal,
    move_into,
    remove_folder,
    replace_folder,
    write_atomically,
    write_synced,
)

Tree = dict[str, bytes]


def put(path: Path, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, content.encode())
    os.close(descriptor)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def files_of(root: Path) -> Tree:
    """Every file by its path, hidden ones and what is in hidden folders left out."""
    paths = (path for path in root.rglob("*") if path.is_file())
    names = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in names.items() if "/." not in f"/{name}"}


def test_what_was_not_synced_is_lost(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    (root / "old").write_text("old")
    disk = DurableDisk(root)
    with watching(root, disk):
        put(root / "nameless", "content without a name")
        sync(root / "nameless")
        put(root / "empty", "a name without content")
        sync(root)
        put(root / "whole", "both")
        sync(root / "whole")
        sync(root)
        os.replace(root / "whole", root / "renamed")
        os.unlink(root / "old")
        os.mkdir(root / "folder")
    disk.crash(tmp_path / "after")
    after = files_of(tmp_path / "after")
    assert after == {
        "nameless": b"content without a name",  # the root was synced later, for another
        "empty": b"",
        "whole": b"both",
        "old": b"old",
    }
    assert not (tmp_path / "after" / "folder").exists()


def test_a_file_of_the_same_inode_does_not_inherit_the_content(tmp_path: Path) -> None:
    """File systems give the number of a removed file to the next one."""
    disk = DurableDisk(tmp_path)
    with watching(tmp_path, disk):
        for number in range(20):
            put(tmp_path / f"{number}", "durable")
            sync(tmp_path / f"{number}")
            os.unlink(tmp_path / f"{number}")
        put(tmp_path / "new", "not synced")
        sync(tmp_path)
    after = tmp_path.with_name("after")
    disk.crash(after)
    assert files_of(after) == {"new": b""}


def begin(root: Path) -> None:
    """What is on the disk before the change: a file, a folder of two, a journal."""
    (root / "full").mkdir(parents=True)
    for name in ("file", "full/a", "full/b", "journal"):
        (root / name).write_text(f"old {name}\n")


def new_folder(root: Path) -> None:
    aside = root / ".aside.tmp"
    os.mkdir(aside)
    for name in ("a", "b"):
        write_synced(aside / name, f"new {name}")
    replace_folder(aside, root / "fresh")


def journal(root: Path) -> None:
    opened = Journal(root / "journal")
    opened.write("new line")
    opened.sync()
    opened.close()


CHANGES: dict[str, Callable[[Path], Any]] = {
    "write_atomically": lambda root: write_atomically(root / "file", "new"),
    "write_atomically, a new file": lambda root: write_atomically(root / "new", "new"),
    "write_atomically, new folders": lambda root: write_atomically(root / "x" / "y" / "z", "new"),
    "replace_folder": new_folder,
    "remove_folder": lambda root: remove_folder(root / "full"),
    "move_into": lambda root: move_into(root / "away", root / "full" / "a"),
    "Journal": journal,
}


def survivals(root: Path, change: Callable[[Path], Any], *, without: int = -1) -> list[Tree]:
    """What a power cut leaves before each call of a change, and when it is done.

    `without` is the number of an fsync that is not made.
    """
    begin(root)
    disk, left, syncs = DurableDisk(root), [], iter(range(1000))

    def cut(_: Call | None) -> None:
        into = root.with_name(f"{root.name}-{len(left)}")
        disk.crash(into)
        left.append(files_of(into))

    with watching(root, cut, disk), pytest.MonkeyPatch.context() as patch:
        watched = os.fsync
        patch.setattr(os, "fsync", lambda fd: None if next(syncs) == without else watched(fd))
        change(root)
    cut(None)
    return left


def breaches(root: Path, change: Callable[[Path], Any], *, without: int = -1) -> Iterator[str]:
    """At every moment a power cut leaves the old files or the new ones; at the end the new ones.

    What is moved to another folder may be in both for a moment, never in none.
    """
    left = survivals(root, change, without=without)
    before, after = left[0], files_of(root)
    moving = [before | after] if change is CHANGES["move_into"] else []
    for number, tree in enumerate(left):
        if tree not in (before, after, *moving):
            yield f"before call {number}: {tree}"
    if left[-1] != after:
        yield f"at the end: {left[-1]}"


@pytest.mark.parametrize("name", CHANGES)
def test_a_power_cut_leaves_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    assert not list(breaches(tmp_path / "disk", CHANGES[name]))
    assert files_of(tmp_path / "disk") != survivals(tmp_path / "other", lambda root: None)[-1]


@pytest.mark.parametrize("name", CHANGES)
def test_an_fsync_that_is_left_out_is_noticed(tmp_path: Path, name: str) -> None:
    calls: list[str] = []
    begin(tmp_path / "counted")
    with watching(tmp_path / "counted", lambda call: calls.append(call.name)):
        CHANGES[name](tmp_path / "counted")
    assert calls.count("fsync")
    for number in range(calls.count("fsync")):
        found = list(breaches(tmp_path / f"{number}", CHANGES[name], without=number))
        assert found, f"{name} does without its fsync number {number}"
