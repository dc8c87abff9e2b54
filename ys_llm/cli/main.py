"""The command `ys`: its flags, help and exit codes. What they do is in `commands.py`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ys_llm import __version__
from ys_llm.cli import commands, help_texts
from ys_llm.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ys` with these words and return its exit code; wrong words end in SystemExit(2)."""
    _speak_utf8()
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run_verb(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if _debugging(arguments):
            traceback.print_exc()
        for line in str(error).splitlines():
            print(f"ys: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("ys: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except MemoryError:
        print("ys: there is not enough memory for this", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # Whoever read our output has left; without this, Python complains again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if _debugging(arguments):
            traceback.print_exc()
        what = f"{error.filename}: " if error.filename else ""
        print(f"ys: {what}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED


def _speak_utf8() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us: ys 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as we live
        getattr(sys, name).reconfigure(encoding="utf-8", errors="backslashreplace")


def _debugging(arguments: argparse.Namespace) -> bool:
    return arguments.debug or os.environ.get("YS_DEBUG", "") not in ("", "0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ys",
        description=help_texts.DESCRIPTION,
        epilog=help_texts.OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ys {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also: YS_DEBUG=1)")
    parser.set_defaults(run_verb=lambda _arguments: _show_overview(parser))
    parsers = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_train(parsers)
    _add_run(parsers)
    _add_eval(parsers)
    _add_gen_data(parsers)
    _add_config(parsers)
    _add_doctor(parsers)
    _add_help(parsers, parser)
    return parser


def _show_overview(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return EXIT_USAGE


def _add_verb(parsers: Any, name: str, summary: str, *, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Suppressed, so that `ys --debug train` is not undone by the verb's own default.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    return parser


def _add_configuration_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file of settings")
    parser.add_argument("--data", metavar="PATH", help="text to train on: --set data.path=PATH")
    parser.add_argument("--run", metavar="NAME", help="name of the run: --set run=NAME")
    help_of_set = "one setting, its value written as YAML; may be repeated"
    parser.add_argument("--set", metavar="A.B=VALUE", action="append", default=[], help=help_of_set)


def _add_train(parsers: Any) -> None:
    parser = _add_verb(
        parsers,
        "train",
        "train a model, or go on where training stopped",
        epilog=help_texts.TRAIN,
    )
    words_help = "first remove the model, or all that the run has made; the corpus stays"
    parser.add_argument("words", metavar="clean [all]", nargs="*", help=words_help)
    _add_configuration_flags(parser)
    add = parser.add_argument
    add("--new-data", metavar="PATH", help="a new run that goes on with this one's model there")
    add("--from", metavar="STEP", dest="from_step", type=int, help="go back to this checkpoint")
    add("--dry-run", action="store_true", help="show sizes, memory and time, and touch nothing")
    add("--yes", action="store_true", help="clean: remove without asking")
    parser.set_defaults(run_verb=commands.train, usage_error=parser.error)


def _add_run(parsers: Any) -> None:
    parser = _add_verb(parsers, "run", "let a trained model write", epilog=help_texts.RUN)
    add = parser.add_argument
    add("name", metavar="RUN", nargs="?", help="name or folder of a run (default: the latest)")
    add("--prompt", metavar="TEXT", help="complete this and stop")
    add("--prompts", metavar="FILE", type=Path, help="complete each line; a line of JSON for each")
    add("--plain", action="store_true", help="go on with the text instead of answering it")
    add("--json", action="store_true", help="print an object: ids, texts, log-probabilities")
    add("--logprobs", metavar="K", type=int, default=0, help="with --json: the K best alternatives")
    add("--max-tokens", metavar="N", type=int, help="tokens written at most; 0 scores the prompt")
    add("--temperature", metavar="T", type=float, help="0 = always the likeliest token")
    add("--top-k", metavar="K", type=int, help="draw from the K likeliest; 0 = all")
    add("--top-p", metavar="P", type=float, help="draw from the likeliest that together have P")
    add("--min-p", metavar="P", type=float, help="drop tokens below P times the likeliest one")
    add("--repetition-penalty", metavar="F", type=float, help="above 1: fewer tokens seen before")
    add("--seed", metavar="N", type=int, help="same seed, same text")
    _add_weights(parser)
    parser.set_defaults(run_verb=commands.run, usage_error=parser.error)


def _add_eval(parsers: Any) -> None:
    parser = _add_verb(
        parsers,
        "eval",
        "measure loss and bits per byte of texts",
        epilog=help_texts.EVAL,
    )
    parser.add_argument("name", metavar="RUN", help="name or folder of a run")
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="file or folder")
    by_position = "loss at each distance from a fresh state, to 16 times the trained length"
    parser.add_argument("--by-position", action="store_true", help=by_position)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    _add_weights(parser)
    parser.set_defaults(run_verb=commands.evaluate)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    help_of_weights = "round the layers' weights: fewer bytes to read for a token"
    kinds = ("fp32", "bf16", "int8")
    parser.add_argument("--weights", choices=kinds, default="fp32", help=help_of_weights)


def _add_gen_data(parsers: Any) -> None:
    summary = "make, curate and trace training text"
    parser = _add_verb(parsers, "gen-data", summary, epilog=help_texts.DATA)
    add = parser.add_argument
    words_help = "curate PATH, explain PATH RECORD, or trace TEXT; without it, records are made"
    add("words", metavar="ACTION", nargs="*", help=words_help)
    add("--list", action="store_true", help="show the kinds of records that can be made")
    add("--kind", metavar="A,B", help="make these kinds (default: all that programs make)")
    add("--count", metavar="N", type=int, help="items of each kind (default: as its file says)")
    add("--seed", metavar="N", type=int, help="same seed, same plan (default: 1337)")
    add("--model", metavar="NAME", default="", help="ask this model (default: the kind's own)")
    host_help = "address of ollama (default: OLLAMA_HOST, else 127.0.0.1:11434)"
    add("--host", metavar="HOST", help=host_help)
    workers_help = "requests at once (default: 1); curate: processes (default: one a core)"
    add("--workers", metavar="N", type=int, help=workers_help)
    add("--dry-run", action="store_true", help="show ten prompts and ask nobody")
    add("--check", action="store_true", help="look at server and model, and take a timed sample")
    add("--out", metavar="DIR", type=Path, help="folder to fill (default: training_data)")
    add("--data", metavar="DIR", type=Path, help="trace: the corpus (default: training_data)")
    add("--rules", metavar="A,B", default="standard", help="curate, explain: rules or sets of them")
    add("--force", action="store_true", help="write over files that somebody has edited")
    parser.set_defaults(run_verb=commands.gen_data, usage_error=parser.error)


def _add_config(parsers: Any) -> None:
    parser = _add_verb(parsers, "config", "show the settings of a run", epilog=help_texts.CONFIG)
    parser.add_argument(
        "action", choices=["show"], help="print each value, where it came from, and its meaning"
    )
    _add_configuration_flags(parser)
    parser.set_defaults(run_verb=commands.config_show)


def _add_doctor(parsers: Any) -> None:
    parser = _add_verb(
        parsers,
        "doctor",
        "show what this machine has, what ys takes of it and what would be faster",
        epilog=help_texts.DOCTOR,
    )
    parser.set_defaults(run_verb=commands.doctor)


def _add_help(parsers: Any, top: argparse.ArgumentParser) -> None:
    parser = parsers.add_parser("help", help="show the help of a verb", allow_abbrev=False)
    parser.add_argument("words", metavar="VERB", nargs="*")

    def show(arguments: argparse.Namespace) -> int:
        top.parse_args([*arguments.words, "--help"])  # prints, then exits with 0
        return 0

    parser.set_defaults(run_verb=show)
