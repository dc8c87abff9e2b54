"""Small tasks asked of a model of text, in tokens of its own vocabulary, without training.

For each example every symbol of the task becomes another token, drawn from those of the vocabulary
that read like words (or from all with text where these are too few), so that nothing but the
example itself can answer. It begins with its separator, like its second half:

    <end> | k1 v1 k2 v2 ... | k2 v2 k1 v1 ...

Seed 1. A vocabulary must have 130 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.data.shards import Int64Array
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.tasks.accuracy import EVALUATED, accuracy_on
from ys_llm.evaluation.tasks.symbols import SEPARATOR
from ys_llm.evaluation.tasks.task import Examples, Task, examples
from ys_llm.model.language_model import Model

SEED = 1
_LETTERS = 3  # of a token that reads like a word


@dataclass(frozen=True)
class SmallTaskRow:
    """The share of right answers at one size, and that of guesses among the task's symbols."""

    unit: str
    size: int
    examples: int
    accuracy: float
    standard_error: float
    chance: float


def measure_in_vocabulary(model: Model, tokenizer: Tokenizer, task: Task) -> list[SmallTaskRow]:
    """A row for each of the task's sizes. Raises UserError for a vocabulary that is too small."""
    rows = []
    for size in task.sizes:
        batch = examples(task, size, seed=SEED, first=0, number=EVALUATED, held_out=True)
        share, error = accuracy_on(model, task, in_tokens(batch, task, tokenizer))
        rows.append(SmallTaskRow(task.unit, size, EVALUATED, share, error, task.chance))
    return rows


def in_tokens(batch: Examples, task: Task, tokenizer: Tokenizer) -> Examples:
    """The same examples in tokens, each drawn for itself, with the separator in front."""
    pool = word_tokens(tokenizer, least=task.vocab_size)
    if len(pool) < task.vocab_size:
        raise UserError(
            f"{task.name} needs a vocabulary of {task.vocab_size} tokens, the run's has "
            f"{len(pool)}",
            f"Leave {task.name} out of --tasks",
        )
    pairs = zip(batch.inputs_BT.numpy(), batch.targets_BT.numpy(), strict=True)
    rows = [
        _row(inputs, targets, np.random.default_rng([SEED, number]).permutation(pool), tokenizer)
        for number, (inputs, targets) in enumerate(pairs)
    ]
    inputs_BT, targets_BT = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return Examples(inputs_BT, targets_BT)


def word_tokens(tokenizer: Tokenizer, *, least: int) -> Int64Array:
    """The ids of tokens that read like words; with fewer than `least` of these, of all with text.

    A word has three letters or more, and a space before it where the vocabulary writes it so.
    """
    texts = {
        id: tokenizer.token_bytes(id).decode("utf-8", "replace") for id in _with_text(tokenizer)
    }
    spaced = [id for id, text in texts.items() if text[:1] == " " and _is_word(text[1:])]
    words = [id for id, text in texts.items() if _is_word(text)]
    chosen = next((ids for ids in (spaced, words) if len(ids) >= least), list(texts))
    return np.array(chosen, dtype=np.int64)


def _with_text(tokenizer: Tokenizer) -> list[int]:
    return [id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id)]


def _is_word(text: str) -> bool:
    return len(text) >= _LETTERS and text.isalpha()


def _row(
    inputs: Int64Array, targets: Int64Array, tokens: Int64Array, tokenizer: Tokenizer
) -> tuple[Int64Array, Int64Array]:
    """One example, where symbol s is `tokens[s]`."""
    before = np.array([tokenizer.end_id, tokens[SEPARATOR]])
    asked = targets != IGNORE_INDEX
    answers = np.where(asked, tokens[np.where(asked, targets, 0)], IGNORE_INDEX)
    nothing = np.full(2, IGNORE_INDEX, dtype=np.int64)
    return np.concatenate([before, tokens[inputs]]), np.concatenate([nothing, answers])
