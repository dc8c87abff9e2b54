"""The ledger of comparisons, `experiments.jsonl`: one line of JSON for each, never lost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ys_llm.system.files import Journal, write_atomically

_LATER = ("time", "kept")  # what does not make another experiment of one


def record(path: Path, entry: Mapping[str, Any], *, keep: str | None) -> None:
    """Append the comparison with `time` and `kept`: the configuration that was chosen, or null.

    The same comparison again, with the same runs, adds no line; `keep` then completes its own.
    """
    entry = json.loads(json.dumps(entry))
    lines = read(path)
    same = [line for line in lines if _identity(line) == _identity(entry)]
    if not same:
        _append(path, {"time": _now(), **entry, "kept": keep})
    elif keep is not None:
        same[-1]["kept"] = keep
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path) -> list[dict[str, Any]]:
    """Its lines; what is no JSON object, such as the half of a line after a crash, is left out."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in _LATER}


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with closing(Journal(path)) as journal:
        if _is_torn(path):
            journal.write("")
        journal.write(json.dumps(entry))
        journal.sync()


def _is_torn(path: Path) -> bool:
    """Whether a crash has left half a line at the end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
