"""Multi-query associative recall (`mqar`): every key again, in another order, asks for its value.

    k1 v1 k2 v2 ... | k2 v2 k1 v1 ...         each v after | is to be predicted

That of Arora et al. 2023 (Zoology): keys and values are drawn anew for each example, among 64 of
each, no key twice.

Protocol. Sizes: 2, 4, 8, 16 and 32 pairs. Seed: that of the run's configuration. Score: the share
of the asked values that are the most probable token, over 256 held-out examples of each size, with
the standard error over examples. Chance: 1/64; one who says any value that he has read gets
1 / pairs.
`ys compare --task mqar` trains small models on it; `ys eval --tasks mqar` asks a model of text
without training (`in_vocabulary.py`).
"""

from __future__ import annotations

import numpy as np

from ys_llm.data.shards import Int64Array
from ys_llm.evaluation.tasks.symbols import N_SYMBOLS, SEPARATOR, VOCAB_SIZE
from ys_llm.evaluation.tasks.task import Task, answers_from


def _pairs(draw: np.random.Generator, n_pairs: int) -> tuple[Int64Array, Int64Array]:
    keys = draw.permutation(N_SYMBOLS)[:n_pairs]
    values = N_SYMBOLS + draw.integers(N_SYMBOLS, size=n_pairs)
    order = draw.permutation(n_pairs)
    pairs = np.stack([keys, values], 1)
    ids = np.concatenate([pairs.ravel(), [SEPARATOR], pairs[order].ravel()])
    return answers_from(ids, 2 * n_pairs + 1, every=2)


MQAR = Task("mqar", "pairs", VOCAB_SIZE, 1 / N_SYMBOLS, _pairs, sizes=(2, 4, 8, 16, 32))
