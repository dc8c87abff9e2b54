"""One bad input or failure: how it is set up, what is typed, and what the error must contain."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.training_runs import SMALL, SMALL_STATE
from ys_llm.cli.main import main
from ys_llm.errors import EXIT_FAILED
from ys_llm.system.lock import RUN_LOCK

NOBODY = 65534
PATIENCE_SECONDS = 60  # for a command that should refuse at once; a FIFO would block it for ever
NEW = "runs/new"  # the one folder that a refused training may have begun to fill
TRAIN = (
    *("train", "--data", "texts", "--run", "new"),
    *(word for pair in (*SMALL[1:], SMALL_STATE) for word in ("--set", pair)),
)


class StillRunning(BaseException):
    """Beyond every `except` of the program: TimeoutError, say, is an OSError."""


def nothing() -> None:
    """Leave the current folder as it is."""


@dataclass(frozen=True)
class Case:
    """`words` after `make` end with `code`; the error contains each of `says`."""

    note: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    make: Callable[[], Any] = nothing
    code: int = EXIT_FAILED
    problems: int = 1
    may_write: str = NEW


def table(*cases: Case) -> Any:
    """A test for each case, named by its note."""
    assert len({case.note for case in cases}) == len(cases), "two cases have one name"
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.note)


def put(path: str, content: str | bytes = "") -> None:
    """Write a file, and its folder where missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def file(path: str, content: str | bytes = "") -> Callable[[], None]:
    """What a case makes: one file."""
    return lambda: put(path, content)


def check(case: Case, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the case; return the lines that begin with `ys: `."""
    case.make()
    before = everything(except_for=case.may_write)
    capsys.readouterr()
    with no_longer_than(PATIENCE_SECONDS):
        code = exit_code(*case.words)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("ys: ")]
    assert "Traceback" not in error, error
    assert (code, len(lines)) == (case.code, case.problems), error
    assert error.splitlines()[-case.problems :] == lines, error
    for words in case.says:
        assert words in "\n".join(lines)
    assert everything(except_for=case.may_write) == before
    return "\n".join(lines)


def exit_code(*words: str) -> int:
    """The exit code that a shell would see."""
    try:
        return main(words)
    except SystemExit as leaving:
        assert isinstance(leaving.code, int)
        return leaving.code


def everything(*, except_for: str = "") -> Mapping[str, object]:
    """Each path below the current folder with its content; links are not followed."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk("."):
        if except_for and Path(folder) == Path(except_for):
            folders.clear()
            continue
        for name in (*folders, *names):
            path = Path(folder, name)
            if not except_for or path != Path(except_for):
                found[str(path)] = _content(path)
    return found


def _content(path: Path) -> object:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if path.name == RUN_LOCK or not stat.S_ISREG(mode):  # a lock names its last owner
        return stat.S_IFMT(mode)
    return path.read_bytes()


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Raise StillRunning in whatever the body is waiting for."""

    def stop(_number: int, _frame: Any) -> None:
        raise StillRunning(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def without_rights() -> Iterator[None]:
    """Drop the rights of root, if the tests run as root, so that permissions apply."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
