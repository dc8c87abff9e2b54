"""Atomic writing, on a real disk."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ys_llm.errors import UserError
from ys_llm.system.files import write_atomically


def test_text_is_written_as_utf8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "text", "naïve 🦊\r\n")
    write_atomically(tmp_path / "bytes", b"\x00\xff\r\n")
    assert (tmp_path / "text").read_bytes() == "naïve 🦊\r\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff\r\n"


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", "x")
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"


def test_an_old_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("a long first version", "second"):
        write_atomically(path, content)
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_with_the_old_file_open_goes_on_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == "old"


def test_a_file_gets_the_permissions_that_open_would_give_it(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_atomically(tmp_path / "ours", "x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_a_failed_write_keeps_the_old_content_and_leaves_no_trace(tmp_path: Path) -> None:
    """The child process may write 4 kB to a file and no more: a disk that fills up on the way."""
    path = tmp_path / "file"
    write_atomically(path, "old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from ys_llm.errors import UserError\n"
        "from ys_llm.system.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_atomically(Path(sys.argv[1]), b'x' * 10_000)\n"
        "except UserError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert child.stdout == (
        f"{path} cannot be written: File too large. "
        "Free some space, or choose a folder that you may write to.\n"
    )
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file.inner cannot be written: "):
        write_atomically(tmp_path / "file" / "inner", "x")
