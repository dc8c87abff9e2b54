"""Copying: tokens drawn at random, all of them again.

    copying             a b c ... | a b c ...                     everything after |
    selective_copying   . . a . b . . c ... | a b c ...           with blanks between the tokens

Protocol. Sizes: 4, 8, 16, 32 and 64 tokens of `copying`; 8 tokens among 8 to 128 places of
`selective_copying`. Tokens: 64 different ones, drawn with repetition. Seed: that of the run's
configuration. Score: the share of the tokens after | that are the most probable one after the
right ones before them, over 256 held-out examples of each size, with the standard error over
examples. Chance: 1/64. `ys compare --task` trains small models on both; `ys eval --tasks copying`
asks a model of text without training (`in_vocabulary.py`).
"""

from __future__ import annotations

import numpy as np

from ys_llm.data.shards import Int64Array
from ys_llm.evaluation.tasks.symbols import BLANK, N_SYMBOLS, SEPARATOR, VOCAB_SIZE
from ys_llm.evaluation.tasks.task import Make, Task, answers_from

_COPIED = 8  # tokens of selective copying


def _copying(draw: np.random.Generator, n_tokens: int) -> tuple[Int64Array, Int64Array]:
    tokens = N_SYMBOLS + draw.integers(N_SYMBOLS, size=n_tokens)
    return answers_from(np.concatenate([tokens, [SEPARATOR], tokens]), n_tokens + 1)


def _selective(draw: np.random.Generator, distance: int) -> tuple[Int64Array, Int64Array]:
    tokens = N_SYMBOLS + draw.integers(N_SYMBOLS, size=_COPIED)
    spread = np.full(distance, BLANK)
    spread[np.sort(draw.permutation(distance)[:_COPIED])] = tokens
    return answers_from(np.concatenate([spread, [SEPARATOR], tokens]), distance + 1)


def _task(name: str, unit: str, make: Make, sizes: tuple[int, ...]) -> Task:
    return Task(name, unit, VOCAB_SIZE, 1 / N_SYMBOLS, make, sizes)


COPYING = _task("copying", "tokens", _copying, (4, 8, 16, 32, 64))
SELECTIVE_COPYING = _task("selective_copying", "distance", _selective, (8, 16, 32, 64, 128))
