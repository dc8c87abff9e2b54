"""`ys doctor`: what this machine has, and what would be faster."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from ys_llm.cli.common import RUNS_DIR

EXAMPLES = """\
examples:
  ys doctor
"""


@dataclass(frozen=True)
class Arguments:
    """`ys doctor` takes none."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare nothing."""


def run(arguments: Arguments) -> int:
    """Print the report; the exit code."""
    from ys_llm.doctor import doctor

    print(doctor(os.environ, runs_dir=RUNS_DIR))
    return 0
