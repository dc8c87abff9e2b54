"""`ys sft`: fine-tune a trained run on conversations, records, texts or preferences."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ys_llm.cli.common import RUNS_DIR, load, override
from ys_llm.errors import UsageError, UserError, command_line
from ys_llm.system.place import place_of_process

if TYPE_CHECKING:
    from ys_llm.config.schema import Config
    from ys_llm.config.sources import Override, Resolved

EXAMPLES = """\
examples:
  ys sft quickstart chats.jsonl --run mine       all weights, on the replies alone
  ys sft quickstart chats.jsonl --method lora    adapters alone, a small file beside the base
  ys sft quickstart poems --method state         the initial state alone, some kilobytes
  ys sft mine pairs.jsonl --objective preferences    DPO on chosen and rejected replies
  ys sft quickstart chats.jsonl --replay 0       nothing but the examples: learns and forgets more
  ys sft quickstart chats.jsonl --minutes 3 --set sft.lora.rank=16

BASE is a run with a model; the new run has its architecture and, for conversations, tokens for the
roles beside its own. What it forgets is shown as bits per byte of the base's held-out text. The
same command, or `ys train --run NAME`, resumes. Without --run the new run is called BASE-DATA.
Records longer than train.seq_len are counted and named; they go on in the next row, with the state.
"""
# What fine-tuning changes in the settings of the base, unless they are set.
_DEFAULTS: Mapping[str, object] = {
    "model.size": None,
    "data.batching": "documents",
    "data.long_documents": "carry",
    "data.validation_fraction": 0.05,
    "train.minutes": None,
    "train.stages": [],
    "train.batch_size": 16,
    "train.grad_accum_steps": 1,
    "train.optimizer": "adamw",
    "train.schedule": "cosine",
    "train.cooldown_fraction": 0.2,
    "train.warmup_steps": 0.05,
    "train.final_learning_rate": 0.0,
    "train.weight_decay": 0.01,
    "train.eval_interval": 0.1,
    "train.eval_tokens": 50_000,
    "train.checkpoint_interval": 0.25,
    "train.sample_interval": 0.25,
    "train.sample_prompt": "",
    "train.patience": 3,
    "train.reference_run": "",
    "train.select_fraction": 1.0,
    "train.teacher": "",
    "train.teacher_weight": 0.5,
    "train.teacher_temperature": 1.0,
}
_RATES = {"full": 5e-4, "lora": 1e-2, "state": 3e-2}
_REPLAY = 0.5  # what this and these rates give is measured in docs/fine-tuning.md
_PREFERENCE_RATE = 0.1  # of the others
_EPOCHS = 3
_NOT_PASSED_ON = ("base", "data", "processes", "dry_run")  # to the processes that are started


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys sft`; None is what was not given."""

    base: str
    data: str
    method: Literal["full", "lora", "state"] | None
    objective: Literal["replies", "preferences"] | None
    epochs: float | None
    minutes: float | None
    replay: float | None
    run: str | None
    set: list[str]
    dry_run: bool
    processes: int | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys sft`."""
    add = parser.add_argument
    add("base", metavar="BASE", help="name or folder of the run to fine-tune")
    add("data", metavar="DATA", help="file or folder of examples")
    method_help = "what is trained: all weights, adapters, or the initial state (default: full)"
    add("--method", choices=("full", "lora", "state"), help=method_help)
    objective_help = "learn replies, or preferences between two (default: replies)"
    add("--objective", choices=("replies", "preferences"), help=objective_help)
    add("--epochs", metavar="N", type=float, help=f"passes over the data (default: {_EPOCHS})")
    add("--minutes", metavar="M", type=float, help="train for this long instead of --epochs")
    add(
        "--replay",
        metavar="SHARE",
        type=float,
        help=f"share of the rows that are text of the base (default: {_REPLAY:g})",
    )
    add("--run", metavar="NAME", help="name of the new run (default: BASE-DATA)")
    set_help = "one setting, its value written as YAML; may be repeated"
    add("--set", metavar="A.B=VALUE", action="append", default=[], help=set_help)
    add("--dry-run", action="store_true", help="show sizes, memory and time; change nothing")
    processes_help = "start as many on this machine, which share every batch"
    add("--processes", metavar="N", type=int, help=processes_help)


def run(arguments: Arguments) -> int:
    """Fine-tune, resume, or forecast; the exit code."""
    if arguments.epochs is not None and arguments.minutes is not None:
        raise UsageError("--epochs and --minutes are two lengths; leave out one")
    if arguments.processes is not None and arguments.processes < 1:
        raise UsageError(f"--processes must be at least 1, found {arguments.processes}")
    resolved, place = resolve(arguments), place_of_process()
    from ys_llm.training.memory import keep_freed_memory

    keep_freed_memory()
    if arguments.dry_run:
        from ys_llm.training.forecast import dry_run

        print(dry_run(resolved, runs_dir=RUNS_DIR))
        return 0
    if place is None and arguments.processes is not None:
        return _launch(arguments, resolved.config)
    from ys_llm.training.loop import train
    from ys_llm.training.ranks.group import LeaveQuietly

    try:
        train(resolved, runs_dir=RUNS_DIR, place=place)
    except LeaveQuietly as left:
        return left.exit_code
    return 0


def _launch(arguments: Arguments, config: Config) -> int:
    """Start --processes on this machine, and wait for them."""
    from ys_llm.cli.processes import launch
    from ys_llm.training.tuned_run import check_tuning_is_shareable

    assert arguments.processes is not None, "one process needs no launcher"
    check_tuning_is_shareable(config, arguments.processes)
    given = {key: value for key, value in vars(arguments).items() if key not in _NOT_PASSED_ON}
    words = shlex.split(command_line("sft", arguments.base, arguments.data, **given))[1:]
    return launch(words, processes=arguments.processes, max_restarts=0)


def resolve(arguments: Arguments) -> Resolved:
    """The base's settings, changed for fine-tuning; of a run that exists, its own."""
    from ys_llm.runs.folder import find_run

    base = find_run(RUNS_DIR, arguments.base)
    slug = re.sub(r"[^\w.-]+", "-", Path(arguments.data).absolute().stem).strip("-.")
    name = arguments.run or f"{base.name}-{slug}"
    init_from = base.name if base.parent == RUNS_DIR else str(base.absolute())
    saved = RUNS_DIR / name / "config.yaml"
    begins = [] if saved.exists() else _changes(arguments, base)
    resolved = load(
        saved if saved.exists() else base / "config.yaml",
        [
            *begins,
            *_typed(arguments),
            *arguments.set,
            *override("data.path", arguments.data, flag="--data"),
            *override("run", name, flag="--run"),
            *override("train.init_from", init_from, flag="--init-from"),
        ],
    )
    return replace(resolved, flags={"run": name})


def _typed(arguments: Arguments) -> list[Override]:
    """What the flags set."""
    return [
        *override("sft.method", arguments.method, flag="--method"),
        *override("sft.objective", arguments.objective, flag="--objective"),
        *override("sft.epochs", arguments.epochs, flag="--epochs"),
        *override("sft.replay", arguments.replay, flag="--replay"),
        *override("train.minutes", arguments.minutes, flag="--minutes"),
    ]


def _changes(arguments: Arguments, base: Path) -> list[Override]:
    """What fine-tuning sets of its own, where neither the environment nor the user sets it."""
    from ys_llm.config.sft import SftConfig
    from ys_llm.config.sources import Override
    from ys_llm.config.strict_reader import to_plain
    from ys_llm.config.yaml_io import dump_inline

    method = arguments.method or "full"
    rate = _RATES[method] * (_PREFERENCE_RATE if arguments.objective == "preferences" else 1)
    own = {f"sft.{name}": value for name, value in to_plain(SftConfig()).items()}
    own["sft.replay"] = _replay(arguments, base)
    changes = {**_DEFAULTS, **own, "train.learning_rate": rate, "sft.method": method}
    if arguments.minutes is None and not _is_set("train.max_steps", arguments.set):
        changes["sft.epochs"] = _EPOCHS
    return [
        Override(name, dump_inline(value), "fine-tuning")
        for name, value in changes.items()
        if not _is_set(name, [])
    ]


def _replay(arguments: Arguments, base: Path) -> float:
    """The share of rows of the base's text, where there is any and it can be mixed in."""
    from ys_llm.training.tuning import pretrained

    if arguments.method == "state" or arguments.objective == "preferences":
        return 0.0
    try:
        _, config = pretrained(base)
    except UserError:  # the run that was pretrained is not there
        return 0.0
    return _REPLAY if Path(config.data.path).exists() else 0.0


def _is_set(name: str, typed: Sequence[str]) -> bool:
    """Whether a setting is typed, or stands in the environment."""
    variable = "YS_" + name.upper().replace(".", "__")
    return variable in os.environ or any(text.split("=")[0].strip() == name for text in typed)
