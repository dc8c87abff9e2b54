"""`ys convert`: update a run made by an earlier version of ys."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ys_llm.cli.common import RUNS_DIR

EXAMPLES = """\
examples:
  ys convert runs/mine

Settings, weights and checkpoints get the names and formats of this version; no number changes.
The run is converted in place, and an interrupted conversion is resumed by the same command.
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys convert`."""

    name: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys convert`."""
    parser.add_argument("name", metavar="RUN", help="name or folder of a run")


def run(arguments: Arguments) -> int:
    """Convert the run and list what changed; the exit code."""
    from ys_llm.runs.convert import convert_run
    from ys_llm.runs.folder import find_run_folder

    for line in convert_run(find_run_folder(RUNS_DIR, arguments.name)):
        print(line)
    return 0
