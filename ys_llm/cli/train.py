"""`ys train`: clean, forecast, or train."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ys_llm.cli.common import (
    RUNS_DIR,
    ConfigArguments,
    Renamed,
    add_config_flags,
    load,
    override,
    resolve,
)
from ys_llm.errors import EXIT_FAILED, EXIT_USAGE, UsageError, UserError, command_line
from ys_llm.system.place import Place, place_of_process

if TYPE_CHECKING:
    from ys_llm.config.schema import Config
    from ys_llm.config.sources import Override, Resolved
    from ys_llm.runs.folder import CleanScope, Removal
    from ys_llm.training.elastic.join import Elastic

EXAMPLES = """\
examples:
  ys train --data my_texts --run mine           train on a folder of your own text
  ys train --run mine                           resume, with its own settings
  ys train --config quickstart                  a shipped configuration, or a file of your own
  ys train --minutes 30                         as many steps as half an hour has here
  ys train --minutes 30 --size auto             a model of the size that learns most in that time
  ys train --dry-run                            show what it needs: parameters, memory, time
  ys train --resume-step 400                    resume from the checkpoint of step 400
  ys train --processes 4 --max-restarts 3       on four GPUs; a process that dies is replaced
  ys train --elastic HOST --run mine            with others, of which some may fail
  ys train --init-from mine --data poems        start the run mine-poems from the weights of mine
  ys train clean                                remove the model, then train from scratch
  ys train clean all --dry-run                  list what would be removed, with its tokenizer
  ys train --set train.learning_rate=1e-3 --set model.n_layers=6

A run is the folder runs/NAME. Without --config, a run that exists resumes with its own saved
configuration, and a new one uses the defaults. Later sources win: defaults, the file, YS_* in the
environment (YS_TRAIN__SEED=7 sets train.seed), --set. `ys config show` lists every setting.
Ctrl-C finishes the step and saves; press it again to stop immediately: the last checkpoint is kept.
"""
_SCOPES: Mapping[str, CleanScope | None] = {"": None, "clean": "model", "clean all": "all"}


@dataclass(frozen=True)
class Arguments(ConfigArguments):
    """The arguments of `ys train`."""

    action: list[str] = field(default_factory=list)
    minutes: str | None = None
    size: str | None = None
    init_from: str | None = None
    resume_step: int | None = None
    processes: int | None = None
    max_restarts: int = 0
    elastic: str | None = None
    replicas: int = 0
    dry_run: bool = False
    yes: bool = False

    @property
    def words(self) -> str:
        """ "", "clean" or "clean all"."""
        return " ".join(self.action)

    def flags(self) -> dict[str, object]:
        """The flags of the configuration again, for a command to advise."""
        return {**super().flags(), "minutes": self.minutes, "size": self.size}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys train`."""
    add = parser.add_argument
    action_help = "first remove the model, or everything that the run has written; the text stays"
    add("action", metavar="clean [all]", nargs="*", help=action_help)
    add_config_flags(parser)
    help_of_minutes = "train for this long in all: --set train.minutes=M instead of max_steps"
    add("--minutes", metavar="M", help=help_of_minutes)
    help_of_size = "sizes of the model: auto = by --minutes and this machine; --set model.size=NAME"
    add("--size", metavar="NAME", help=help_of_size)
    add("--init-from", metavar="RUN", help="start a new run from this run's weights, on --data")
    add("--resume-step", metavar="STEP", type=int, help="resume from the checkpoint of this step")
    help_of_processes = (
        "start as many on this machine, which share every batch; see docs/distributed.md"
    )
    add("--processes", metavar="N", type=int, help=help_of_processes)
    help_of_restarts = "with --processes: start them again this often where one dies (default: 0)"
    add("--max-restarts", metavar="N", type=int, default=0, help=help_of_restarts)
    help_of_elastic = "be one of several replicas that come and go; see docs/elastic.md"
    add("--elastic", metavar="HOST[:PORT]", help=help_of_elastic)
    help_of_replicas = "with --elastic: exactly N take part, more are spares (default: all)"
    add("--replicas", metavar="N", type=int, default=0, help=help_of_replicas)
    add("--dry-run", action="store_true", help="show sizes, memory and time; change nothing")
    add("--yes", action="store_true", help="clean: remove without asking")
    add("--new-data", action=Renamed, now="--init-from RUN --data PATH")
    add("--from", action=Renamed, now="--resume-step STEP")


def run(arguments: Arguments) -> int:
    """Clean, forecast, or train; the exit code."""
    _check(arguments)
    resolved = (
        resolve(arguments, _own_settings(arguments))
        if arguments.init_from is None
        else _resolve_new(arguments)
    )
    scope, place = _SCOPES[arguments.words], place_of_process()
    if scope and place is not None and place.local_size < place.size:
        raise UsageError(
            f"`{arguments.words}` is for one process, a restart would clean again; type first: "
            + command_line("train", *arguments.action, **arguments.flags())
        )
    if place is not None and (place.rank or place.restarts):
        scope = None  # process 0 cleans, once
    if scope and not _clean(resolved, scope, arguments):
        return EXIT_FAILED
    if arguments.dry_run:
        return 0 if scope else _forecast(resolved)
    if place is None and arguments.processes is not None:
        return _launch(arguments, resolved.config)
    if resolved.config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    return _train(resolved, arguments, place)


def _train(resolved: Resolved, arguments: Arguments, place: Place | None) -> int:
    """Train in this process, alone or as one of several; the exit code."""
    from ys_llm.training.loop import train
    from ys_llm.training.memory import keep_freed_memory
    from ys_llm.training.ranks.group import LeaveQuietly

    keep_freed_memory()
    step = arguments.resume_step
    try:
        elastic = _elastic(arguments)
        train(resolved, runs_dir=RUNS_DIR, resume_step=step, place=place, elastic=elastic)
    except LeaveQuietly as left:
        return left.exit_code
    return 0


def _elastic(arguments: Arguments) -> Elastic | None:
    """What --elastic and --replicas say; UsageError for a port that is none."""
    if arguments.elastic is None:
        return None
    os.environ.setdefault("RUST_LOG", "warn")  # torchft would write a line for every message
    from ys_llm.training.elastic.join import DEFAULT_PORT, Elastic

    host, _, port = arguments.elastic.removeprefix("http://").rstrip("/").partition(":")
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise UsageError(f"--elastic must be HOST or HOST:PORT, found {arguments.elastic}")
    return Elastic(host, int(port or DEFAULT_PORT), arguments.replicas)


def _launch(arguments: Arguments, config: Config) -> int:
    """Start --processes on this machine, and wait for them."""
    from ys_llm.cli.processes import launch
    from ys_llm.training.tuned_run import check_tuning_is_shareable

    assert arguments.processes is not None, "one process needs no launcher"
    check_tuning_is_shareable(config, arguments.processes)
    flags = {**arguments.flags(), "init_from": arguments.init_from}
    words = shlex.split(command_line("train", **flags, resume_step=arguments.resume_step))[1:]
    return launch(words, processes=arguments.processes, max_restarts=arguments.max_restarts)


def _check(arguments: Arguments) -> None:
    """Refuse arguments that contradict each other."""
    if arguments.words not in _SCOPES:
        raise UsageError(f"expected nothing, `clean` or `clean all`, found `{arguments.words}`")
    if arguments.resume_step is not None and arguments.resume_step < 0:
        raise UsageError(f"--resume-step must be at least 0, found {arguments.resume_step}")
    starts = arguments.resume_step is not None or arguments.init_from is not None
    if arguments.words and starts:
        raise UsageError(
            f"`{arguments.words}` removes the checkpoints that --resume-step and --init-from need"
        )
    if arguments.processes is not None and arguments.processes < 1:
        raise UsageError(f"--processes must be at least 1, found {arguments.processes}")
    if arguments.max_restarts < 0 or (arguments.max_restarts and not arguments.processes):
        raise UsageError("--max-restarts must be 0 or more, and needs --processes")
    if arguments.elastic is not None and arguments.processes is not None:
        raise UsageError("--elastic and --processes cannot be combined: a replica is one process")
    if arguments.replicas < 0 or (arguments.replicas and arguments.elastic is None):
        raise UsageError("--replicas must be 0 or more, and needs --elastic")
    if arguments.init_from is not None and arguments.config:
        raise UsageError("--init-from uses the configuration of that run; change it with --set")
    if arguments.init_from is not None and arguments.size:
        raise UsageError("--init-from keeps the size of that run: its weights have a shape")
    if arguments.init_from is not None and not (arguments.data or arguments.run):
        raise UsageError("--init-from needs --data PATH, the text of the new run, or --run NAME")


def _own_settings(arguments: Arguments) -> list[Override]:
    """What --minutes and --size set.

    The text of --minutes is YAML, so that a wrong one is named as in a file.
    """
    from ys_llm.config.sources import Override

    minutes = arguments.minutes
    return [
        *([] if minutes is None else [Override("train.minutes", minutes, "--minutes")]),
        *override("model.size", arguments.size, flag="--size"),
    ]


def _resolve_new(arguments: Arguments) -> Resolved:
    """The configuration of --init-from: that of the other run, with its weights to start from."""
    from ys_llm.runs.folder import find_run

    source = find_run(RUNS_DIR, arguments.init_from)
    slug = re.sub(r"[^\w.-]+", "-", Path(arguments.data or "").absolute().stem).strip("-.")
    name = arguments.run or f"{source.name}-{slug}"
    init_from = source.name if source.parent == RUNS_DIR else str(source.absolute())
    saved = RUNS_DIR / name / "config.yaml"
    resolved = load(
        saved if saved.exists() else source / "config.yaml",
        [
            *arguments.set,
            *_own_settings(arguments),
            *override("data.path", arguments.data, flag="--data"),
            *override("run", name, flag="--run"),
            *override("train.init_from", init_from, flag="--init-from"),
        ],
    )
    return replace(resolved, flags={"init_from": arguments.init_from, **arguments.flags()})


def _forecast(resolved: Resolved) -> int:
    from ys_llm.training.forecast import dry_run
    from ys_llm.training.memory import keep_freed_memory

    keep_freed_memory()  # as in training: memory is forecast
    print(dry_run(resolved, runs_dir=RUNS_DIR))
    return 0


def _clean(resolved: Resolved, scope: CleanScope, arguments: Arguments) -> bool:
    """List what would be removed, ask, and remove it; whether that was done."""
    from ys_llm.runs.folder import list_removals, locked, remove

    run, corpus = RUNS_DIR / resolved.config.run, Path(resolved.config.data.path)
    if not list_removals(run, scope, corpus=corpus):
        return True
    with ExitStack() as stack:
        if not arguments.dry_run:  # before anything is listed: it may be in training
            stack.enter_context(locked(run))
        removals = list_removals(run, scope, corpus=corpus)
        _list(removals, dry_run=arguments.dry_run)
        if arguments.dry_run:
            return True
        if not arguments.yes and not _confirmed(arguments):
            print("nothing was removed", file=sys.stderr)
            return False
        remove(removals)
    return True


def _list(removals: list[Removal], *, dry_run: bool) -> None:
    """What is to be removed, one a line, and the sum."""
    from ys_llm.system.sizes import human_size

    output = sys.stdout if dry_run else sys.stderr
    for item in removals:
        name = f"{item.path}{'/' if item.path.is_dir() else ''}"
        verb = "would remove" if dry_run else "removing"
        print(f"{verb} {name}, {human_size(item.bytes)}", file=output)
    if len(removals) > 1:
        print(f"total {human_size(sum(item.bytes for item in removals))}", file=output)


def _confirmed(arguments: Arguments) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        command = command_line("train", *arguments.action, **arguments.flags(), yes=True)
        raise UserError(
            "there is no terminal to ask at, and nothing was removed",
            f"To remove these, type: {command}",
            exit_code=EXIT_USAGE,
        )
    print("Remove these and train from scratch? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
