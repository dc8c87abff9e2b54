"""`ys eval`: loss and bits per byte, as a table or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ys_llm.cli.common import (
    RUNS_DIR,
    Device,
    Quantization,
    add_device_flag,
    add_quantize_flag,
    load_quantized,
)

EXAMPLES = """\
examples:
  ys eval default training_data
  ys eval runs/mine novel.txt letters --json
  ys eval default training_data --quantize int8   what quantised weights lose
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys eval`."""

    name: str
    paths: list[Path]
    by_position: bool
    json: bool
    quantize: Quantization
    device: Device


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys eval`."""
    add = parser.add_argument
    add("name", metavar="RUN", help="name or folder of a run")
    add("paths", metavar="PATH", nargs="+", type=Path, help="file or folder")
    by_position = "loss by distance from a fresh state, up to 16 times the trained length"
    add("--by-position", action="store_true", help=by_position)
    add("--json", action="store_true", help="print a list of objects")
    add_quantize_flag(parser)
    add_device_flag(parser)


def run(arguments: Arguments) -> int:
    """Evaluate a run on each path; the exit code."""
    from ys_llm.evaluation.bits_per_byte import evaluate_paths
    from ys_llm.evaluation.by_position import positions_of_paths
    from ys_llm.runs.folder import find_run

    loaded = load_quantized(
        find_run(RUNS_DIR, arguments.name), arguments.quantize, arguments.device
    )
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
