"""The sources of the package, and tests that hold for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "ys_llm").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def for_every(
    sources: Iterable[Path],
) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Make a check of one file one test of all, which tells of every file that fails.

    A test for each file and rule, thousands of them, would take longer to start than to run.
    """
    paths = list(sources)

    def decorate(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            problems = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    problems.append(f"{name_of(path)}: {error}")
            assert paths and not problems, "\n".join(problems)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate
