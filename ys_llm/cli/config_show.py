"""`ys config show`: every setting, where its value comes from, and its meaning."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ys_llm.cli.common import ConfigArguments, add_config_flags, resolve

EXAMPLES = """\
examples:
  ys config show
  ys config show --config quickstart --set train.seed=7
  ys config show > my.yaml                      the output is itself a configuration file
"""


@dataclass(frozen=True)
class Arguments(ConfigArguments):
    """The arguments of `ys config`."""

    action: str = "show"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys config`."""
    action_help = "print each value, its origin and its meaning"
    parser.add_argument("action", choices=["show"], help=action_help)
    add_config_flags(parser)


def run(arguments: Arguments) -> int:
    """Print the configuration; the exit code."""
    from ys_llm.config.sources import annotated_yaml

    print(annotated_yaml(resolve(arguments)), end="")
    return 0
