"""`ys doctor`: what this machine has, and what would be faster."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass

from ys_llm.cli.common import RUNS_DIR

EXAMPLES = """\
examples:
  ys doctor
  ys doctor --remeasure                         time again what `auto` chooses between, for new runs

What `auto` chooses is measured once and kept, so that the same command gives the same model. Type
--remeasure when nothing else runs; a run that has begun keeps its choice.
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys doctor`."""

    remeasure: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys doctor`."""
    help_text = "forget what was measured on this machine, and measure it again"
    parser.add_argument("--remeasure", action="store_true", help=help_text)


def run(arguments: Arguments) -> int:
    """Print the report; the exit code."""
    from ys_llm.doctor import doctor
    from ys_llm.ops import choices

    if arguments.remeasure:
        print(f"ys: {choices.forget()} measurements forgotten", file=sys.stderr)
    print(doctor(os.environ, runs_dir=RUNS_DIR))
    return 0
