"""`ys run`: one completion, one for each line of a file, or a conversation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ys_llm.cli.common import (
    RUNS_DIR,
    Device,
    Quantization,
    Renamed,
    add_device_flag,
    add_quantize_flag,
    load_quantized,
    override,
)
from ys_llm.errors import EXIT_USAGE, UsageError, UserError, command_line

if TYPE_CHECKING:
    from ys_llm.config.schema import GenerateConfig
    from ys_llm.inference.prefix_cache import PrefixCache
    from ys_llm.runs.model_files import LoadedRun

DEFAULT_CACHE_MB = (
    64  # some thousands of states of a three-tier model, a few long ones of attention
)
EXAMPLES = """\
examples:
  ys run                                        prompt after prompt; `exit` or Ctrl-D leaves
  ys run mine --prompt "Once upon a time" --max-tokens 100 --seed 1
  ys run < letter.txt                           complete a text; its last line break is dropped
  ys run --json --logprobs 5 --max-tokens 0 --prompt "score this"
  ys run --prompts questions.txt --seed 1 > answers.jsonl
  ys run --cache letter.states < letter.txt     the same letter is read once, also tomorrow
  ys run --state fox --prompt "And then"        after the text that /save fox has kept
  ys run --from-log 12                          go on from turn 12 of `ys log`

At the prompt, /help lists the commands: /undo, /fork, /save, /feed, /state, /why and others. Ctrl-C
stops an answer or drops what was typed. Pasted lines are one prompt; to type several lines, begin
and end them with three quotes. The editor needs prompt_toolkit: pip install "ys_llm[terminal]".
Sessions at a terminal are kept in the log of `ys log`; YS_LOG=0 keeps nothing.
Text goes to stdout, timings to stderr. Defaults come from the run's `generate` section and from
YS_GENERATE__* in the environment. The lines of --prompts are generated in one batch, several times
as fast as one by one, and printed as --json prints one answer. With a seed each line gets the
same answer as on its own, except where rounding decides a draw: a batch is computed in another
order on a GPU, and for models without a compiled decoder.
A prompt that begins as an earlier one did starts from the state that was saved there, after every
64 tokens, with the same answer; --cache keeps states for the next time.
`ys eval --quantize` shows what quantised weights lose.
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys run`; None is what was not given."""

    name: str | None
    prompt: str | None
    prompts: Path | None
    raw: bool
    json: bool
    logprobs: int | None
    cache: Path | None
    cache_mb: int
    state: str | None
    from_log: int | None
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
    """Declare the arguments of `ys run`."""
    add = parser.add_argument
    add("name", metavar="RUN", nargs="?", help="name or folder of a run (default: the latest)")
    add("--prompt", metavar="TEXT", help="complete this and exit")
    add("--prompts", metavar="FILE", type=Path, help="complete each line; print a JSON object each")
    add("--raw", action="store_true", help="continue the text instead of answering it")
    add("--json", action="store_true", help="print the answer as a JSON object")
    logprobs_help = "with --json: log-probabilities, and K alternatives for each token"
    add("--logprobs", metavar="K", type=int, help=logprobs_help)
    add_sampling_flags(parser)
    add(
        "--cache", metavar="FILE", type=Path, help="keep states of prompts in FILE, made if missing"
    )
    cache_help = f"memory for states of prompts, in MB (default: {DEFAULT_CACHE_MB}; 0 = none)"
    add("--cache-mb", metavar="N", type=int, default=DEFAULT_CACHE_MB, help=cache_help)
    add("--state", metavar="NAME", help="go on from a saved state: its name, or its file")
    add("--from-log", metavar="ID", type=int, help="go on from this turn of the log")
    add_quantize_flag(parser)
    add_device_flag(parser)
    add("--plain", action=Renamed, now="--raw")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Declare how tokens are drawn."""
    add = parser.add_argument
    add("--max-tokens", metavar="N", type=int, help="most tokens generated; 0 scores the prompt")
    add("--temperature", metavar="T", type=float, help="0 = greedy decoding")
    add("--top-k", metavar="K", type=int, help="sample from the K most likely tokens; 0 = all")
    add("--top-p", metavar="P", type=float, help="nucleus sampling with this probability")
    add("--min-p", metavar="P", type=float, help="drop tokens below P times the most likely one")
    add("--repetition-penalty", metavar="F", type=float, help="above 1: fewer repeated tokens")
    add("--seed", metavar="N", type=int, help="same seed, same text")


def run(arguments: Arguments) -> int:
    """Generate, score or converse as the flags request; the exit code."""
    _check(arguments)
    prompt = None if arguments.prompts else _prompt(arguments)
    from ys_llm.config.user_state import log_folder
    from ys_llm.inference import repl
    from ys_llm.runs.folder import find_run

    name = arguments.name if arguments.from_log is None else _run_of_turn(arguments, prompt)
    loaded = load_quantized(find_run(RUNS_DIR, name), arguments.quantize, arguments.device)
    sampling, raw = sampling_of(arguments, loaded.path / "config.yaml"), arguments.raw
    with _prefix_cache(arguments, loaded) as cache:
        if arguments.prompts:
            repl.run_batch(loaded, _lines_of(arguments.prompts), sampling, raw=raw, cache=cache)
        elif prompt is None:
            kept = repl.Beginning(arguments.state, arguments.from_log, log_folder())
            repl.run_interactive(loaded, sampling, raw=raw, cache=cache, beginning=kept)
        elif arguments.json:
            scored = arguments.logprobs
            repl.run_json(loaded, prompt, sampling, raw=raw, logprobs=scored, cache=cache)
        else:
            state = arguments.state
            repl.run_once(loaded, prompt, sampling, raw=raw, cache=cache, state=state)
    return 0


def _run_of_turn(arguments: Arguments, prompt: object) -> str:
    """The run that is named, else the one that wrote a turn of the log."""
    from ys_llm.cli.log import open_log

    if prompt is not None:
        raise UsageError("--from-log begins a session at a terminal; leave out the prompt")
    assert arguments.from_log is not None
    return arguments.name or open_log().turn(arguments.from_log).path


@contextmanager
def _prefix_cache(arguments: Arguments, loaded: LoadedRun) -> Iterator[PrefixCache | None]:
    """The states of prompts: of --cache, where they are kept however the command ends."""
    from ys_llm.inference.prefix_cache import MEGABYTE, PrefixCache

    max_bytes = arguments.cache_mb * MEGABYTE
    if arguments.cache is None:
        yield PrefixCache(max_bytes) if max_bytes else None
        return
    from ys_llm.inference.prefix_file import fingerprint_of, load_cache, save_cache

    fingerprint = fingerprint_of(loaded)
    cache = load_cache(arguments.cache, loaded.model, fingerprint, max_bytes=max_bytes)
    try:
        yield cache
    finally:
        if cache.changed:
            save_cache(cache, arguments.cache, fingerprint)


def _check(arguments: Arguments) -> None:
    """Refuse arguments that contradict each other."""
    if arguments.logprobs is not None and arguments.logprobs < 0:
        raise UsageError(f"--logprobs must be at least 0, found {arguments.logprobs}")
    if arguments.logprobs is not None and not arguments.json:
        raise UsageError("--logprobs needs --json")
    if arguments.prompts is not None and (arguments.prompt is not None or arguments.json):
        raise UsageError("--prompts prints JSON by itself; leave out --prompt and --json")
    if arguments.state is not None and (arguments.prompts is not None or arguments.json):
        raise UsageError("--state goes on with one text; leave out --prompts and --json")
    if arguments.state is not None and arguments.from_log is not None:
        raise UsageError("--state and --from-log are two beginnings; leave out one")
    if arguments.cache_mb < 0:
        raise UsageError(f"--cache-mb must be at least 0, found {arguments.cache_mb}")
    if arguments.cache is not None and arguments.cache_mb == 0:
        raise UsageError("--cache-mb 0 keeps nothing; leave out --cache, or allow more")
    if arguments.cache is not None and arguments.logprobs is not None:
        raise UsageError("--logprobs reads every token of the prompt; leave out --cache")


def sampling_of(arguments: object, saved: Path) -> GenerateConfig:
    """The run's own settings, then the environment, then the flags."""
    from ys_llm.cli.common import load
    from ys_llm.config.schema import GenerateConfig
    from ys_llm.config.strict_reader import field_helps

    overrides = []
    for name in field_helps(GenerateConfig):
        value = getattr(arguments, name)
        flag = f"--{name.replace('_', '-')}"
        overrides += override(f"generate.{name}", value, flag=flag)
    return load(saved, [*overrides]).config.generate


def _lines_of(path: Path) -> Iterator[str]:
    """The non-empty lines of a file, without their line breaks."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from (line.rstrip("\r\n") for line in file if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text", "Save it as UTF-8.") from error


def _prompt(arguments: Arguments) -> str | Iterable[str] | None:
    """--prompt, else the text on stdin; None at a terminal."""
    text = arguments.prompt
    if text is not None and text.encode(errors="ignore").decode() != text:
        fix = "Give it as UTF-8, or on stdin."
        raise UserError("--prompt is not UTF-8 text", fix, exit_code=EXIT_USAGE)
    if text is not None:
        return text
    if sys.stdin is None:
        fix = f"Type: {command_line('run', *filter(None, [arguments.name]), prompt='TEXT')}"
        raise UserError("stdin is closed, and no prompt is given", fix, exit_code=EXIT_USAGE)
    if not sys.stdin.isatty():
        return _text_of_stdin()
    if arguments.json:
        raise UsageError("--json needs --prompt, or a text on stdin")
    return None


def _text_of_stdin() -> Iterator[str]:
    """Pieces of bounded size, whatever the length, without the last line break."""
    from ys_llm.inference.repl_input import pieces_of

    # Line breaks are not translated: the model must read exactly what was sent.
    sys.stdin.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    pending = ""
    try:
        for piece in pieces_of(sys.stdin):
            text = pending + piece
            body = text.removesuffix("\n").removesuffix("\r")
            pending = text[len(body) :]
            yield body
    except UnicodeDecodeError as error:
        raise UserError("the text on stdin is not UTF-8", "Save it as UTF-8.") from error
    if pending not in ("", "\n", "\r\n"):
        yield pending
