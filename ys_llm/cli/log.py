"""`ys log`: the sessions of `ys run`, listed, searched and shown."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ys_llm.config.user_state import LOG_VARIABLE, log_folder
from ys_llm.errors import UsageError, UserError, command_line
from ys_llm.system.terminal import printable

if TYPE_CHECKING:
    from ys_llm.inference.session_log import LoggedTurn, SessionLog

DEFAULT_MOST = 20
EXAMPLES = f"""\
examples:
  ys log                                        the latest turns
  ys log search squirrel                        those with a word that begins so
  ys log 12                                     one turn in full
  ys run --from-log 12                          go on from it

Turns of `ys run` at a terminal are kept in a SQLite file in YS_STATE_DIR, $XDG_STATE_HOME/ys or
~/.local/state/ys, which its owner alone can read; beside it, the lines that were typed. Delete the
files to forget them. {LOG_VARIABLE}=0 in the environment keeps nothing.
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys log`."""

    words: list[str]
    most: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys log`."""
    add = parser.add_argument
    add("words", metavar="ID | search WORD", nargs="*", help="a turn to show, or words to find")
    most_help = f"most turns that are listed (default: {DEFAULT_MOST})"
    add("--most", metavar="N", type=int, default=DEFAULT_MOST, help=most_help)


def run(arguments: Arguments) -> int:
    """List, search or show; the exit code."""
    verb, words = arguments.words[:1], arguments.words[1:]
    if arguments.most < 1:
        raise UsageError(f"--most must be at least 1, found {arguments.most}")
    if verb == ["search"] and words:
        _list(open_log().search(words, arguments.most))
    elif not verb:
        _list(open_log().latest(arguments.most))
    elif verb[0].isdecimal() and not words:
        _show(open_log().turn(int(verb[0])))
    else:
        raise UsageError("expected nothing, the number of a turn, or: search WORD")
    return 0


def open_log() -> SessionLog:
    """The user's log; UserError where there is none."""
    folder = log_folder()
    if folder is None:
        problem = f"the log of sessions is off: {LOG_VARIABLE} says so, or there is no home folder"
        raise UserError(problem, f"Type: unset {LOG_VARIABLE}")
    from ys_llm.inference.session_log import LOG_NAME, SessionLog

    if not (folder / LOG_NAME).exists():
        problem = f"there is no log of sessions in {folder} yet"
        raise UserError(problem, f"Type `{command_line('run')}` at a terminal.")
    return SessionLog(folder)


def _list(turns: list[LoggedTurn]) -> None:
    """A line for each turn, the newest last, as a terminal shows the end."""
    if not turns:
        print("nothing was found", file=sys.stderr)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for turn in reversed(turns):
        text = printable(" ".join(f"{turn.typed} -> {turn.answer}".split()))
        line = f"{turn.id:6}  {turn.at}  {printable(turn.run):10}  {text}"
        print(line if len(line) <= width else f"{line[: width - 3]}...")


def _show(turn: LoggedTurn) -> None:
    """All of a turn."""
    settings = " ".join(f"{name}={value}" for name, value in turn.sampling.items())
    print(f"turn {turn.id} of {printable(turn.run)}, {turn.at} UTC: {turn.kind}")
    print(printable(settings))
    if turn.system:
        print(f"system text: {printable(turn.system)}")
    print(f"\n> {printable(turn.typed)}\n{printable(turn.answer)}")
