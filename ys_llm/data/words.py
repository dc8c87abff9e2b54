"""Words of a text, and which of them are common in the text that a run was trained on.

A word is a longest sequence of letters, whatever their case: "Molly's" is `molly` and `s`, `FOX` is
`fox`. Digits are no part of words.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ys_llm.data.case_markers import MARKERS
from ys_llm.data.document_table import in_hash_order
from ys_llm.data.joiners import JOINER
from ys_llm.data.letters import LETTERS
from ys_llm.data.pieces import chunks_of
from ys_llm.data.records import Document, Texts
from ys_llm.errors import UserError
from ys_llm.system.files import write_atomically

# A word is common from this share of all words on. Of English, the 150 most frequent words reach
# it, and no name of a story does.
COMMON_SHARE = 1 / 1000
COUNTED_CHARS = 4_000_000  # of text: at the limit, a share is then known to within 4 %

# The text of a `words` tokenizer has markers: before a word, or the space before it, or inside it.
# That of `bpe_joiner` has JOINER and a space before some words, which are no part of them.
_WORD = re.compile(rf"(?:[{MARKERS}] ?)?([{LETTERS}]+(?:[{MARKERS}][{LETTERS}]+)*)")
_WITHOUT_MARKERS = {ord(marker): None for marker in MARKERS}
_IN_A_SENTENCE = re.compile(rf"[{LETTERS}0-9,;'’][ {MARKERS}{JOINER}]*\Z")


@dataclass(frozen=True)
class Word:
    """A word at the characters [begin, end) of a text, markers before it included.

    `name` is its lower-case form. `is_inside`: other words of its sentence stand before it, so that
    a capital means something.
    """

    name: str
    begin: int
    end: int
    is_capital: bool
    is_inside: bool


def words_of(text: str) -> Iterator[Word]:
    """Yield the words of a text in order; it may have case markers or joiners (`joiners.py`)."""
    for found in _WORD.finditer(text):
        letters, begin = found[1], found.start()
        is_capital = text[begin] in MARKERS or letters[0] != letters[0].lower()
        before = text[max(0, begin - 3) : begin]
        is_inside = _IN_A_SENTENCE.search(before) is not None
        name = letters.translate(_WITHOUT_MARKERS).lower()
        yield Word(name, begin, found.end(), is_capital, is_inside)


@dataclass(frozen=True)
class CommonWords:
    """The words that make up at least COMMON_SHARE of the training text; the others are rare."""

    words: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """Return the words as JSON values; `from_json` reads them."""
        return {"share": COMMON_SHARE, "words": sorted(self.words)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "CommonWords":
        """Parse what `to_json` returned; raises ValueError for anything else."""
        words = stored.get("words") if isinstance(stored, Mapping) else None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("not a list of common words")
        return cls(frozenset(words))

    def save(self, path: Path) -> None:
        """Write the words atomically, into a folder that exists."""
        write_atomically(path, json.dumps(self.to_json()) + "\n", create_folder=False)

    @classmethod
    def load(cls, path: Path) -> "CommonWords | None":
        """Read what `save` wrote; None where there is no such file.

        Raises UserError if the file is damaged.
        """
        try:
            return cls.from_json(json.loads(path.read_bytes())) if path.exists() else None
        except (ValueError, RecursionError, OSError) as error:
            raise UserError(
                f"{path} is damaged: it does not hold the common words of the training text",
                "Remove it: the words are counted again.",
            ) from error


def common_words(documents: Sequence[Document]) -> CommonWords:
    """Count the words of about the first COUNTED_CHARS characters, in the order of hashes."""
    counts: Counter[str] = Counter()
    for text in _first_chars(chunks_of(Texts(in_hash_order(documents))), COUNTED_CHARS):
        counts.update(word.name for word in words_of(text))
    least = COMMON_SHARE * counts.total()
    return CommonWords(frozenset(word for word, count in counts.items() if count >= least))


def _first_chars(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yield texts until they have `limit` characters."""
    length = 0
    for text in texts:
        yield text
        length += len(text)
        if length >= limit:
            return
