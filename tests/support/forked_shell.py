"""A `ys` for shells that starts in 30 ms: a server that has imported the package forks it.

The first use of each command (`ys train`, `ys eval`, ...) is a process of its own, as a user's is.
Every later one is a child of the server, with the shell's files, folder and environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
START_SECONDS = 60
# A few modules alone: the start of this client is what is saved.
CLIENT = """\
#!{python} -IS
import os, socket, sys
sys.path.insert(0, {folder!r})
try:
    os.mkdir(os.path.join({used!r}, sys.argv[1] if len(sys.argv) > 1 else "none"))
except FileExistsError:
    from forked_shell import ask
    sys.exit(ask({address!r}))
os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""


@contextlib.contextmanager
def forked_ys(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder with the command `ys`, to come first in PATH."""
    address, used = str(folder / "socket"), folder / "used"
    used.mkdir()
    values = {
        **{"python": sys.executable, "folder": str(Path(__file__).parent), "address": address},
        **{"used": str(used), "real": str(Path(sys.executable).with_name("ys"))},
    }
    (folder / "ys").write_text(CLIENT.format(**values), encoding="utf-8")
    (folder / "ys").chmod(0o755)
    paths = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    command = [sys.executable, "-m", "support.forked_shell", address]
    with subprocess.Popen(command, env={**environment, "PYTHONPATH": paths}) as server:
        try:
            ends = time.monotonic() + START_SECONDS
            while not os.path.exists(address):
                assert server.poll() is None and time.monotonic() < ends
                time.sleep(0.01)
            yield folder
        finally:
            server.kill()


def ask(address: str) -> int:
    """The client: the exit code of `ys ARGUMENTS` in a child of the server."""
    job = {"words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"\n"], [0, 1, 2])
        server.sendall(json.dumps(job).encode())
        server.shutdown(socket.SHUT_WR)
        answer = server.recv(1)
    return answer[0] if answer else 1


def _serve(address: str) -> None:
    """Fork a child for each connection. It dies with the server, which is killed at the end."""
    from support.forked import warm_up

    warm_up()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address + ".new")
        server.listen()
        os.rename(address + ".new", address)
        while True:
            client, _ = server.accept()
            with client:
                if not os.fork():
                    _end_with(client)


def _end_with(client: socket.socket) -> None:
    """The child: run the command, tell its exit code, and end without returning."""
    code = 1
    try:
        _, files, _, _ = socket.recv_fds(client, 1, 3)
        job = json.loads(b"".join(iter(lambda: client.recv(1 << 16), b"")))
        _take(files)
        code = _command(job)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        client.sendall(bytes([code % 256]))
        os._exit(code % 256)


def _take(files: list[int]) -> None:
    """The client's files for stdin, stdout and stderr, unbuffered as under PYTHONUNBUFFERED."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", write_through=True)  # type: ignore[arg-type]
        for number in (1, 2)
    )


def _command(job: dict[str, Any]) -> int:
    from support.forked import DIE_WITH_PARENT
    from ys_llm.cli.main import main

    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    random.seed()
    return main(job["words"])


if __name__ == "__main__":
    _serve(sys.argv[1])
