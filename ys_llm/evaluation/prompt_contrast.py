"""Does an answer follow from its prompt? Its loss after its own prompt and after seven others.

    gain = mean over the others of nats(answer | other) - nats(answer | own), in bits

Nothing is generated, so there is no noise of sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ys_llm.data.document_table import in_hash_order
from ys_llm.data.records import Document
from ys_llm.data.shards import Int64Array
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.run_text import documents_of_path
from ys_llm.evaluation.token_losses import Float64Array, losses_of_documents
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

OTHERS = 7
_SAME_WORDS = 3  # that the other prompts begin with, too: no story is compared with a sum
_PAIRS = 4  # scored at a time: 32 sequences


@dataclass(frozen=True)
class ContrastRow:
    """What the right prompt is worth, with standard errors over the answers.

    `wins` is the share of answers whose own prompt gives the least loss; by chance it is 1/8.
    """

    answers: int
    bits_per_answer: float
    standard_error: float
    bits_per_token: float
    wins: float
    standard_error_of_wins: float


def measure_contrast(
    model: Model, tokenizer: Tokenizer, documents: Sequence[Document], *, n_answers: int
) -> ContrastRow:
    """Score the first `n_answers` answers, in the order of hashes, that have OTHERS to compare.

    The other prompts are the next ones that begin with the same _SAME_WORDS words and differ.
    Raises UserError where no prompt has as many.
    """
    ordered = in_hash_order(documents)
    pairs = [(document.prompt, document.text) for document in ordered if document.prompt]
    chosen = list(islice(_with_others(pairs), n_answers))
    if not chosen:
        raise UserError(
            f"no prompt of this text has {OTHERS} others that begin with the same "
            f"{_SAME_WORDS} words",
            "Give more records",
        )
    nats: list[Float64Array] = []
    lengths: list[int] = []
    for begin in range(0, len(chosen), _PAIRS):
        for one, length in _scored(model, tokenizer, chosen[begin : begin + _PAIRS]):
            nats.append(one)
            lengths.append(length)
    return _row(np.stack(nats), np.array(lengths))


def contrast_of_paths(
    loaded: LoadedRun, paths: Sequence[Path], *, n_answers: int, held_out: bool
) -> list[tuple[str, ContrastRow]]:
    """`measure_contrast` of each file or folder of records."""
    rows = []
    for path in paths:
        with documents_of_path(loaded, path, held_out=held_out) as documents:
            row = measure_contrast(loaded.model, loaded.tokenizer, documents, n_answers=n_answers)
        rows.append((str(path), row))
    return rows


def _with_others(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], str]]:
    """Each answer with its own prompt first and OTHERS after it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for prompt, _ in pairs:
        group = groups.setdefault(tuple(prompt.split()[:_SAME_WORDS]), [])
        if prompt not in group:
            group.append(prompt)
    for prompt, answer in pairs:
        group = groups[tuple(prompt.split()[:_SAME_WORDS])]
        if len(group) > OTHERS:
            at = group.index(prompt)
            yield [group[(at + k) % len(group)] for k in range(OTHERS + 1)], answer


def _scored(
    model: Model, tokenizer: Tokenizer, chosen: Sequence[tuple[list[str], str]]
) -> Iterator[tuple[Float64Array, int]]:
    """Nats of each answer after each of its prompts, and the number of its tokens."""
    sequences: list[Int64Array] = []
    lengths = []
    for prompts, answer in chosen:
        answer_ids = [*tokenizer.encode(answer), tokenizer.end_id]
        lengths.append(len(answer_ids))
        for prompt in prompts:
            ids = [*tokenizer.encode(prompt), tokenizer.start_id, *answer_ids]
            sequences.append(np.array(ids, dtype=np.int64))
    losses = iter(losses_of_documents(model, sequences, first_id=tokenizer.end_id))
    for length in lengths:
        own_and_others = islice(losses, OTHERS + 1)
        yield np.array([float(loss[-length:].sum()) for loss in own_and_others]), length


def _row(nats: Float64Array, lengths: Int64Array) -> ContrastRow:
    """`nats` is answers x prompts, the own prompt first."""
    others = nats[:, 1:]
    bits = (others.mean(axis=1) - nats[:, 0]) / math.log(2)
    wins = float((nats[:, 0] < others.min(axis=1)).mean())
    number = len(bits)
    error = float(bits.std(ddof=1)) / math.sqrt(number) if number > 1 else 0.0
    return ContrastRow(
        number,
        float(bits.mean()),
        error,
        float(bits.sum() / lengths.sum()),
        wins,
        math.sqrt(wins * (1 - wins) / number),
    )
