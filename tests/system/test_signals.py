"""A request to stop: once asks, twice acts, and the process is left as it was found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from ys_llm.system.signals import interrupts_in_turn, stop_requested


def handlers() -> list[object]:
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def send(number: int, until: Callable[[], object] = lambda: False) -> None:
    """Python runs a handler soon after the signal, not at once."""
    os.kill(os.getpid(), number)
    end = time.monotonic() + 5
    while not until() and time.monotonic() < end:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_only_asks(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_requested("finishing this step") as request:
        assert not request
        send(number, lambda: request)
        assert request
        assert request.name == signal.Signals(number).name
        assert request.exit_code == 128 + number
    assert capfd.readouterr().err == "\nfinishing this step\n"


def test_a_second_ctrl_c_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_requested("once more") as request:
        send(signal.SIGINT, lambda: request)
        send(signal.SIGINT)
    assert request


def test_every_handler_is_restored_however_the_context_ends() -> None:
    before = handlers()
    with stop_requested("x") as request:
        assert handlers() != before
        send(signal.SIGINT, lambda: request)
    assert handlers() == before
    with pytest.raises(ValueError), stop_requested("x"):
        raise ValueError
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt):  # a notebook can still be interrupted afterwards
        send(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested("x") as request:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        assert not request
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_no_handler() -> None:
    seen = []

    def work() -> None:
        before = handlers()
        with stop_requested("x") as request:
            seen.append((handlers() == before, bool(request)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


def test_a_second_sigterm_ends_the_process() -> None:
    code = (
        "import sys, time; from ys_llm.system.signals import interrupts_in_turn, stop_requested\n"
        "with stop_requested('asked'):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert child.stderr.readline() + child.stderr.readline() == b"\nasked\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == -signal.SIGTERM


def test_ctrl_c_in_its_turn_raises_once_and_otherwise_waits() -> None:
    with interrupts_in_turn() as interrupts:
        signal.raise_signal(signal.SIGINT)  # waits
        with pytest.raises(KeyboardInterrupt), interrupts:
            raise AssertionError("it had waited")
        with pytest.raises(KeyboardInterrupt), interrupts:
            signal.raise_signal(signal.SIGINT)
        with interrupts:
            reached = True
    assert reached


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_another_handler_of_ctrl_c_stays(handler: Callable[..., object]) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts_in_turn():
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_outside_the_main_thread_change_nothing() -> None:
    seen: list[object] = []

    def enter() -> None:
        with interrupts_in_turn() as interrupts, interrupts:
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
