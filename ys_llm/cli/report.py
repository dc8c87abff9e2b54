"""`ys report`: a run's report, or one page with the curves of several runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ys_llm.cli.common import RUNS_DIR

EXAMPLES = """\
examples:
  ys report                                     of the latest run
  ys report mine --open                         and show it in the browser
  ys report mine other                          runs/report.html: the curves of both

Training writes a run's report.html at every evaluation and checkpoint; this writes it again. It is
one file that works offline: curves, samples, settings and their origins, text, machine, and a
post-mortem if training went wrong.
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys report`."""

    names: list[str]
    open: bool
    out: Path | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys report`."""
    add = parser.add_argument
    add("names", metavar="RUN", nargs="*", help="name or folder of a run (default: the latest)")
    add("--open", action="store_true", help="show the page in the browser")
    out = "where to write it (default: report.html in the run's folder, or runs/report.html)"
    add("--out", metavar="FILE", type=Path, help=out)


def run(arguments: Arguments) -> int:
    """Write the page and print its path; the exit code."""
    path = _write(arguments)
    print(path)
    if arguments.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0


def _write(arguments: Arguments) -> Path:
    from ys_llm.runs.folder import REPORT, find_run, find_run_folder
    from ys_llm.runs.report import report_page
    from ys_llm.runs.report_comparison import comparison_page
    from ys_llm.system.files import write_atomically

    if not arguments.names:
        folders = [find_run(RUNS_DIR, None)]
    else:
        folders = [find_run_folder(RUNS_DIR, name) for name in arguments.names]
    if len(folders) == 1:
        path, text = folders[0] / REPORT, report_page(folders[0])
    else:
        path, text = RUNS_DIR / REPORT, comparison_page(folders)
    path = arguments.out or path
    write_atomically(path, text)
    return path
