"""A folder has one owner at a time, and a file system without locks stops nobody."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ys_llm.errors import UserError
from ys_llm.system import lock
from ys_llm.system.lock import hold_lock

HOLD = """
import sys, pathlib
from ys_llm.system.lock import hold_lock
with hold_lock(pathlib.Path(sys.argv[1]), file=sys.argv[2], activity="in use", fix="Wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def take(folder: Path, file: str) -> None:
    with hold_lock(folder, file=file, activity="in use", fix="Wait"):
        pass


@pytest.mark.parametrize("file", ["", ".lock"])
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "deep" / "folder"
    command = [sys.executable, "-c", HOLD, str(folder), file]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError) as caught:
            take(folder, file)
        owner = f"process {other.pid} on " if file else "another process. Wait"
        assert str(caught.value).startswith(f"{folder} is in use by {owner}")
        other.kill()
        other.wait()
    take(folder, file)
    assert os.listdir(folder) == ([file] if file else [])


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_named_and_the_work_goes_on(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock, "lock_descriptor", refuse)
    take(tmp_path, ".lock")
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path} is on a file system without locks ({os.strerror(code)}): ")
    assert said.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/folder/.lock cannot be written"):
        take(tmp_path / "file" / "folder", ".lock")
