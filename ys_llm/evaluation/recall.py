"""Does a model remember? Its loss on rare words when they come first, and when they come again.

    recall = loss on first mentions - loss on later mentions      nats per token

Each document is read from its own start. Standard errors are of a ratio estimated from clusters, as
tokens of one document are not independent: with n_c nats on m_c tokens in cluster c, L = n / m,

    se(L) = sqrt(C / (C - 1) sum_c (n_c - L m_c)^2) / m

A cluster is a document, or PART_TOKENS tokens of a longer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ys_llm.data.shards import Int64Array, TokenShard
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.data.words import CommonWords
from ys_llm.errors import UserError
from ys_llm.evaluation.bits_per_byte import shards_of_paths
from ys_llm.evaluation.mentions import Mention, documents_of, find_mentions
from ys_llm.evaluation.run_text import common_words_of
from ys_llm.evaluation.token_losses import Float64Array, losses_of_documents
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import LoadedRun

MAX_TOKENS = 500_000  # that are read at most
PART_TOKENS = 2048
DISTANCES = (16, 64, 256, 1024, 4096, 16384, 65536)  # the upper ends of the rows by distance


@dataclass(frozen=True)
class RecallRow:
    """Mean loss of the tokens of one kind, with standard errors.

    `words` of `names`, of `rare` words, names among them, or of `all` tokens. `mention` is "first",
    "again", or for all tokens "rest" (what belongs to no mention) and "all"; "difference" is first
    minus again. `distance`, in tokens since the mention before, is "" where it does not matter.
    `nats_per_mention` adds up the tokens of a word; it is None where tokens are no words.
    """

    words: str
    mention: str
    distance: str
    mentions: int
    tokens: int
    nats_per_token: float
    standard_error: float | None
    nats_per_mention: float | None
    standard_error_per_mention: float | None


@dataclass(frozen=True)
class _Sums:
    """Nats, tokens and mentions of one kind in each cluster."""

    nats: Float64Array
    tokens: Float64Array
    mentions: Float64Array


def measure_recall(
    model: Model,
    data: TokenShard,
    tokenizer: Tokenizer,
    common: CommonWords,
    *,
    max_tokens: int = MAX_TOKENS,
) -> list[RecallRow]:
    """Loss on first and on later mentions, by distance, and on the rest.

    Reads the first documents of the shard (in the order of their hashes) with at most `max_tokens`
    tokens, at least one document. Raises UserError where no rare word comes again.
    """
    documents = documents_of(data, max_tokens=max_tokens)
    mentions = find_mentions(documents, tokenizer, common)
    if not mentions:
        raise UserError(
            "no rare word comes twice in a document of this text", "Give longer documents"
        )
    losses = losses_of_documents(model, documents, first_id=tokenizer.end_id)
    return recall_rows(losses, mentions)


def recall_of_paths(
    loaded: LoadedRun, paths: Sequence[Path], *, held_out: bool = False
) -> list[tuple[str, RecallRow]]:
    """`measure_recall` of each file or folder."""
    common = common_words_of(loaded)
    return [
        (str(path), row)
        for path, data in shards_of_paths(loaded, paths, held_out=held_out)
        for row in measure_recall(loaded.model, data, loaded.tokenizer, common)
    ]


def recall_rows(losses: Sequence[Float64Array], mentions: Sequence[Mention]) -> list[RecallRow]:
    """The table of `measure_recall` from the loss of each token of each document."""
    clusters = _Clusters([len(loss) for loss in losses])
    every = np.concatenate(losses)
    rows = []
    for words, chosen in (("names", [m for m in mentions if m.is_name]), ("rare", mentions)):
        rows += _rows_of_mentions(words, chosen, clusters, every)
    is_rest = np.ones(len(every), dtype=bool)
    is_rest[_positions(mentions, clusters)] = False
    for mention, chosen_tokens in (("rest", is_rest), ("all", np.ones_like(is_rest))):
        sums = clusters.sums(every, np.flatnonzero(chosen_tokens), np.zeros(0, dtype=np.int64))
        rows += _row("all", mention, "", sums)
    return rows


def _rows_of_mentions(
    words: str, mentions: Sequence[Mention], clusters: _Clusters, every: Float64Array
) -> list[RecallRow]:
    def sums_of(chosen: Iterable[Mention]) -> _Sums:
        """What these mentions add up to."""
        kept = list(chosen)
        begins = clusters.positions(kept)
        return clusters.sums(every, _positions(kept, clusters), begins)

    first = sums_of(m for m in mentions if not m.distance)
    again = sums_of(m for m in mentions if m.distance)
    rows = _row(words, "first", "", first) + _row(words, "again", "", again)
    if len(rows) == 2:
        rows.append(_difference(words, first, again))
    lower = 0
    for upper in (*DISTANCES, None):
        chosen = [
            m for m in mentions if m.distance > lower and (upper is None or m.distance <= upper)
        ]
        label = f"over {lower}" if upper is None else f"{lower + 1}-{upper}"
        rows += _row(words, "again", label, sums_of(chosen))
        lower = upper or lower
    return rows


class _Clusters:
    """The documents one after another, cut into clusters."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.begins = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        parts = [np.arange(length, dtype=np.int64) // PART_TOKENS for length in lengths]
        counts = [int(part[-1]) + 1 if len(part) else 0 for part in parts]
        firsts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self.number = sum(counts)
        self.of_token = np.concatenate([f + p for f, p in zip(firsts, parts, strict=True)])

    def positions(self, mentions: Sequence[Mention]) -> Int64Array:
        """Of the first token of each mention, among the tokens of all documents."""
        return np.array([self.begins[m.document] + m.first for m in mentions], dtype=np.int64)

    def sums(self, every: Float64Array, tokens: Int64Array, mentions: Int64Array) -> _Sums:
        """Add up by cluster the loss at `tokens`, their number, and that of `mentions`."""
        of_tokens = self.of_token[tokens]
        return _Sums(
            np.bincount(of_tokens, weights=every[tokens], minlength=self.number).astype(np.float64),
            np.bincount(of_tokens, minlength=self.number).astype(np.float64),
            np.bincount(self.of_token[mentions], minlength=self.number).astype(np.float64),
        )


def _positions(mentions: Sequence[Mention], clusters: _Clusters) -> Int64Array:
    """Of every token of these mentions, once, among the tokens of all documents."""
    begins = clusters.positions(mentions)
    parts = [
        np.arange(begin, begin + m.last - m.first + 1)
        for begin, m in zip(begins, mentions, strict=True)
    ]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _row(words: str, mention: str, distance: str, sums: _Sums) -> list[RecallRow]:
    """One row, or none where there is nothing to measure."""
    if not sums.tokens.sum():
        return []
    per_token = ratio(sums.nats, sums.tokens)
    per_mention = ratio(sums.nats, sums.mentions) if sums.mentions.sum() else (None, None)
    counts = (int(sums.mentions.sum()), int(sums.tokens.sum()))
    return [RecallRow(words, mention, distance, *counts, *per_token, *per_mention)]


def _difference(words: str, first: _Sums, again: _Sums) -> RecallRow:
    """What a model gains by having read a word before."""
    counts = (int(again.mentions.sum()), int(again.tokens.sum()))
    per_token = _ratio_difference((first.nats, first.tokens), (again.nats, again.tokens))
    per_mention = _ratio_difference((first.nats, first.mentions), (again.nats, again.mentions))
    return RecallRow(words, "difference", "", *counts, *per_token, *per_mention)


def ratio(
    numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64]
) -> tuple[float, float | None]:
    """The ratio of two sums over clusters, and its standard error; None for a single cluster."""
    value, influence = _influence(numerators, denominators)
    return value, _standard_error(influence, denominators > 0)


def _ratio_difference(
    left: tuple[Float64Array, Float64Array], right: tuple[Float64Array, Float64Array]
) -> tuple[float, float | None]:
    value, influence = _influence(*left)
    other, of_other = _influence(*right)
    used = (left[1] > 0) | (right[1] > 0)
    return value - other, _standard_error(influence - of_other, used)


def _influence(numerators: Float64Array, denominators: Float64Array) -> tuple[float, Float64Array]:
    """The ratio, and by how much each cluster moves it."""
    total = float(denominators.sum())
    value = float(numerators.sum()) / total
    return value, (numerators - value * denominators) / total


def _standard_error(influence: Float64Array, used: npt.NDArray[np.bool_]) -> float | None:
    number = int(used.sum())
    if number < 2:
        return None
    return float(np.sqrt(number / (number - 1) * np.square(influence).sum()))
