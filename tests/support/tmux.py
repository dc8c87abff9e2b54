"""A terminal that obeys escape sequences: tmux, typed into and read as a user would."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

SECONDS = 30.0


class Terminal:
    """A window of tmux, on a server of its own, in which one command runs."""

    def __init__(self, socket: Path, command: list[str], environment: Mapping[str, str]) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        settings = [word for pair in environment.items() for word in ("-e", "=".join(pair))]
        size = ["-x", "80", "-y", "24"]
        # Ctrl-C is for the command; the shell stays, since tmux may lose an exit code.
        shell = ["sh", "-c", 'trap : INT; "$@"; echo "ended with $?"; sleep 1000', "sh"]
        self._call("new-session", "-d", *size, *settings, "--", *shell, *command)

    def type(self, *keys: str) -> None:
        """Press keys by their names in tmux, such as `C-c` or `Enter`."""
        self._call("send-keys", *keys)

    def write(self, text: str) -> None:
        """Type a text and Enter."""
        self._call("send-keys", "-l", text)
        self._call("send-keys", "Enter")

    def send_bytes(self, *values: int) -> None:
        """Send bytes, each by itself."""
        for value in values:
            self._call("send-keys", "-H", f"{value:02x}")

    def paste(self, text: str) -> None:
        """Paste a text, marked as a paste where the program asked for that."""
        self._call("load-buffer", "-", text=text)
        self._call("paste-buffer", "-p")

    def resize(self, columns: int, rows: int) -> None:
        """Make the window another size."""
        self._call("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self, *, colours: bool = False) -> str:
        """A line break, and what is shown, with all that has scrolled away.

        Lines that were wrapped are one; spaces at the end of a line are lost.
        """
        how = ["-e"] if colours else []
        return "\n" + self._call("capture-pane", "-p", "-J", "-S", "-", *how)

    def wait_for(self, text: str, *, times: int = 1, seconds: float = SECONDS) -> str:
        """The screen once it holds the text so many times; fails if it never does."""
        return self.wait_for_match("(?s)" + ".*".join([re.escape(text)] * times), seconds=seconds)

    def wait_for_match(self, pattern: str, *, seconds: float = SECONDS) -> str:
        """The screen once this regular expression is found in it; fails if it never is."""
        ends = time.monotonic() + seconds
        while not re.search(pattern, screen := self.screen()):
            if time.monotonic() > ends:
                pytest.fail(f"{pattern!r} is not on the screen:\n{screen}")
            time.sleep(0.05)
        return screen

    def wait_for_end(self) -> int:
        """The exit code of the command."""
        return int(self.wait_for_match(r"ended with \d+").rsplit("ended with ", 1)[1])

    def close(self) -> None:
        """End the server, and with it the command."""
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)

    def _call(self, *words: str, text: str = "") -> str:
        ended = subprocess.run(
            [*self._tmux, *words], input=text, capture_output=True, text=True, timeout=SECONDS
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout
