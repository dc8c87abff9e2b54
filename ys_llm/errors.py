"""The one exception that a user sees without a traceback, and the exit codes of `ys`."""

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
