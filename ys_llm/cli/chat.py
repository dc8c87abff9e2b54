"""`ys chat`: talk with a model, turn by turn."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ys_llm.cli.common import (
    RUNS_DIR,
    Device,
    Quantization,
    add_device_flag,
    add_quantize_flag,
    load_quantized,
)
from ys_llm.cli.run import DEFAULT_CACHE_MB, add_sampling_flags, sampling_of
from ys_llm.errors import UserError, command_line

if TYPE_CHECKING:
    from ys_llm.runs.model_files import LoadedRun

EXAMPLES = """\
examples:
  ys chat mine                                  turn after turn; `exit` or Ctrl-D leaves
  ys chat mine --system "Your name is Ada."     a text that the conversation begins with
  ys chat mine --state fox                      go on with the conversation that /save fox has kept
  ys chat mine < questions.txt                  each line is a turn

The conversation is a state of constant size: nothing of it is read again, however long it gets.
RUN is a model that was fine-tuned on conversations (`ys sft`), or one that answers prompts; that
reads the system text as the first paragraph of the first prompt. /help lists the commands. Replies
go to stdout, timings to stderr.
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys chat`; None is what was not given."""

    name: str | None
    system: str
    state: str | None
    quantize: Quantization
    device: Device
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys chat`."""
    add = parser.add_argument
    add("name", metavar="RUN", nargs="?", help="name or folder of a run (default: the latest)")
    add("--system", metavar="TEXT", default="", help="what the conversation begins with")
    add("--state", metavar="NAME", help="go on from a saved state: its name, or its file")
    add_sampling_flags(parser)
    add_quantize_flag(parser)
    add_device_flag(parser)


def run(arguments: Arguments) -> int:
    """Converse at the terminal, or with the lines of stdin; the exit code."""
    from ys_llm.config.user_state import log_folder
    from ys_llm.inference import repl
    from ys_llm.inference.prefix_cache import MEGABYTE, PrefixCache
    from ys_llm.runs.folder import find_run

    path = find_run(RUNS_DIR, arguments.name)
    loaded = load_quantized(path, arguments.quantize, arguments.device)
    _check(loaded)
    sampling = sampling_of(arguments, loaded.path / "config.yaml")
    begun = repl.Beginning(arguments.state, None, log_folder(), arguments.system, chats=True)
    cache = PrefixCache(DEFAULT_CACHE_MB * MEGABYTE)
    if sys.stdin is not None and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        turns = (line.rstrip("\r\n") for line in sys.stdin)
        repl.run_turns(loaded, turns, sampling, cache=cache, beginning=begun)
    else:
        repl.run_interactive(loaded, sampling, cache=cache, beginning=begun)
    return 0


def _check(loaded: LoadedRun) -> None:
    """Refuse a model that goes on with texts."""
    if not loaded.has_records:
        name = loaded.config.run
        raise UserError(
            f"{loaded.path} continues texts; it has learned no prompts and no conversations",
            f"Fine-tune it: {command_line('sft', name, 'CHATS.jsonl')}, or type: "
            + command_line("run", name),
        )
