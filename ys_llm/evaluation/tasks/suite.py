"""What `ys eval --tasks` offers: every task by its name, and its results as one JSON file each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ys_llm import __version__
from ys_llm.data.records import Document
from ys_llm.evaluation.bits_per_byte import shards_of_paths
from ys_llm.evaluation.obedience import Judge, obedience_of_paths
from ys_llm.evaluation.prompt_contrast import contrast_of_paths
from ys_llm.evaluation.recall import recall_of_paths
from ys_llm.evaluation.run_text import documents_of_path
from ys_llm.evaluation.tasks.associative_recall import MQAR
from ys_llm.evaluation.tasks.bits_by_kind import bits_by_kind
from ys_llm.evaluation.tasks.bits_by_position import bits_by_position
from ys_llm.evaluation.tasks.copying import COPYING
from ys_llm.evaluation.tasks.in_vocabulary import measure_in_vocabulary
from ys_llm.evaluation.tasks.passkey import LENGTHS, SAMPLES, measure_passkey
from ys_llm.evaluation.tasks.task import Task
from ys_llm.runs.folder import EVALUATIONS
from ys_llm.runs.model_files import LoadedRun
from ys_llm.system.files import write_atomically

ANSWERS = 300  # that `contrast` scores, and prompts that `obedience` asks of each kind

Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is evaluated, and how. `lengths` and `samples` are those of `passkey`.

    `judges` decide what `obedience` asks: by the name of a kind, a function of prompt and answer.
    """

    loaded: LoadedRun
    paths: Sequence[Path] = ()
    held_out: bool = False
    quantize: str = "fp32"
    lengths: Sequence[int] = LENGTHS
    samples: int = SAMPLES
    judges: Mapping[str, Judge] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a task has found, with all that decides it. `texts` are those that it has read."""

    task: str
    about: str
    run: str
    step: int
    version: str
    quantize: str
    texts: list[str]
    held_out: bool
    seconds: float
    rows: list[Row]


@dataclass(frozen=True)
class TextTask:
    """A task of `ys eval`; `needs_text` says whether it reads files of the user's."""

    about: str
    needs_text: bool
    rows: Callable[[Request], list[Row]]


def run_tasks(names: Sequence[str], request: Request) -> Iterator[Result]:
    """The result of each task, in order."""
    for name in names:
        task, began = TASKS[name], time.perf_counter()
        rows = task.rows(request)
        yield Result(
            name,
            task.about,
            request.loaded.path.name,
            request.loaded.step,
            __version__,
            request.quantize,
            [str(path) for path in request.paths] if task.needs_text else [],
            request.held_out and task.needs_text,
            round(time.perf_counter() - began, 1),
            rows,
        )


def save_result(run: Path, result: Result) -> Path:
    """Write a result beside its run, in the place of an earlier one of the same task.

    Raises UserError where it cannot be written.
    """
    path = run / EVALUATIONS / f"{result.task}.json"
    write_atomically(path, json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n")
    return path


def read_results(run: Path) -> list[dict[str, Any]]:
    """What `save_result` has written beside a run, by name; what is no result is left out."""
    found = []
    for path in sorted((run / EVALUATIONS).glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(result, dict) and isinstance(result.get("rows"), list):
            found.append(result)
    return found


def _with_paths(pairs: Sequence[tuple[str, Any]]) -> list[Row]:
    return [{"path": path, **asdict(row)} for path, row in pairs]


def _by_kind(request: Request) -> list[Row]:
    pairs = []
    for path, documents in _documents(request):
        found = bits_by_kind(request.loaded.model, request.loaded.tokenizer, documents)
        pairs += [(str(path), row) for row in found]
    return _with_paths(pairs)


def _documents(request: Request) -> Iterator[tuple[Path, Sequence[Document]]]:
    for path in request.paths:
        with documents_of_path(request.loaded, path, held_out=request.held_out) as documents:
            yield path, documents


def _by_position(request: Request) -> list[Row]:
    loaded = request.loaded
    return _with_paths(
        [
            (str(path), row)
            for path, data in shards_of_paths(loaded, request.paths, held_out=request.held_out)
            for row in bits_by_position(loaded, data)
        ]
    )


def _recall(request: Request) -> list[Row]:
    return _with_paths(recall_of_paths(request.loaded, request.paths, held_out=request.held_out))


def _contrast(request: Request) -> list[Row]:
    loaded, held_out = request.loaded, request.held_out
    return _with_paths(
        contrast_of_paths(loaded, request.paths, n_answers=ANSWERS, held_out=held_out)
    )


def _obedience(request: Request) -> list[Row]:
    return _with_paths(
        obedience_of_paths(
            request.loaded,
            request.paths,
            request.judges,
            n_prompts=ANSWERS,
            held_out=request.held_out,
        )
    )


def _passkey(request: Request) -> list[Row]:
    model, tokenizer = request.loaded.model, request.loaded.tokenizer
    return [
        asdict(row)
        for n_tokens in request.lengths
        for row in measure_passkey(model, tokenizer, n_tokens=n_tokens, samples=request.samples)
    ]


def _in_vocabulary(task: Task) -> Callable[[Request], list[Row]]:
    def rows(request: Request) -> list[Row]:
        found = measure_in_vocabulary(request.loaded.model, request.loaded.tokenizer, task)
        return [asdict(row) for row in found]

    return rows


TASKS: Mapping[str, TextTask] = {
    "bits_by_kind": TextTask("bits per byte of each kind of text", True, _by_kind),
    "bits_by_position": TextTask(
        "bits per byte up to 64 times the trained length", True, _by_position
    ),
    "recall": TextTask("loss on rare words when they come first and again", True, _recall),
    "contrast": TextTask("loss of answers after their own and other prompts", True, _contrast),
    "obedience": TextTask("answers that do what their prompts ask, by kind", True, _obedience),
    "passkey": TextTask("five digits somewhere in a long text", False, _passkey),
    "mqar": TextTask("the value of every key that was just read", False, _in_vocabulary(MQAR)),
    "copying": TextTask("random tokens said again", False, _in_vocabulary(COPYING)),
}
