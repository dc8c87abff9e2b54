"""The command `ys`: its verbs, their flags and help, exit codes.

What a verb needs is imported when the verb runs, so that help answers at once and each verb works
without the libraries of the others.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ys_llm import __version__
from ys_llm.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, UserError

if TYPE_CHECKING:
    from ys_llm.config import GenerateConfig, Resolved

Clean = Literal["", "model", "all"]

RUNS_DIR = Path("runs")
_CLEAN: Mapping[str, Clean] = {"": "", "clean": "model", "clean all": "all"}

_DESCRIPTION = "Train, study and talk to small language models whose memory is a state."
_OVERVIEW = """\
examples:
  ys train                                      train on training_data/, or go on with it
  ys run --prompt "Tell me a story about a fox."
  ys help train

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no model yet, 4 back end down,
5 training diverged, 130 stopped by Ctrl-C and 143 by SIGTERM (training saves first)
"""
_TRAIN_EXAMPLES = """\
examples:
  ys train --data my_texts --run mine           train on a folder of your own text
  ys train                                      the same words again: go on where it stopped
  ys train clean                                remove the model, then train anew
  ys train clean all                            its tokenizer and caches too, then train anew
  ys train --set train.learning_rate=1e-3 --set model.n_layers=6

A run is the folder runs/NAME. Without --config, a run that exists goes on with its own saved
configuration, and a new one starts from the defaults. Later ones win: defaults, the file, YS_* in
the environment (YS_TRAIN__SEED=7 sets train.seed), --set. `ys config show` lists every setting.
"""
_RUN_EXAMPLES = """\
examples:
  ys run                                        prompt after prompt; `exit` leaves
  ys run mine --prompt "Once upon a time" --max-tokens 100 --seed 1
  ys run < letter.txt                           complete a text; its last line break is dropped
  ys run --json --logprobs 5 --max-tokens 0 --prompt "score this"

Text goes to stdout, timings to stderr. What is not given here is as in `generate` of the run's
configuration.
"""
_EVAL_EXAMPLES = """\
examples:
  ys eval default training_data
  ys eval runs/mine novel.txt letters --json
"""
_DATA_EXAMPLES = """\
examples:
  ys gen-data --out my_data
  ys gen-data configs/gen/starter.yaml --out my_data --force
"""
_CONFIG_EXAMPLES = """\
examples:
  ys config show
  ys config show --config configs/quickstart.yaml --set train.seed=7
  ys config show > my.yaml                      what is shown is itself a configuration file
"""


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
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; without this, Python complains again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _speak_utf8() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


def _debugging(arguments: argparse.Namespace) -> bool:
    return arguments.debug or os.environ.get("YS_DEBUG", "") not in ("", "0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ys",
        description=_DESCRIPTION,
        epilog=_OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ys {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also: YS_DEBUG=1)")
    parser.set_defaults(run_verb=lambda _arguments: _show_overview(parser))
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_train(verbs)
    _add_run(verbs)
    _add_eval(verbs)
    _add_gen_data(verbs)
    _add_config(verbs)
    _add_help(verbs, parser)
    return parser


def _show_overview(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return EXIT_USAGE


def _add_verb(verbs: Any, name: str, summary: str, *, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
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


def _resolve(arguments: argparse.Namespace) -> Resolved:
    from ys_llm.config import load_config
    from ys_llm.yaml_text import dump_inline

    overrides = list(arguments.set)
    if arguments.data is not None:
        overrides.append(f"data.path={dump_inline(arguments.data)}")
    if arguments.run is not None:
        overrides.append(f"run={dump_inline(arguments.run)}")
    resolved = load_config(arguments.config, overrides=overrides, environment=os.environ)
    saved = RUNS_DIR / resolved.config.run / "config.yaml"
    if arguments.config is None and saved.exists():
        return load_config(saved, overrides=overrides, environment=os.environ)
    return resolved


def _add_train(verbs: Any) -> None:
    parser = _add_verb(
        verbs, "train", "train a model, or go on where training stopped", examples=_TRAIN_EXAMPLES
    )
    words_help = "first remove the model, or all that the run has made; the corpus stays"
    parser.add_argument("words", metavar="clean [all]", nargs="*", help=words_help)
    _add_configuration_flags(parser)
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.set_defaults(run_verb=_train, usage_error=parser.error)


def _train(arguments: argparse.Namespace) -> int:
    words = " ".join(arguments.words)
    if words not in _CLEAN:
        arguments.usage_error(f"expected nothing, `clean` or `clean all`, found `{words}`")
    clean = _CLEAN[words]
    resolved = _resolve(arguments)
    if clean and not _may_remove(resolved.config.run, clean, asking=not arguments.yes):
        return EXIT_FAILED
    from ys_llm.train import train

    train(resolved, runs_dir=RUNS_DIR, clean=clean)
    return 0


def _may_remove(run: str, clean: Literal["model", "all"], *, asking: bool) -> bool:
    from ys_llm.checkpoint import paths_to_clean

    paths = paths_to_clean(RUNS_DIR / run, clean)
    for path in paths:
        print(f"removing {path}{'/' if path.is_dir() else ''}", file=sys.stderr)
    if not paths or not asking or not sys.stdin.isatty():
        return True
    print("Remove these and train anew? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was removed", file=sys.stderr)
    return False


def _add_run(verbs: Any) -> None:
    parser = _add_verb(verbs, "run", "let a trained model write", examples=_RUN_EXAMPLES)
    add = parser.add_argument
    add("name", metavar="RUN", nargs="?", help="name or folder of a run (default: the latest)")
    add("--prompt", metavar="TEXT", help="complete this and stop")
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
    parser.set_defaults(run_verb=_run, usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.logprobs < 0:
        arguments.usage_error(f"--logprobs must be at least 0, found {arguments.logprobs}")
    if arguments.logprobs and not arguments.json:
        arguments.usage_error("--logprobs needs --json")
    prompt = _prompt(arguments)
    from ys_llm.checkpoint import find_run, load_run
    from ys_llm.repl import run_interactive, run_once

    loaded = load_run(find_run(RUNS_DIR, arguments.name))
    sampling = _sampling(arguments, loaded.config.generate)
    if prompt is None:
        run_interactive(loaded, sampling, plain=arguments.plain)
    else:
        run_once(
            loaded,
            prompt,
            sampling,
            as_json=arguments.json,
            logprobs=arguments.logprobs,
            plain=arguments.plain,
        )
    return 0


def _sampling(arguments: argparse.Namespace, saved: GenerateConfig) -> GenerateConfig:
    from dataclasses import asdict

    from ys_llm.config import GenerateConfig, parse_dataclass

    values = asdict(saved)
    given = {name: getattr(arguments, name) for name in values}
    values.update({name: value for name, value in given.items() if value is not None})
    return parse_dataclass(GenerateConfig, values, where="ys run")


def _prompt(arguments: argparse.Namespace) -> str | Iterable[str] | None:
    """--prompt, else what stdin holds; None where somebody sits at a terminal."""
    text: str | None = arguments.prompt
    if text is not None and text.encode(errors="ignore").decode() != text:
        raise UserError("--prompt is not UTF-8 text", "Convert it.", exit_code=EXIT_USAGE)
    if text is not None:
        return text
    if not sys.stdin.isatty():
        return _text_of_stdin()
    if arguments.json:
        arguments.usage_error("--json needs --prompt, or a text on stdin")
    return None


def _text_of_stdin() -> Iterator[str]:
    """Pieces of bounded size, whatever the length, without the last line break."""
    from ys_llm.repl import pieces_of

    # No translation of line breaks: the model is to read exactly what was sent.
    sys.stdin.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    held = ""
    try:
        for piece in pieces_of(sys.stdin):
            text = held + piece
            body = text.removesuffix("\n").removesuffix("\r")
            held = text[len(body) :]
            yield body
    except UnicodeDecodeError as error:
        raise UserError("the text on stdin is not UTF-8", "Convert it, as with iconv.") from error
    if held not in ("", "\n", "\r\n"):
        yield held


def _add_eval(verbs: Any) -> None:
    parser = _add_verb(
        verbs, "eval", "measure loss and bits per byte of texts", examples=_EVAL_EXAMPLES
    )
    parser.add_argument("name", metavar="RUN", help="name or folder of a run")
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="file or folder")
    by_position = "loss at each distance from a fresh state, to 16 times the trained length"
    parser.add_argument("--by-position", action="store_true", help=by_position)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.set_defaults(run_verb=_eval)


def _eval(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ys_llm.checkpoint import find_run, load_run
    from ys_llm.evaluate import evaluate_paths, positions_of_paths

    loaded = load_run(find_run(RUNS_DIR, arguments.name))
    if arguments.by_position:
        positions = positions_of_paths(loaded, arguments.paths)
        rows = [{"path": path, **asdict(row)} for path, row in positions]
    else:
        rows = [
            {"path": row.path, "documents": row.documents, **asdict(row.result)}
            for row in evaluate_paths(loaded, arguments.paths)
        ]
    if arguments.json:
        import json

        print(json.dumps(rows, ensure_ascii=False))
    else:
        print(_table(rows))
    return 0


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = [name.replace("_", " ") for name in rows[0]]
    lines = [header, *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join("  ".join(line) for line in padded)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _add_gen_data(verbs: Any) -> None:
    parser = _add_verb(verbs, "gen-data", "write a corpus from a recipe", examples=_DATA_EXAMPLES)
    add = parser.add_argument
    add("recipe", metavar="RECIPE", nargs="?", type=Path, help="YAML file (default: built in)")
    add("--out", metavar="DIR", type=Path, help="folder to fill (default: training_data)")
    add("--force", action="store_true", help="write over files that somebody has edited")
    parser.set_defaults(run_verb=_gen_data)


def _gen_data(arguments: argparse.Namespace) -> int:
    from ys_llm.gendata import generate

    print(generate(arguments.recipe, arguments.out, force=arguments.force))
    return 0


def _add_config(verbs: Any) -> None:
    parser = _add_verb(verbs, "config", "show the settings of a run", examples=_CONFIG_EXAMPLES)
    parser.add_argument(
        "action", choices=["show"], help="print each value, where it came from, and its meaning"
    )
    _add_configuration_flags(parser)
    parser.set_defaults(run_verb=_config_show)


def _config_show(arguments: argparse.Namespace) -> int:
    from ys_llm.config import annotated_yaml

    print(annotated_yaml(_resolve(arguments)), end="")
    return 0


def _add_help(verbs: Any, top: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser("help", help="show the help of a verb", allow_abbrev=False)
    parser.add_argument("words", metavar="VERB", nargs="*")

    def show(arguments: argparse.Namespace) -> int:
        top.parse_args([*arguments.words, "--help"])  # prints, then exits with 0
        return 0

    parser.set_defaults(run_verb=show)
