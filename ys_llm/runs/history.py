"""What a run has recorded of itself besides its model: metrics, facts, rollbacks, post-mortems.

Readers of these files must not fail where one is missing or damaged: a report shows what is there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ys_llm.runs.folder import EVALUATIONS, POST_MORTEM, REPORT_FACTS
from ys_llm.system.files import write_atomically

METRICS = "metrics.jsonl"
ROLLBACKS = "rollbacks.json"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl up to the first line that is not one."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        if type(step) is not int:
            break
        rows.append(row)
    return rows


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of a run's report.json; empty where there is none."""
    return read_object(folder / REPORT_FACTS)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Replace a run's report.json."""
    text = json.dumps(facts, indent=1, ensure_ascii=False, default=str)
    write_atomically(folder / REPORT_FACTS, text + "\n", create_folder=False)


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object; empty where it is missing or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def post_mortems(folder: Path) -> Iterator[dict[str, Any]]:
    """The diagnoses of a run's bad steps, oldest first, each with its `file`."""
    for path in sorted((folder / POST_MORTEM).glob("*.json")):
        found = read_object(path)
        if found:
            yield {"file": f"{POST_MORTEM}/{path.name}", **found}


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """What `ys eval` has measured of a run, task by task."""
    found = (read_object(path) for path in sorted((folder / EVALUATIONS).glob("*.json")))
    return [one for one in found if isinstance(one.get("rows"), list)]
