"""A request to stop: the first signal is a request, the second one acts immediately."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class StopRequest:
    """Whether a stop was requested, and by which signal; false until then."""

    def __init__(self) -> None:
        self.signal = 0

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
def stop_requested(message: str) -> Iterator[StopRequest]:
    """Yield a StopRequest that Ctrl-C, SIGTERM or a closed terminal makes true.

    The first signal prints `message` to stderr and restores the previous handlers, so that a second
    one acts as it would have without us: Ctrl-C then raises KeyboardInterrupt. A signal that is
    ignored, as under nohup, stays ignored. Every handler is restored on exit. Outside the main
    thread, where Python allows no handlers, the request stays false.
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
        request.signal = number
        restore()
        with suppress(OSError):  # not print: it may be writing to the same stream right now
            os.write(2, f"\n{message}\n".encode())

    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
