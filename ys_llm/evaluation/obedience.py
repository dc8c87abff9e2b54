"""Do answers do what prompts ask? Generated answers, judged by programs, by kind of prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ys_llm.data.document_table import in_hash_order
from ys_llm.data.records import Document
from ys_llm.errors import UserError, command_line
from ys_llm.evaluation.run_text import documents_of_path
from ys_llm.inference.engine import Engine
from ys_llm.runs.model_files import LoadedRun

# judge(prompt, answer): which of the things asked for the answer does; empty if it cannot say. Its
# checks depend on the prompt alone.
Judge = Callable[[str, str], Mapping[str, bool]]
SEED = 1
EVERY_CHECK = "all"


@dataclass(frozen=True)
class ObedienceRow:
    """The share of answers that pass one check, with sqrt(p (1 - p) / prompts) as its error.

    `check` is "all" for answers that pass every check of their prompt.
    `in_the_text` is the share among the text's own answers to the same prompts.
    """

    kind: str
    check: str
    prompts: int
    share: float
    standard_error: float
    in_the_text: float


@dataclass(frozen=True)
class _Asked:
    """A prompt whose answers can be judged, with the text's own answer."""

    kind: str
    prompt: str
    own: str


def measure_obedience(
    engine: Engine,
    documents: Sequence[Document],
    judges: Mapping[str, Judge],
    *,
    n_prompts: int,
) -> list[ObedienceRow]:
    """Answer the first `n_prompts` prompts of each kind, in the order of hashes, and judge.

    A prompt is of the first kind whose judge has checks for it. With the run's own settings of
    sampling and one seed. Raises UserError where no prompt can be judged.
    """
    asked = _chosen(documents, judges, n_prompts)
    if not asked:
        raise UserError(
            "no prompt of this text can be judged",
            f"Give records, as {command_line('gen-data')} makes them.",
        )
    sampling = engine.loaded.config.generate
    sampling = replace(sampling, seed=SEED if sampling.seed is None else sampling.seed)
    answers = engine.answer_batch([one.prompt for one in asked], sampling)
    said = [answer.text for answer in answers]
    return [row for kind in judges for row in _rows(kind, judges[kind], asked, said)]


def _chosen(
    documents: Sequence[Document], judges: Mapping[str, Judge], n_prompts: int
) -> list[_Asked]:
    chosen: dict[str, list[_Asked]] = {kind: [] for kind in judges}
    for document in in_hash_order(documents):
        for kind, judge in judges.items():
            if document.prompt and judge(document.prompt, ""):
                if len(chosen[kind]) < n_prompts:
                    chosen[kind].append(_Asked(kind, document.prompt, document.text))
                break
    return [one for of_kind in chosen.values() for one in of_kind]


def _rows(
    kind: str, judge: Judge, asked: Sequence[_Asked], said: Sequence[str]
) -> Iterator[ObedienceRow]:
    """A row for all checks of this kind, and one for each where there are several."""
    pairs = [(one, answer) for one, answer in zip(asked, said, strict=True) if one.kind == kind]
    found = [
        (_with_all(judge(one.prompt, answer)), _with_all(judge(one.prompt, one.own)))
        for one, answer in pairs
    ]
    checks = list(dict.fromkeys(check for _, written in found for check in written))
    for check in checks if len(checks) != 2 else checks[1:]:
        judged = [(said[check], text[check]) for said, text in found if check in text]
        number = len(judged)
        share = sum(passed for passed, _ in judged) / number
        in_the_text = sum(own for _, own in judged) / number
        error = math.sqrt(share * (1 - share) / number)
        yield ObedienceRow(kind, check, number, share, error, in_the_text)


def _with_all(checks: Mapping[str, bool]) -> Mapping[str, bool]:
    return {EVERY_CHECK: all(checks.values()), **checks}


def obedience_of_paths(
    loaded: LoadedRun,
    paths: Sequence[Path],
    judges: Mapping[str, Judge],
    *,
    n_prompts: int,
    held_out: bool,
) -> list[tuple[str, ObedienceRow]]:
    """`measure_obedience` of each file or folder of records."""
    engine, rows = Engine(loaded), list[tuple[str, ObedienceRow]]()
    for path in paths:
        with documents_of_path(loaded, path, held_out=held_out) as documents:
            found = measure_obedience(engine, documents, judges, n_prompts=n_prompts)
            rows += [(str(path), row) for row in found]
    return rows
