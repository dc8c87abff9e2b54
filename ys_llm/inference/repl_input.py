"""Where the lines of a conversation come from: a terminal with an editor, or plain `input`."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from ys_llm.system.signals import signals_noticed
from ys_llm.system.terminal import is_plain

_PIECE_CHARS = 1 << 16  # read from a file at a time
_PASTE_SECONDS = 0.05  # between two lines of one paste
_MARK = '"""'  # begins and ends a prompt of several lines
_SIGN = "> "
HISTORY_NAME = "history"

Complete = Callable[[str], Iterable[tuple[str, int]]]


@dataclass(frozen=True)
class Line:
    """What was typed; `is_quoted`: between marks, so that it is no command.

    `is_last`: the end of the input came with it.
    """

    text: str
    is_quoted: bool = False
    is_last: bool = False


class Reader(Protocol):
    """Reads what is typed, one prompt at a time; EOFError at the end of the input."""

    def read(self, begun: str = "") -> Line:
        """The next prompt. `begun` is already there, to be edited, where there is an editor."""


def pieces_of(file: TextIO) -> Iterator[str]:
    """The text of an open file in pieces of bounded size."""
    while piece := file.read(_PIECE_CHARS):
        yield piece


def reader_of(history: Path | None, complete: Complete) -> Reader:
    """An editor at a terminal that can show one, if prompt_toolkit is there; else plain input.

    `history` is a folder for the lines that were typed. `complete` gives words that the text may go
    on with, each with the number of characters that it replaces.
    """
    if sys.stdin.isatty() and sys.stdout.isatty() and not is_plain():
        with suppress(ImportError):
            return _Editor(history, complete)
    return _Plain()


class _Plain:
    """Lines of `input`.

    Lines that arrive together, as when a paragraph is pasted, are one prompt, unless they begin
    with a command, and so is all between two marks of three quotes.
    """

    def __init__(self) -> None:
        with suppress(ImportError):
            import readline

            if "libedit" not in (readline.__doc__ or ""):
                readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self, begun: str = "") -> Line:
        """See `Reader`."""
        lines = [_input_line(_SIGN)]
        if lines[0].startswith("/"):
            return Line(lines[0])
        if not lines[0].lstrip().startswith(_MARK):
            try:
                while _n_waiting(_PASTE_SECONDS) is not None:
                    lines.append(_input_line(""))
            except EOFError:
                return Line("\n".join(lines), is_last=True)
            return Line("\n".join(lines))
        text = lines[0]
        while not _is_whole(text):
            text += "\n" + _input_line("... ")
        return _line(text)


def _is_whole(text: str) -> bool:
    """Whether a text that begins with a mark ends with another one."""
    quoted = text.strip().removeprefix(_MARK)
    return not text.lstrip().startswith(_MARK) or quoted.endswith(_MARK)


def _line(text: str) -> Line:
    """A text as it was typed, without its marks."""
    if not text.lstrip().startswith(_MARK):
        return Line(text)
    quoted = text.strip().removeprefix(_MARK).removesuffix(_MARK)
    return Line(quoted.removeprefix("\n").removesuffix("\n"), is_quoted=True)


def _input_line(sign: str) -> str:
    """A line from stdin; the prompt `sign` is shown on a terminal only, never in piped output."""
    if not sys.stdin.isatty():
        return input()
    _leave_at_ctrl_d()
    with signals_noticed():
        if sys.stdout.isatty():
            return input(sign)
        print(sign, end="", file=sys.stderr, flush=True)
        return input()


def _leave_at_ctrl_d() -> None:
    """EOFError where Ctrl-D was typed during an answer: an editor would take it for another key."""
    if _n_waiting(0) == 0:
        os.read(sys.stdin.fileno(), 1)
        raise EOFError


def _n_waiting(seconds: float) -> int | None:
    """How many bytes a terminal has to read within so many seconds: 0 at its end, None if none."""
    with suppress(OSError, ValueError):  # stdin has no descriptor
        file = sys.stdin.fileno()
        if sys.stdin.isatty() and select.select([file], [], [], seconds)[0]:
            return int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, bytes(4)), sys.byteorder)
    return None


class _Editor:
    """prompt_toolkit: history on disk, several lines, completion, pastes in one piece."""

    def __init__(self, history: Path | None, complete: Complete) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        kept = None if history is None else _history_file(history)
        self._session: Any = PromptSession(
            message=_SIGN,
            multiline=True,
            prompt_continuation="... ",
            history=InMemoryHistory() if kept is None else FileHistory(str(kept)),
            completer=_completer(complete),
            complete_while_typing=False,
            key_bindings=_keys(),
            enable_open_in_editor=False,
        )

    def read(self, begun: str = "") -> Line:
        """See `Reader`."""
        _leave_at_ctrl_d()
        return _line(self._session.prompt(default=begun))


def _history_file(folder: Path) -> Path | None:
    """A file of the user's own; None where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / HISTORY_NAME
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
    except OSError:
        return None
    return path


def _completer(complete: Complete) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Words(Completer):
        """Offers what `complete` finds."""

        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Any]:
            """See prompt_toolkit."""
            if "\n" not in document.text:
                for word, n_replaced in complete(document.text_before_cursor):
                    yield Completion(word, start_position=-n_replaced)

    return Words()


def _keys() -> Any:
    """Enter ends a prompt, unless its second mark is missing, or more has arrived with it."""
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer, waiting = event.current_buffer, event.app.key_processor.input_queue
        # A paste into a terminal that does not mark pastes; commands are lines of their own.
        is_pasted = waiting and waiting[0].key not in (Keys.ControlC, Keys.ControlD)
        is_pasted = is_pasted and not buffer.text.startswith("/")
        if _is_whole(buffer.text) and not is_pasted:
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add(Keys.BracketedPaste)
    def _(event: Any) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        event.current_buffer.insert_text(text)

    return keys
