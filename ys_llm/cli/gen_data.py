"""`ys gen-data`: generate, curate and trace training text."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ys_llm.errors import UsageError

EXAMPLES = """\
examples:
  ys gen-data --out my_data                     every kind that a program makes; no server needed
  ys gen-data --list                            all kinds of records, and where they come from
  ys gen-data --check --model llama3.1          check server, model and speed
  ys gen-data --kind bedtime,trivia --dry-run   ten prompts; no request is sent
  ys gen-data --kind bedtime --sample           ten records and their verdicts; nothing is written
  ys gen-data --kind bedtime --count 200 --out my_data
  ys gen-data curate my_data --out clean        rules, duplicates; a report and a diff of every edit
  ys gen-data preview my_data                   samples, lengths, rules and refusals as one page
  ys gen-data explain my_data "once upon a"     what the rules say about one record
  ys gen-data trace "once upon a"               where a sentence came from

A kind is one YAML file: those that come with ys, and your own in the folder gen/kinds/ here, which
add to them or replace them by name. Each answer of a model is written to the folder's journal at
once: stopped at any point, the same command resumes, and a finished plan does nothing. 20 dropped
items in a row, or at the end of a plan most of a shorter run, give exit code 4; --retry-dropped
gives dropped items further tries.
"""
_MAX_PROCESSES = 8  # for curation
_ACTIONS: Mapping[str, int] = {
    "curate": 1,
    "explain": 2,
    "preview": 1,
    "trace": 1,
}  # words that follow


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys gen-data`; None is what was not given."""

    action: list[str]
    list: bool
    kind: str | None
    count: int | None
    seed: int | None
    model: str
    host: str | None
    workers: int | None
    dry_run: bool
    sample: bool
    check: bool
    out: Path | None
    data: Path | None
    rules: str
    force: bool
    retry_dropped: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of --kind."""
        return tuple(name.strip() for name in (self.kind or "").split(",") if name.strip())

    @property
    def address(self) -> str:
        """--host, else OLLAMA_HOST; "" is ollama's own default."""
        return os.environ.get("OLLAMA_HOST", "") if self.host is None else self.host


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys gen-data`."""
    add = parser.add_argument
    actions = "curate PATH, explain PATH RECORD, preview PATH, or trace TEXT"
    action_help = f"{actions}; without it, generate records"
    add("action", metavar="ACTION", nargs="*", help=action_help)
    add("--list", action="store_true", help="list the kinds of records")
    add("--kind", metavar="A,B", help="generate these kinds (default: all that programs make)")
    add("--count", metavar="N", type=int, help="items of each kind (default: as its file says)")
    add("--seed", metavar="N", type=int, help="same seed, same plan (default: 1337)")
    add("--model", metavar="NAME", default="", help="ask this model (default: the kind's own)")
    host_help = (
        "address of ollama (default: OLLAMA_HOST, else 127.0.0.1:11434); openai:HOST for a server "
        "of OpenAI's protocol"
    )
    add("--host", metavar="HOST", help=host_help)
    workers_help = (
        "concurrent requests at most (default: 1); curate: processes (default: one a core)"
    )
    add("--workers", metavar="N", type=int, help=workers_help)
    add("--dry-run", action="store_true", help="show ten prompts; send no request")
    sample_help = "make ten records and show their verdicts; write nothing"
    add("--sample", action="store_true", help=sample_help)
    add("--check", action="store_true", help="check server, model and speed")
    out_help = "folder to fill (default: training_data); preview: the page (default: beside PATH)"
    add("--out", metavar="DIR", type=Path, help=out_help)
    add("--data", metavar="DIR", type=Path, help="trace: the corpus (default: training_data)")
    rules_help = "curate, explain, preview: rules or sets of them"
    add("--rules", metavar="A,B", default="standard", help=rules_help)
    add("--force", action="store_true", help="overwrite files edited since")
    retry_help = "give dropped items further tries, with new seeds"
    add("--retry-dropped", action="store_true", help=retry_help)


def run(arguments: Arguments) -> int:
    """Do the action, or what the flags ask for; the exit code."""
    action, *words = arguments.action or [""]
    if action in _ACTIONS:
        return _process(arguments, action, words)
    _check(arguments, action)
    from ys_llm.gendata import command

    names = list(arguments.kinds)
    if arguments.list:
        print(command.list_kinds())
        return 0
    if arguments.check:
        models = [arguments.model] if arguments.model else command.models_of(names)
        report, code = command.check(arguments.address, models)
        print(report)
        return code
    return _generate(arguments)


def _check(arguments: Arguments, action: str) -> None:
    """Refuse arguments that contradict each other."""
    if action:
        raise UsageError(
            f"expected curate, explain, preview or trace, found `{action}`; "
            "name what to generate by --kind"
        )
    if arguments.kind is not None and not arguments.kinds:
        raise UsageError("--kind names no kind; --list shows them")
    numbers = (arguments.workers, arguments.count)
    if any(number is not None and number < 1 for number in numbers):
        raise UsageError("--workers and --count must be at least 1")


def _generate(arguments: Arguments) -> int:
    from ys_llm.gendata import command

    seed = command.DEFAULT_SEED if arguments.seed is None else arguments.seed
    if arguments.dry_run:
        names, model = list(arguments.kinds), arguments.model
        print(command.dry_run(names, seed=seed, model=model), flush=True)
        command.refuse_long_prompts(names, seed=seed, count=arguments.count, model=model)
        return 0
    if arguments.sample:
        host = arguments.address
        made = command.sample(list(arguments.kinds), seed=seed, model=arguments.model, host=host)
        for text in made:
            print(f"{text}\n", flush=True)
        return 0
    request = command.GenerateRequest(
        arguments.kinds,
        arguments.out or command.DEFAULT_OUT,
        count=arguments.count,
        seed=seed,
        model=arguments.model,
        host=arguments.address,
        workers=arguments.workers or 1,
        force=arguments.force,
        retry_dropped=arguments.retry_dropped,
    )
    return command.make(request)


def _process(arguments: Arguments, action: str, words: list[str]) -> int:
    """`curate`, `explain`, `preview` and `trace`: actions on a corpus that exists."""
    if len(words) != _ACTIONS[action]:
        raise UsageError("expected curate PATH, explain PATH RECORD, preview PATH or trace TEXT")
    from ys_llm.gendata import command

    rules, code = arguments.rules.split(","), 0
    if action == "curate":
        if arguments.out is None:
            raise UsageError("curate needs --out DIR")
        workers = arguments.workers or min(os.cpu_count() or 1, _MAX_PROCESSES)
        report = command.curate(Path(words[0]), arguments.out, rules=rules, workers=workers)
    elif action == "preview":
        report = command.preview(Path(words[0]), arguments.out, rules=rules)
    elif action == "explain":
        report = command.explain(Path(words[0]), words[1], rules=rules)
    else:
        report, code = command.trace(words[0], arguments.data or command.DEFAULT_OUT)
    print(report)
    return code
