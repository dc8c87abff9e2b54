"""Rare words that come again within a document: where they are mentioned, in tokens.

It needs no list of names. A word is rare where it is not common in the training text
(`data/words.py`). A rare word is a name where the text writes it with a capital inside sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ys_llm.data.shards import Int64Array, TokenShard
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.data.words import CommonWords, Word, words_of

NAME_SHARE = 0.9  # of the mentions inside sentences: that many have a capital in a name
# In place of a control token, which no word goes across.
_CONTROL = b"\n"


@dataclass(frozen=True)
class Mention:
    """One mention of a rare word that its document has at least twice.

    Its tokens are [first, last] of document `document`, all that share a character with the word
    (a space before it included, where that is in the same token). `distance` is the number of
    tokens from the last token of the mention before to `first`; 0 for the first mention.
    """

    document: int
    first: int
    last: int
    distance: int
    is_name: bool


@dataclass(frozen=True)
class _Found:
    """A word of a document with its tokens."""

    word: Word
    first: int
    last: int


def documents_of(data: TokenShard, *, max_tokens: int = 0) -> list[Int64Array]:
    """The ids of each document without the `<end>` before it, with the `<end>` after it.

    `max_tokens` > 0 takes only the first documents that fit into it, at least one.
    """
    ends = np.append(data.document_offsets[1:], data.n_inputs)
    number = len(ends)
    if max_tokens > 0:
        number = max(1, int(np.searchsorted(ends, max_tokens, side="right")))
    pairs = zip(data.document_offsets[:number], ends[:number], strict=True)
    return [data.tokens[begin + 1 : end + 1].astype(np.int64) for begin, end in pairs]


def find_mentions(
    documents: Sequence[Int64Array], tokenizer: Tokenizer, common: CommonWords
) -> list[Mention]:
    """Every mention of every rare word that comes again in its document, in order."""
    aligner = _Aligner(tokenizer)
    names = _names(found.word for ids in documents for found in aligner.words(ids))
    return [
        mention
        for number, ids in enumerate(documents)
        for mention in _mentions(number, list(aligner.words(ids)), common, names)
    ]


def _names(words: Iterable[Word]) -> frozenset[str]:
    """Words that have a capital wherever other words of their sentence stand before them."""
    inside, capital = Counter[str](), Counter[str]()
    for word in words:
        if word.is_inside:
            inside[word.name] += 1
            capital[word.name] += word.is_capital
    return frozenset(name for name, n in inside.items() if capital[name] >= NAME_SHARE * n)


def _mentions(
    number: int, found: Sequence[_Found], common: CommonWords, names: frozenset[str]
) -> Iterator[Mention]:
    counts = Counter(one.word.name for one in found)
    last: dict[str, int] = {}
    for one in found:
        name = one.word.name
        if name in common.words or counts[name] < 2:
            continue
        distance = one.first - last[name] if name in last else 0
        last[name] = one.last
        yield Mention(number, one.first, one.last, distance, name in names)


class _Aligner:
    """Finds the words of a document in its tokens; works for every kind of tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = [tokenizer.token_bytes(id) or _CONTROL for id in range(tokenizer.vocab_size)]

    def words(self, ids: Int64Array) -> Iterator[_Found]:
        """The words of these tokens, with the first and the last token of each."""
        pieces = [self._bytes[id] for id in ids.tolist()]
        ends = np.cumsum([len(piece) for piece in pieces])
        text = b"".join(pieces).decode("utf-8", "replace")
        offsets = _byte_offsets(text)
        words = list(words_of(text))
        begins = offsets[[word.begin for word in words]] if words else offsets[:0]
        lasts = offsets[[word.end for word in words]] - 1 if words else offsets[:0]
        first_tokens = np.searchsorted(ends, begins, side="right").tolist()
        last_tokens = np.searchsorted(ends, lasts, side="right").tolist()
        yield from map(_Found, words, first_tokens, last_tokens)


def _byte_offsets(text: str) -> npt.NDArray[np.int64]:
    """Where each character begins in UTF-8, and where the text ends."""
    if text.isascii():
        return np.arange(len(text) + 1, dtype=np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])
