"""The command `ys`: which commands there are, exit codes, and UTF-8 whatever the locale.

Each command is a file of its own, imported only when it is the one that was typed:

    EXAMPLES         the end of its help text
    Arguments        a dataclass of its arguments
    add_flags(p)     declares them
    run(arguments)   does it, and returns the exit code
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ys_llm import __version__
from ys_llm.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, UsageError, UserError

COMMANDS: Mapping[str, str] = {
    "train": "train a model, or resume",
    "sft": "fine-tune a trained run: its weights, adapters, or its initial state",
    "run": "generate text, or talk with a model",
    "chat": "talk with a model, turn by turn",
    "log": "list and search what was written at a terminal",
    "serve": "serve models over HTTP, to clients of ollama and of OpenAI",
    "eval": "measure loss and bits per byte on texts",
    "report": "write the report of a run, or the curves of several, as one HTML page",
    "compare": "train several configurations and compare them, if that is fair",
    "export": "write a model for other programs: transformers, ONNX",
    "convert": "update a run made by an earlier version of ys",
    "gen-data": "generate, curate and trace training text",
    "plan": "compute what a training needs on a cluster: memory, time, network, energy",
    "config": "show the settings of a run",
    "doctor": "show what this machine has, what ys uses of it, and what would be faster",
}
_MODULES = {"config": "config_show"}  # where it is not the command's own name
_DESCRIPTION = "Train, study and talk to small language models whose memory is a state."
_OVERVIEW = """\
examples:
  ys train                                      train on training_data/, or resume
  ys run --prompt "Tell me a story about a fox."
  ys help train

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no model yet, 4 backend down,
5 training diverged; stopped, after training has saved: 130 by Ctrl-C, 143 by SIGTERM, 129 by a
closed terminal
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ys` with these arguments and return its exit code; wrong usage raises SystemExit(2)."""
    if sys.platform == "win32":
        print("ys: ys runs on Linux and macOS (Windows: through WSL)", file=sys.stderr)
        return EXIT_FAILED
    if is_process := argv is None:
        _restart_in_utf8()
        argv = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in sys.argv[1:]]
    _write_utf8()
    if not _has_current_folder():
        print("ys: the current folder no longer exists; change to one that does", file=sys.stderr)
        return EXIT_FAILED
    before = signal.getsignal(signal.SIGINT)
    code = _run(argv)
    if not is_process and signal.getsignal(signal.SIGINT) != before:
        signal.signal(signal.SIGINT, before)  # the caller's process continues
    return code


def _run(argv: Sequence[str]) -> int:
    namespace = parse(argv)
    try:
        code = _execute(namespace)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _report(error, namespace)
    except KeyboardInterrupt as interrupt:
        if (told := _being_handled(interrupt)) is not None:  # it already says where we stop
            return _report(told, namespace)
        print("ys: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except MemoryError:
        print("ys: not enough memory", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of our output has closed it; without this, Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if _is_debugging(namespace):
            traceback.print_exc()
        file = f"{error.filename}: " if error.filename else ""
        print(f"ys: {file}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED


def _being_handled(interrupt: KeyboardInterrupt) -> UserError | None:
    """The error that was on its way to the user when Ctrl-C came, however deep in its handling."""
    error: BaseException | None = interrupt.__context__
    while error is not None and not isinstance(error, UserError):
        error = error.__context__
    return error


def _report(error: UserError, namespace: argparse.Namespace) -> int:
    """Print the error; its exit code."""
    if (
        error.exit_code == EXIT_INTERRUPTED
        and threading.current_thread() is threading.main_thread()
    ):
        # Everything is saved: another Ctrl-C must not print a traceback after that message.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _is_debugging(namespace):
        traceback.print_exception(error)
    for line in str(error).splitlines():
        print(f"ys: {line}", file=sys.stderr)
    return error.exit_code


def _execute(namespace: argparse.Namespace) -> int:
    if namespace.command is None:
        namespace.parser.print_help(sys.stderr)
        return EXIT_USAGE
    if namespace.command == "help":
        parse([*namespace.words, "--help"])  # prints, then exits with 0
    from ys_llm.cli.common import typed

    module = _module(namespace.command)
    try:
        code: int = module.run(typed(module.Arguments, namespace))
    except UsageError as error:
        namespace.parser.error(str(error))
    return code


def _module(command: str) -> Any:
    return importlib.import_module(f"ys_llm.cli.{_MODULES.get(command, command).replace('-', '_')}")


def _restart_in_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding.

    Arguments, paths and stdin are UTF-8 for us, and Python decides how it reads them at its start.
    """
    is_utf8 = sys.flags.utf8_mode or sys.getfilesystemencoding().lower() == "utf-8"
    if is_utf8 or not sys.executable:
        return
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execv(sys.executable, [os.fsencode(argument) for argument in arguments])


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:  # deleted since; libraries end in errors of their own
        return False
    return True


def _write_utf8() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: ys 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the whole process
        getattr(sys, name).reconfigure(encoding="utf-8", errors="backslashreplace")


def _is_debugging(namespace: argparse.Namespace) -> bool:
    return namespace.debug or os.environ.get("YS_DEBUG", "") not in ("", "0")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments, with `command` and its `parser`; SystemExit(2) for wrong ones."""
    parser = _new_parser(
        argparse.ArgumentParser, prog="ys", description=_DESCRIPTION, epilog=_OVERVIEW
    )
    parser.add_argument("--version", action="version", version=f"ys {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also: YS_DEBUG=1)")
    parser.set_defaults(command=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    typed_command = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        declared = _module(name) if name == typed_command else None
        command = _new_parser(
            commands.add_parser,
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=declared.EXAMPLES if declared else None,
        )
        # Suppressed, so that `ys --debug train` is not undone by the command's own default.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
        if declared:
            declared.add_flags(command)
        command.set_defaults(command=name, parser=command)
    help_parser = commands.add_parser("help", help="show the help of a command", allow_abbrev=False)
    help_parser.add_argument("words", metavar="COMMAND", nargs="*")
    help_parser.set_defaults(command="help")
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown, namespace.parser)
    return namespace


def _refuse(words: Sequence[str], parser: argparse.ArgumentParser) -> NoReturn:
    """Exit with 2, the command's usage, and what it has instead of the first unknown flag."""
    from ys_llm.cli.unknown_flag import advice

    flag = next((word for word in words if word.startswith("--")), "")
    parser.error(f"unrecognized arguments: {' '.join(words)}{advice(flag, parser) if flag else ''}")


def _new_parser(make: Any, *args: Any, **kwargs: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = make(
        *args,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **kwargs,
    )
    return parser
