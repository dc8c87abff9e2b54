"""`ys` in forked children: each command in a process of its own that may be killed, in 30 ms.

A server imports torch and the package once, trains nothing and starts no thread, and forks a child
per command. It speaks lines of JSON: for a job it returns the child's process id, for a process id
how that child ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
HANG_SECONDS = 60.0  # a command of these tests takes less than a second on an idle machine
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of sys/prctl.h: no child outlives the server
_THREADS = {
    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    # A command may set two threads. On a busy machine, threads that wait by spinning would take the
    # cores from those they wait for: ten times the time, the same bits.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class Job:
    """One command; `fault` is what `power_cut.Fault` takes, `spare_bytes` what it may allocate.

    `code` runs in its place and finds the words in sys.argv; `terminal` is then its standard input,
    output and errors, and the terminal that it is interrupted from.
    """

    words: Sequence[str]
    folder: str
    fault: Mapping[str, Any] = field(default_factory=dict)
    spare_bytes: int = 0  # 0: no limit
    environment: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    terminal: str = ""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the number of the signal that killed it."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        lines = self.stderr.splitlines()
        return lines[-1] if lines else ""


class Child:
    """A running command."""

    def __init__(self, server: ForkServer, pid: int, output: Path) -> None:
        self.pid = pid
        self._server, self._output = server, output

    def send(self, number: int) -> None:
        """Send a signal; until `wait` nobody else can have this process id."""
        os.kill(self.pid, number)

    def stderr(self) -> str:
        """Its stderr so far."""
        return self._output.with_suffix(".err").read_text(encoding="utf-8")

    def stdout(self) -> str:
        """Its stdout so far."""
        with contextlib.suppress(FileNotFoundError):  # it has not begun yet
            return self._output.with_suffix(".out").read_text(encoding="utf-8")
        return ""

    def wait(self, *, seconds: float = HANG_SECONDS) -> Ended:
        """How it ended; fails if it hangs."""
        code = self._server.wait(self.pid, seconds=seconds)
        out, err = (self._output.with_suffix(end) for end in (".out", ".err"))
        ended = Ended(code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))
        out.unlink()
        err.unlink()
        return ended


class ForkServer:
    """Starts commands; `scratch` is a folder for their output."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._started = scratch, 0
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "support" / "forked.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                **_THREADS,
                "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
            },
            text=True,
            bufsize=1,
        )

    def start(self, *words: str, folder: Path, **how: Any) -> Child:
        """Start `ys WORDS` in `folder`."""
        self._started += 1
        output = self._scratch / str(self._started)
        job = asdict(Job(words, str(folder), **how)) | {"output": str(output)}
        return Child(self, int(self._ask(job, seconds=HANG_SECONDS)), output)

    def run(self, *words: str, folder: Path, **how: Any) -> Ended:
        """Run `ys WORDS` in `folder` to its end."""
        return self.start(*words, folder=folder, **how).wait()

    def wait(self, pid: int, *, seconds: float) -> int:
        """The exit code of a child; one that hangs is killed, and the test fails."""
        try:
            return int(self._ask(pid, seconds=seconds))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self._answer(seconds=HANG_SECONDS)
            raise

    def close(self) -> None:
        """No more commands."""
        self._process.communicate(timeout=HANG_SECONDS)

    def _ask(self, question: Any, *, seconds: float) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        return self._answer(seconds=seconds)

    def _answer(self, *, seconds: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"no answer in {seconds:.0f} s")
        return self._process.stdout.readline()


@contextlib.contextmanager
def fork_server(scratch: Path) -> Iterator[ForkServer]:
    """A server for a session of tests."""
    server = ForkServer(scratch)
    try:
        yield server
    finally:
        server.close()


def _serve() -> None:
    """Answer the lines on stdin: fork for a job, wait for a process id."""
    from ys_llm.training import samples

    warm_up()
    samples.SAMPLE_TOKENS = 6  # of 60: else samples would take a fifth of these tests' time
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(question, 0)[1])
        else:
            answer = os.fork() or _end_with(question, answers)
        os.write(answers, f"{answer}\n".encode())


def warm_up() -> None:
    """Import what commands import, and what torch imports in an optimizer's first step."""
    import numpy.ma  # noqa: F401
    import torch

    import support.power_cut  # noqa: F401
    import ys_llm.cli.run
    import ys_llm.cli.train
    import ys_llm.inference.repl
    import ys_llm.training.loop  # noqa: F401
    from ys_llm.csrc import loader
    from ys_llm.mixers.protocol import mixer_module, mixer_names

    torch.set_num_threads(1)
    loader.load()
    for name in mixer_names():
        mixer_module(name)
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.AdamW([parameter]).step()
    gc.collect()
    gc.freeze()  # else each child looks for garbage in, and so copies, all that is shared


def _end_with(job: dict[str, Any], answers: int) -> int:
    """The child: run the command and end without returning."""
    code = 1
    try:
        os.close(answers)
        output = job.pop("output")
        for number, path in enumerate((os.devnull, f"{output}.out", f"{output}.err")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
            os.dup2(os.open(path, flags, 0o644), number)
        code = _command(Job(**job))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has ended; this is the harness
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(job: Job) -> int:
    from support.power_cut import Fault, install
    from ys_llm.cli.main import main

    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job.folder)
    os.environ.update(job.environment)
    os.fsync = lambda descriptor: None  # no power is really cut
    if job.spare_bytes:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + job.spare_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if job.fault:
        install(Fault(**job.fault))
    if job.code:
        _sit_at(job.terminal)
        sys.argv = ["-c", *job.words]
        exec(job.code, {})
        return 0
    return main(list(job.words))


def _sit_at(terminal: str) -> None:
    """In a session of its own, whose controlling terminal is the first one that it opens."""
    os.setsid()
    opened = os.open(terminal, os.O_RDWR)
    for number in range(3):
        os.dup2(opened, number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )


def until(condition: Any, *, seconds: float = HANG_SECONDS) -> None:
    """Wait until `condition()` is true; fails if it never is."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "the condition never became true"
        time.sleep(0.002)


if __name__ == "__main__":
    _serve()
