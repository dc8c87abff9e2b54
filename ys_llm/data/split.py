"""Which text is held out for validation: decided by content, and stored with the run.

A document's own hash decides its side, whatever other documents there are. A plain text that is
long, or that is the only one, is cut instead: its end is held out. The run stores where it was cut
(`SplitRecord`), so that a text that grows never moves held-out text into training.
"""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ys_llm.data.document_table import total_bytes
from ys_llm.data.records import Document
from ys_llm.errors import UserError
from ys_llm.system.files import write_atomically

LONG_DOCUMENT_CHARS = 200_000  # a novel: a longer plain document is cut
SINGLE_DOCUMENT_BYTES = 20_000  # the only document is cut from this size on
SINGLE_DOCUMENT_FRACTION = 0.05

BY_CONTENT_HASH, BY_DOCUMENT_ID = 1, 2  # versions of how a document gets its side

Sides = tuple[list[Document], list[Document]]  # training, held out


@dataclass(frozen=True)
class Cut:
    """The held-out part of one document: from its character `begin` to its character `end`.

    Both count characters that are not white space, and the hashes are those of all such characters
    before them: a text that has grown at its end, or changed its line ends, is recognised.
    `position` is `begin` with white space counted, which is exact for a text that has not changed.
    """

    begin: int
    end: int
    position: int
    hash_before_begin: str
    hash_before_end: str


@dataclass(frozen=True)
class SplitRecord:
    """What a run stores of its split: how documents get their side, and where texts were cut."""

    version: int = BY_DOCUMENT_ID
    cuts: tuple[Cut, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; `from_json` reads them."""
        return {"version": self.version, "cuts": [vars(cut) for cut in self.cuts]}

    def save(self, path: Path) -> None:
        """Write the record atomically, into a folder that exists."""
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n", create_folder=False)

    @classmethod
    def load(cls, path: Path) -> "SplitRecord":
        """Read what `save` wrote; runs of earlier versions have no such file.

        Raises UserError if the file is damaged.
        """
        try:
            return cls.from_json(json.loads(path.read_bytes()) if path.exists() else None)
        except (ValueError, RecursionError, OSError) as error:
            raise _damaged(path) from error

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> "SplitRecord":
        """Parse what `to_json` returned; None stands for a run of an earlier version.

        Raises ValueError for anything else.
        """
        if stored is None:
            return cls(BY_CONTENT_HASH)
        try:
            record = cls(stored["version"], tuple(Cut(**cut) for cut in stored["cuts"]))
        except (KeyError, TypeError) as error:
            raise ValueError("not a record of a split") from error
        counts = [n for cut in record.cuts for n in (cut.begin, cut.end, cut.position)]
        known = record.version in (BY_CONTENT_HASH, BY_DOCUMENT_ID)
        if not known or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("not a record of a split")
        return record


@dataclass(frozen=True)
class Split:
    """The two sides. `leak_check`, and `notes` by their labels, are for the header of a run.

    `is_repeatable`: the same documents, split under `record`, are certain to give the same again.
    """

    training: Sequence[Document]
    validation: Sequence[Document]
    leak_check: str
    notes: dict[str, str] = field(default_factory=dict)
    record: SplitRecord = field(default_factory=SplitRecord)
    is_repeatable: bool = False


def split_documents(
    documents: Iterable[Document],
    *,
    validation_fraction: float,
    record: SplitRecord | None = None,
) -> Split:
    """Send each document to one side by its own content alone.

    A plain document over LONG_DOCUMENT_CHARS is cut: its last `validation_fraction` is held out. Of
    a plain document that is the only one, the last twentieth is held out from SINGLE_DOCUMENT_BYTES
    on, below that nothing. `record` is what an earlier session of the run has stored: its cuts are
    kept, and text added after them is trained on. Raises UserError where nothing is left to train
    on.
    """
    every = list(documents)
    sides: Sides = ([], [])
    cuts: list[Cut] = []
    largest_uncut = 0  # bytes: a later session may find the cut of another text in it
    record = record or SplitRecord()
    # A run of a version without records has trained on all of its only document.
    single = len(every) == 1 and record.version == BY_DOCUMENT_ID
    for document in every:
        cut = cut_document(document, sides, record.cuts, validation_fraction, single=single)
        if cut:
            cuts.append(cut)
            continue
        largest_uncut = max(largest_uncut, document.n_bytes)
        if len(every) == 1 or _place(document, record.version) >= validation_fraction:
            sides[0].append(document)
        else:
            sides[1].append(document)
    leaks = leak_line(*_count_copies(*sides), *map(len, sides))
    split = Split(*sides, leaks, record=SplitRecord(record.version, tuple(dict.fromkeys(cuts))))
    return checked(split, every, validation_fraction, before=record, largest_uncut=largest_uncut)


def checked(
    split: Split,
    documents: Sequence[Document],
    validation_fraction: float,
    *,
    before: SplitRecord,
    largest_uncut: int,
) -> Split:
    """Return a split with its notes; UserError where nothing is left to train on."""
    if split.validation and not split.training:
        raise UserError(
            f"all {len(documents):,} documents are held out, none is left for training",
            "Add text, or add to the command: --set data.validation_fraction=0",
        )
    cuts = split.record.cuts
    lost = len(set(before.cuts) - set(cuts))
    return replace(
        split,
        notes=_notes(split, documents, validation_fraction, lost=lost),
        is_repeatable=not before.cuts and all(cut.begin > largest_uncut for cut in cuts),
    )


def cut_document(
    document: Document,
    sides: Sides,
    stored: Sequence[Cut],
    validation_fraction: float,
    *,
    single: bool,
) -> Cut | None:
    """Append the parts of a document that is cut to the sides; None for one that stays whole."""
    fraction = _cut_fraction(document, validation_fraction, single=single)
    possible = _possible_cuts(document, stored) if validation_fraction else []
    outline = _Outline(document) if fraction or possible else None
    cut = outline and outline.cut(possible, fraction)
    if outline and cut:
        _apply(cut, outline, sides)
    return cut or None


def _cut_fraction(document: Document, validation_fraction: float, *, single: bool) -> float:
    """Return the share of a document that is held out by a cut; 0 where it is not cut."""
    n_bytes = document.n_bytes  # compared first: the text itself may have to be read from a file
    if n_bytes < SINGLE_DOCUMENT_BYTES or document.has_prompt:
        return 0.0
    if n_bytes > LONG_DOCUMENT_CHARS and document.n_chars > LONG_DOCUMENT_CHARS:
        return validation_fraction
    if single:
        return min(validation_fraction, SINGLE_DOCUMENT_FRACTION)
    return 0.0


def _possible_cuts(document: Document, cuts: Sequence[Cut]) -> list[Cut]:
    """Return the stored cuts that are not behind the end of this document."""
    possible = [cut for cut in cuts if cut.begin <= document.n_bytes]
    return [] if document.has_prompt else possible


class _Outline:
    """Where the characters of a document are that are not white space, found in one pass.

    Keeps a line for each block of the text, and reads the block again where more is asked.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0  # characters that are not white space
        self._chars: list[int] = []  # before each block
        self._counts: list[int] = []
        self._digests: list[hashlib.blake2b] = []
        n_chars, digest = 0, hashlib.blake2b(digest_size=16)
        for block in document.blocks():
            self._chars.append(n_chars)
            self._counts.append(self.count)
            self._digests.append(digest.copy())
            solid = _solid(block)
            digest.update(solid.encode())
            n_chars += len(block)
            self.count += len(solid)

    def cut(self, stored: Sequence[Cut], fraction: float) -> Cut | None:
        """Return the stored cut of this text, or a new one; None where there is neither.

        A stored cut is that of this text if the text before it is the same; of several, the one
        that a new run would choose.
        """
        new = self._new_cut(fraction) if fraction else None
        return new if new in stored else self._known_cut(stored) or new

    def _new_cut(self, fraction: float) -> Cut:
        """Return the cut that holds out the end of the text."""
        position = int(self.document.n_chars * (1 - fraction))
        begin, end = self.count_before(position), self.count
        return Cut(begin, end, position, self.hash_before(begin), self.hash_before(end))

    def _known_cut(self, stored: Sequence[Cut]) -> Cut | None:
        return next((c for c in stored if self.hash_before(c.begin) == c.hash_before_begin), None)

    def count_before(self, position: int) -> int:
        """Count the characters before this position that are not white space."""
        if position >= self.document.n_chars:
            return self.count
        index = bisect_right(self._chars, position) - 1
        return self._counts[index] + len(
            _solid(self._block(index)[: position - self._chars[index]])
        )

    def position_after(self, count: int) -> int:
        """Return the position after `count` characters that are not white space."""
        if count == 0:
            return 0
        if count > self.count:
            return self.document.n_chars
        index = bisect_left(self._counts, count) - 1
        left = count - self._counts[index]
        for offset, char in enumerate(self._block(index)):
            left -= not char.isspace()
            if left == 0:
                return self._chars[index] + offset + 1
        raise AssertionError("the text has changed")

    def hash_before(self, count: int) -> str:
        """Hash the first `count` characters that are not white space; "" if there are fewer."""
        if count > self.count:
            return ""
        if count == 0:
            return hashlib.blake2b(digest_size=16).hexdigest()
        index = bisect_left(self._counts, count) - 1
        digest = self._digests[index].copy()
        digest.update(_solid(self._block(index))[: count - self._counts[index]].encode())
        return digest.hexdigest()

    def _block(self, index: int) -> str:
        return next(islice(self.document.blocks(), index, None))


def _solid(text: str) -> str:
    """Return the text without its white space."""
    return "".join(text.split())


def _apply(cut: Cut, outline: _Outline, sides: Sides) -> None:
    """Divide a document; if the held-out part itself has changed, all after `begin` is held out."""
    document = outline.document
    begin, end = cut.position, document.n_chars
    if outline.count_before(begin) != cut.begin:
        begin = outline.position_after(cut.begin)
    if outline.hash_before(cut.end) == cut.hash_before_end and cut.end < outline.count:
        end = outline.position_after(cut.end + 1) - 1  # white space belongs to what is before it
    for side, first, last in (
        (sides[0], 0, begin),
        (sides[1], begin, end),
        (sides[0], end, document.n_chars),
    ):
        if outline.count_before(first) < outline.count_before(last):
            side.append(document.part(first, last))


def _place(document: Document, version: int) -> float:
    """Return a number in [0, 1): deterministic, and uniformly distributed over documents."""
    digest = document.content_hash if version == BY_CONTENT_HASH else document.id
    return int(digest[:13], 16) / 16**13  # 52 bits: exact in a float


def _count_copies(training: Sequence[Document], validation: Sequence[Document]) -> tuple[int, int]:
    """Return (copies, leaked) as `document_table.count_copies` does."""
    counts = Counter(document.id for document in (*training, *validation))
    shared = {document.id for document in training} & {document.id for document in validation}
    copies = sum(counts.values()) - len(counts)
    return copies, sum(document.id in shared for document in validation)


def leak_line(copies: int, leaked: int, n_training: int, n_validation: int) -> str:
    """Say how many documents are copies, and how many of them are on both sides."""
    return (
        f"{leaked:,} of {n_validation:,} validation documents are also among the "
        f"{n_training:,} for training; {copies:,} exact duplicates"
        + ("" if leaked else ", each on the side of its original" if copies else "")
    )


def _notes(
    split: Split, documents: Sequence[Document], validation_fraction: float, *, lost: int
) -> dict[str, str]:
    notes = {}
    if lost:
        texts = "1 long text" if lost == 1 else f"{lost} long texts"
        notes["split"] = (
            f"{texts} of this run changed before the held-out part, or were removed: what was held "
            "out there may now be trained on"
        )
    if validation_fraction and not split.validation and documents:
        size = total_bytes(documents) / 1000
        if len(documents) == 1:
            reason = (
                f"the text is one document of {size:.1f} kB, and "
                f"{SINGLE_DOCUMENT_BYTES // 1000} kB are needed to hold out its end"
            )
        else:
            reason = f"none of the {len(documents):,} documents was chosen for validation"
        notes["held out"] = f"nothing, so there is no validation loss: {reason}"
    return notes


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged: it says which text the run holds out",
        "Restore it from a copy, or remove it: the text is then split again, and some that was "
        "held out may be trained on",
    )
