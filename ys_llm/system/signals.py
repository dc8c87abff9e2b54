"""Signals: a request to stop, whose second signal acts immediately; Ctrl-C in a conversation."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_TICK_SECONDS = 0.1


class StopRequest:
    """Whether a stop was requested, and by which signal; false until then."""

    def __init__(self) -> None:
        self.signal, self.seconds = 0, 0.0  # of the monotonic clock

    def __bool__(self) -> bool:
        return self.signal != 0

    @property
    def name(self) -> str:
        """The signal's name, such as SIGINT; "" before a request."""
        return signal.Signals(self.signal).name if self.signal else ""

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 128 + its number."""
        return 128 + self.signal


@contextmanager
def stop_requested(message: str, *, same_seconds: float = 0.0) -> Iterator[StopRequest]:
    """Yield a StopRequest that Ctrl-C, SIGTERM or a closed terminal makes true.

    The first signal prints `message` to stderr and restores the previous handlers, so that a second
    one acts as it would have without us: Ctrl-C then raises KeyboardInterrupt. One that comes
    within `same_seconds` is the first one again. A signal that is ignored, as under nohup, stays
    ignored. Every handler is restored on exit. Outside the main thread, where Python allows no
    handlers, the request stays false.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    previous: dict[int, Any] = {
        number: handler
        for number in numbers
        # None: installed by C code, and Python could not put it back.
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        """Put the previous handlers back."""
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        """Record the request; the next signal reaches the previous handler."""
        if not request:
            request.signal, request.seconds = number, time.monotonic()
            with suppress(OSError):  # not print: it may be writing to the same stream right now
                os.write(2, f"\n{message}\n".encode() if message else b"")
        elif time.monotonic() - request.seconds >= same_seconds:
            restore()
            os.kill(os.getpid(), number)
        if not same_seconds:
            restore()

    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()


class Interrupts:
    """Ctrl-C in its turn: it raises KeyboardInterrupt inside `with interrupts:`, and nowhere else.

    Outside it waits for the next such block, so that no moment between two blocks ends a session.
    One block is interrupted once: whatever is done about it is done undisturbed.
    """

    def __init__(self) -> None:
        self._is_turn = self._is_waiting = False

    def __enter__(self) -> None:
        self._is_turn = True
        if self._is_waiting:
            self._raise()

    def __exit__(self, *_: object) -> None:
        self._is_turn = False

    def ask(self, number: int, frame: Any) -> None:
        """The handler of SIGINT."""
        if self._is_turn:
            self._raise()
        self._is_waiting = True

    def _raise(self) -> None:
        self._is_turn = self._is_waiting = False
        raise KeyboardInterrupt


@contextmanager
def interrupts_in_turn() -> Iterator[Interrupts]:
    """Yield Interrupts that Ctrl-C obeys until the context ends.

    Where SIGINT has another handler than Python's own, or outside the main thread, it stays.
    """
    interrupts = Interrupts()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.ask)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def signals_noticed() -> Iterator[None]:
    """Let a call that waits for input notice signals within a tenth of a second.

    A signal that comes just before the system begins to wait does not interrupt it, and Python
    would run its handler after the next key only. A timer ends every wait, and such calls begin it
    again. Outside the main thread, or where SIGALRM serves others, nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, _tick):
        yield
        return
    signal.signal(signal.SIGALRM, _tick)  # first: the timer would end a process without a handler
    try:
        signal.setitimer(signal.ITIMER_REAL, _TICK_SECONDS, _TICK_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _tick(number: int, frame: Any) -> None:
    """Python notices other signals beside this one."""
