"""Do answers do what prompts ask? Generated answers, judged by a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ys_llm.data.records import Document
from ys_llm.errors import UserError
from ys_llm.evaluation.run_text import documents_of_path
from ys_llm.inference.engine import Engine
from ys_llm.runs.model_files import LoadedRun

# judge(prompt, answer): which of the things asked for the answer does; empty if it cannot say.
Judge = Callable[[str, str], Mapping[str, bool]]
SEED = 1


@dataclass(frozen=True)
class ObedienceRow:
    """The share of answers that pass one check, with sqrt(p (1 - p) / prompts) as its error.

    `in_the_text` is the share among the text's own answers to the same prompts.
    """

    check: str
    prompts: int
    share: float
    standard_error: float
    in_the_text: float


def measure_obedience(
    engine: Engine, documents: Sequence[Document], judge: Judge, *, n_prompts: int
) -> list[ObedienceRow]:
    """Answer the first `n_prompts` prompts that can be judged, in the order of hashes, and judge.

    With the run's own settings of sampling and one seed. Raises UserError where no prompt can be
    judged.
    """
    ordered = sorted(documents, key=lambda document: document.content_hash)
    known = [(d.prompt, d.text) for d in ordered if d.prompt and judge(d.prompt, d.text)]
    chosen = known[:n_prompts]
    if not chosen:
        raise UserError("no prompt of this text can be judged", "Give records of stories")
    sampling = engine.loaded.config.generate
    sampling = replace(sampling, seed=SEED if sampling.seed is None else sampling.seed)
    answers = engine.answer_batch([prompt for prompt, _ in chosen], sampling)
    pairs = zip(chosen, answers, strict=True)
    found = [(judge(prompt, answer.text), judge(prompt, text)) for (prompt, text), answer in pairs]
    checks = dict.fromkeys(check for own, _ in found for check in own)
    return [_row(check, found) for check in checks]


def _row(
    check: str, found: Sequence[tuple[Mapping[str, bool], Mapping[str, bool]]]
) -> ObedienceRow:
    judged = [(own[check], written[check]) for own, written in found if check in own]
    number = len(judged)
    share = sum(own for own, _ in judged) / number
    in_the_text = sum(written for _, written in judged) / number
    return ObedienceRow(check, number, share, math.sqrt(share * (1 - share) / number), in_the_text)


def obedience_of_paths(
    loaded: LoadedRun, paths: Sequence[Path], judge: Judge, *, n_prompts: int, held_out: bool
) -> list[tuple[str, ObedienceRow]]:
    """`measure_obedience` of each file or folder of records."""
    engine, rows = Engine(loaded), list[tuple[str, ObedienceRow]]()
    for path in paths:
        with documents_of_path(loaded, path, held_out=held_out) as documents:
            found = measure_obedience(engine, documents, judge, n_prompts=n_prompts)
            rows += [(str(path), row) for row in found]
    return rows
