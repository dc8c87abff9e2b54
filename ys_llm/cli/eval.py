"""`ys eval`: loss and bits per byte, loss by position, recall, tasks; as tables or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ys_llm.cli.common import (
    RUNS_DIR,
    Device,
    Quantization,
    Renamed,
    add_device_flag,
    add_quantize_flag,
    load_quantized,
)
from ys_llm.errors import UsageError, UserError, command_line

if TYPE_CHECKING:
    from ys_llm.evaluation.obedience import Judge
    from ys_llm.evaluation.tasks.suite import Result
    from ys_llm.runs.model_files import LoadedRun

EXAMPLES = """\
examples:
  ys eval default training_data
  ys eval runs/mine novel.txt letters --json
  ys eval default training_data --recall --held-out   does it remember names?
  ys eval default training_data --obedience 300 --held-out
  ys eval default training_data --quantize int8   what quantised weights lose
  ys eval default training_data --held-out --tasks bits_by_kind,recall,contrast,obedience
  ys eval default --tasks passkey,mqar,copying   digits in a long text, pairs, random tokens

Each result of --tasks is also written to runs/RUN/evaluations/TASK.json.
"""
# What --tasks offers: with a text of yours, and without.
TEXT_TASKS = ("bits_by_kind", "bits_by_position", "recall", "contrast", "obedience")
TASKS = ("passkey", "mqar", "copying")
LEARNED = ("parity", "s3", "s5", "selective_copying")  # no text teaches them


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys eval`."""

    name: str
    paths: list[Path]
    by_position: bool
    recall: bool
    obedience: int | None
    contrast: int | None
    tasks: str | None
    lengths: str | None
    long: bool
    samples: int | None
    held_out: bool
    json: bool
    quantize: Quantization
    device: Device


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys eval`."""
    add = parser.add_argument
    add("name", metavar="RUN", help="name or folder of a run")
    paths = "file or folder; none where no task of --tasks needs one"
    add("paths", metavar="PATH", nargs="*", type=Path, help=paths)
    by_position = "loss by distance from a fresh state, up to 16 times the trained length"
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--by-position", action="store_true", help=by_position)
    recall = "loss on rare words when they come first and when they come again, by distance"
    modes.add_argument("--recall", action="store_true", help=recall)
    obedience = "answer N prompts of each kind, and judge whether the answers do what they ask"
    modes.add_argument("--obedience", metavar="N", type=int, help=obedience)
    contrast = "loss of N answers after their own prompts and after seven others"
    modes.add_argument("--contrast", metavar="N", type=int, help=contrast)
    tasks = f"some of {', '.join((*TEXT_TASKS, *TASKS))}, with commas between them, or all"
    modes.add_argument("--tasks", metavar="LIST", help=tasks)
    add("--task", action=Renamed, now="--tasks")
    lengths = "tokens before the answer of passkey (default: 1000,10000,100000)"
    add("--lengths", metavar="N,N", help=lengths)
    add("--long", action="store_true", help="passkey with 1,000,000 tokens too: minutes to hours")
    add("--samples", metavar="N", type=int, help="texts of passkey of each length (default: 50)")
    held_out = "only the text of PATH that the run has held out from training"
    add("--held-out", action="store_true", help=held_out)
    add("--json", action="store_true", help="print a list of objects")
    add_quantize_flag(parser)
    add_device_flag(parser)


def run(arguments: Arguments) -> int:
    """Evaluate a run on each path; the exit code."""
    for flag in ("obedience", "contrast", "samples"):
        if (number := getattr(arguments, flag)) is not None and number < 1:
            raise UsageError(f"--{flag} must be at least 1, found {number}")
    tasks = _task_names(arguments)
    lengths = _lengths(arguments.lengths) if arguments.lengths else None
    from ys_llm.runs.folder import find_run

    loaded = load_quantized(
        find_run(RUNS_DIR, arguments.name), arguments.quantize, arguments.device
    )
    if tasks:
        _run_tasks(loaded, arguments, tasks, lengths)
        return 0
    rows = _rows(loaded, arguments)
    if arguments.json:
        import json

        print(json.dumps(rows, ensure_ascii=False))
    else:
        print(_table(rows))
    return 0


def _task_names(arguments: Arguments) -> list[str]:
    """The tasks of --tasks, checked against the paths; UsageError for what cannot be evaluated."""
    given = [name.strip() for name in (arguments.tasks or "").split(",") if name.strip()]
    if arguments.tasks is not None and not given:
        raise UsageError("--tasks takes names with commas between them, found none")
    if given == ["all"]:
        given = [*(TEXT_TASKS if arguments.paths else ()), *TASKS]
    for name in given:
        if name in LEARNED:
            train = command_line("compare", "default", "llama", task=name)
            raise UsageError(f"{name} is known only to a model trained on it. Type: {train}")
        if name not in (*TEXT_TASKS, *TASKS):
            known = ", ".join((*TEXT_TASKS, *TASKS))
            raise UsageError(f"--tasks: there is no {name!r}. Choose some of {known}")
    needs_text = not given or any(name in TEXT_TASKS for name in given)
    if needs_text and not arguments.paths:
        raise UsageError("give a file or folder after the run, or --tasks that need none")
    if not needs_text and arguments.paths:
        raise UsageError(f"{', '.join(given)} needs no file or folder: give none")
    flags = {"lengths": arguments.lengths, "long": arguments.long, "samples": arguments.samples}
    unused = next((flag for flag, value in flags.items() if value), None)
    if unused and "passkey" not in given:
        raise UsageError(f"--{unused} is for --tasks passkey")
    return given


def _lengths(given: str) -> list[int]:
    words = given.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"--lengths takes numbers with commas between them, found {given!r}")
    return [int(word) for word in words]


def _run_tasks(
    loaded: LoadedRun, arguments: Arguments, tasks: Sequence[str], lengths: Sequence[int] | None
) -> None:
    """Print each result, and write it beside the run."""
    from ys_llm.evaluation.tasks.passkey import LENGTHS, LONG_LENGTHS, SAMPLES
    from ys_llm.evaluation.tasks.suite import Request, run_tasks

    request = Request(
        loaded,
        arguments.paths,
        arguments.held_out,
        arguments.quantize,
        lengths=(*(lengths or LENGTHS), *(LONG_LENGTHS if arguments.long else ())),
        samples=arguments.samples or SAMPLES,
        judges=_judges() if "obedience" in tasks else {},
    )
    results = []
    for number, result in enumerate(run_tasks(tasks, request)):
        results.append(result)
        if not arguments.json:
            gap = "\n" if number else ""
            print(f"{gap}{result.task}: {result.about}\n{_table(result.rows)}", flush=True)
        _save(loaded.path, result)
    if arguments.json:
        import json

        print(json.dumps([asdict(result) for result in results], ensure_ascii=False))


def _save(run: Path, result: Result) -> None:
    """Write a result; a run that cannot be written to is evaluated all the same."""
    from ys_llm.evaluation.tasks.suite import save_result

    try:
        save_result(run, result)
    except UserError as error:
        print(f"ys: {result.task} is printed, not saved: {error}", file=sys.stderr)


def _judges() -> Mapping[str, Judge]:
    from ys_llm.gendata.judges.registry import JUDGES

    return JUDGES


def _rows(loaded: LoadedRun, arguments: Arguments) -> list[dict[str, Any]]:
    """The lines of the table, each by its columns."""
    from ys_llm.evaluation.bits_per_byte import evaluate_paths
    from ys_llm.evaluation.by_position import positions_of_paths
    from ys_llm.evaluation.recall import recall_of_paths

    paths, held_out = arguments.paths, arguments.held_out
    if arguments.by_position:
        positions = positions_of_paths(loaded, paths, held_out=held_out)
        return [{"path": path, **asdict(row)} for path, row in positions]
    if arguments.recall:
        recalled = recall_of_paths(loaded, paths, held_out=held_out)
        return [{"path": path, **asdict(row)} for path, row in recalled]
    if arguments.obedience is not None:
        return _obedience(loaded, arguments, arguments.obedience)
    if arguments.contrast is not None:
        return _contrast(loaded, arguments, arguments.contrast)
    return [
        {"path": row.path, "documents": row.documents, **asdict(row.result)}
        for row in evaluate_paths(loaded, paths, held_out=held_out)
    ]


def _obedience(loaded: LoadedRun, arguments: Arguments, number: int) -> list[dict[str, Any]]:
    from ys_llm.evaluation.obedience import obedience_of_paths

    judged = obedience_of_paths(
        loaded,
        arguments.paths,
        _judges(),
        n_prompts=number,
        held_out=arguments.held_out,
    )
    return [{"path": path, **asdict(row)} for path, row in judged]


def _contrast(loaded: LoadedRun, arguments: Arguments, number: int) -> list[dict[str, Any]]:
    from ys_llm.evaluation.prompt_contrast import contrast_of_paths

    held_out = arguments.held_out
    rows = contrast_of_paths(loaded, arguments.paths, n_answers=number, held_out=held_out)
    return [{"path": path, **asdict(row)} for path, row in rows]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = [name.replace("_", " ") for name in rows[0]]
    lines = [header, *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join("  ".join(line) for line in padded)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
