"""`ys eval`: loss and bits per byte, loss by position, recall, a task; as a table or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ys_llm.cli.common import (
    RUNS_DIR,
    Device,
    Quantization,
    add_device_flag,
    add_quantize_flag,
    load_quantized,
)
from ys_llm.errors import UsageError

if TYPE_CHECKING:
    from ys_llm.runs.model_files import LoadedRun

EXAMPLES = """\
examples:
  ys eval default training_data
  ys eval runs/mine novel.txt letters --json
  ys eval default training_data --recall --held-out   does it remember names?
  ys eval default training_data --obedience 300 --held-out
  ys eval default training_data --quantize int8   what quantised weights lose
  ys eval default --task passkey --lengths 1000,10000   five digits in a long text
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys eval`."""

    name: str
    paths: list[Path]
    by_position: bool
    recall: bool
    obedience: int | None
    contrast: int | None
    task: Literal["passkey"] | None
    lengths: str
    samples: int
    held_out: bool
    json: bool
    quantize: Quantization
    device: Device


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys eval`."""
    add = parser.add_argument
    add("name", metavar="RUN", help="name or folder of a run")
    add("paths", metavar="PATH", nargs="*", type=Path, help="file or folder; none with --task")
    by_position = "loss by distance from a fresh state, up to 16 times the trained length"
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--by-position", action="store_true", help=by_position)
    recall = "loss on rare words when they come first and when they come again, by distance"
    modes.add_argument("--recall", action="store_true", help=recall)
    obedience = "answer N prompts of stories, and judge whether the answers do what they ask"
    modes.add_argument("--obedience", metavar="N", type=int, help=obedience)
    contrast = "loss of N answers after their own prompts and after seven others"
    modes.add_argument("--contrast", metavar="N", type=int, help=contrast)
    task = "passkey: five digits somewhere in a long text, asked for at its end"
    modes.add_argument("--task", choices=("passkey",), help=task)
    lengths = "lengths of the texts of --task in tokens (default: 1000,10000)"
    add("--lengths", metavar="N,N", default="1000,10000", help=lengths)
    samples = "texts of each length (default: 50)"
    add("--samples", metavar="N", type=int, default=50, help=samples)
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
    if bool(arguments.paths) == (arguments.task is not None):
        raise UsageError("give a file or folder after the run, or --task without any")
    lengths = _lengths(arguments.lengths)
    from ys_llm.runs.folder import find_run

    loaded = load_quantized(
        find_run(RUNS_DIR, arguments.name), arguments.quantize, arguments.device
    )
    rows = _task(loaded, arguments, lengths) if arguments.task else _rows(loaded, arguments)
    if arguments.json:
        import json

        print(json.dumps(rows, ensure_ascii=False))
    else:
        print(_table(rows))
    return 0


def _lengths(given: str) -> list[int]:
    words = given.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"--lengths takes numbers with commas between them, found {given!r}")
    return [int(word) for word in words]


def _task(loaded: LoadedRun, arguments: Arguments, lengths: Sequence[int]) -> list[dict[str, Any]]:
    from ys_llm.evaluation.tasks.passkey import passkey_of_run

    return [asdict(row) for row in passkey_of_run(loaded, lengths, samples=arguments.samples)]


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
    from ys_llm.gendata.programs.stories.judge import judge

    judged = obedience_of_paths(
        loaded,
        arguments.paths,
        judge,
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
