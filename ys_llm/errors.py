"""The one exception that a user sees without a traceback, and the exit codes of `ys`."""

import shlex

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_MODEL = 3
EXIT_BACKEND_DOWN = 4
EXIT_DIVERGED = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class UserError(Exception):
    """The one exception shown without a traceback: what was found or expected, and what to type."""

    def __init__(self, problem: str, fix: str = "", *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix
        self.exit_code = exit_code

    def __str__(self) -> str:
        """Read `problem. fix`, in one piece."""
        if not self.fix:
            return self.problem
        stop = "" if self.problem.endswith((".", "?", "!")) else "."
        return f"{self.problem}{stop} {self.fix}"


class UsageError(Exception):
    """Arguments of a command that contradict each other; shown with the command's usage."""


def command_line(*words: str, **flags: object) -> str:
    """A `ys` command to type, quoted for a shell: every advised command is built here.

    A flag that is None, "" or False is left out, one that is True takes no value, and a list
    repeats it; `_` in its name is `-`.
    """
    parts = ["ys", *map(shlex.quote, words)]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(flag)
        elif isinstance(value, list | tuple):
            parts += [part for item in value for part in (flag, shlex.quote(str(item)))]
        elif value is not None and value is not False and value != "":
            parts += [flag, shlex.quote(str(value))]
    return " ".join(parts)
