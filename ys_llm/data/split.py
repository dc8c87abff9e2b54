"""Which text is held out for validation: decided by content, and stored with the run.

A document's own hash decides its side, whatever other documents there are. A plain text that is
long, or that is the only one, is cut instead: its end is held out. The run stores where it was cut
(`SplitRecord`), so that a text that grows never moves held-out text into training.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ys_llm.config.schema import DataConfig
from ys_llm.data.readers import ADVICE, read_corpus
from ys_llm.data.records import Document
from ys_llm.data.text_files import passed_over_line
from ys_llm.errors import UserError
from ys_llm.system.files import write_atomically

LONG_DOCUMENT_CHARS = 200_000  # a novel: a longer plain document is cut
SINGLE_DOCUMENT_BYTES = 20_000  # the only document is cut from this size on
SINGLE_DOCUMENT_FRACTION = 0.05

BY_CONTENT_HASH, BY_DOCUMENT_ID = 1, 2  # versions of how a document gets its side
_BLOCK_CHARS = 1 << 16


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
        """Write the record atomically."""
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")

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
    """The two sides. `leak_check`, and `notes` by their labels, are for the header of a run."""

    training: list[Document]
    validation: list[Document]
    leak_check: str
    notes: dict[str, str] = field(default_factory=dict)
    record: SplitRecord = field(default_factory=SplitRecord)


def load_split(
    config: DataConfig,
    *,
    record: SplitRecord | None = None,
    command: str = ADVICE,
    scratch: Path | None = None,
) -> Split:
    """Read the corpus of a configuration and split it; see `read_corpus` and `split_documents`."""
    corpus = read_corpus(
        Path(config.path), data_format=config.format, command=command, scratch=scratch
    )
    split = split_documents(
        corpus.documents, validation_fraction=config.validation_fraction, record=record
    )
    if corpus.passed_over:
        split.notes["passed over"] = passed_over_line(corpus.passed_over)
    return split


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
    split = Split([], [], "")
    cuts: list[Cut] = []
    record = record or SplitRecord()
    # A run of a version without records has trained on all of its only document.
    single = len(every) == 1 and record.version == BY_DOCUMENT_ID
    for document in every:
        fraction = _cut_fraction(document, validation_fraction, single=single)
        known = _known_cut(document, record.cuts) if validation_fraction else None
        if known or fraction:
            cuts.append(known or _new_cut(document.text, fraction))
            _apply(cuts[-1], document, split)
        elif len(every) == 1 or _place(document, record.version) >= validation_fraction:
            split.training.append(document)
        else:
            split.validation.append(document)
    if split.validation and not split.training:
        raise UserError(
            f"all {len(every):,} documents are held out, none is left for training",
            "Add text, or add to the command: --set data.validation_fraction=0",
        )
    return Split(
        split.training,
        split.validation,
        _leak_check(split.training, split.validation),
        _notes(split, every, validation_fraction, lost=len(set(record.cuts) - set(cuts))),
        SplitRecord(record.version, tuple(dict.fromkeys(cuts))),
    )


def _cut_fraction(document: Document, validation_fraction: float, *, single: bool) -> float:
    """Return the share of a document that is held out by a cut; 0 where it is not cut."""
    n_bytes = document.n_bytes  # compared first: the text itself may have to be read from a file
    if n_bytes < SINGLE_DOCUMENT_BYTES or document.prompt is not None:
        return 0.0
    if n_bytes > LONG_DOCUMENT_CHARS and len(document.text) > LONG_DOCUMENT_CHARS:
        return validation_fraction
    if single:
        return min(validation_fraction, SINGLE_DOCUMENT_FRACTION)
    return 0.0


def _new_cut(text: str, fraction: float) -> Cut:
    position = int(len(text) * (1 - fraction))
    begin, end = _count(text, position), _count(text, len(text))
    return Cut(begin, end, position, _hash_before(text, begin), _hash_before(text, end))


def _known_cut(document: Document, cuts: Sequence[Cut]) -> Cut | None:
    """Return the stored cut of this document, if its text before the cut is what it was."""
    cuts = [cut for cut in cuts if cut.begin <= document.n_bytes]
    if not cuts or document.prompt is not None:
        return None
    return next(
        (c for c in cuts if _hash_before(document.text, c.begin) == c.hash_before_begin), None
    )


def _apply(cut: Cut, document: Document, split: Split) -> None:
    """Divide a document; if the held-out part itself has changed, all after `begin` is held out."""
    text = document.text
    begin, end = cut.position, len(text)
    if _count(text, min(begin, len(text))) != cut.begin:
        begin = _position(text, cut.begin)
    if _hash_before(text, cut.end) == cut.hash_before_end:
        end = _position(text, cut.end)
        end += len(text) - end - len(text[end:].lstrip())
    for side, first, last in (
        (split.training, 0, begin),
        (split.validation, begin, end),
        (split.training, end, len(text)),
    ):
        if first < last and not text[first:last].isspace():
            side.append(document.part(first, last))


def _count(text: str, end: int) -> int:
    """Count the characters before `end` that are not white space."""
    starts = range(0, end, _BLOCK_CHARS)
    return sum(len("".join(text[i : min(i + _BLOCK_CHARS, end)].split())) for i in starts)


def _position(text: str, count: int) -> int:
    """Return the position after `count` characters that are not white space."""
    start = 0
    while start < len(text):
        block = text[start : start + _BLOCK_CHARS]
        inside = len("".join(block.split()))
        if inside >= count:
            break
        start, count = start + len(block), count - inside
    while count > 0 and start < len(text):
        count -= not text[start].isspace()
        start += 1
    return start


def _hash_before(text: str, count: int) -> str:
    """Hash the first `count` characters that are not white space; "" if there are fewer."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(text), _BLOCK_CHARS):
        block = "".join(text[start : start + _BLOCK_CHARS].split())[:count]
        digest.update(block.encode())
        count -= len(block)
        if count == 0:
            return digest.hexdigest()
    return "" if count else digest.hexdigest()


def _place(document: Document, version: int) -> float:
    """Return a number in [0, 1): deterministic, and uniformly distributed over documents."""
    digest = document.content_hash if version == BY_CONTENT_HASH else document.id
    return int(digest[:13], 16) / 16**13  # 52 bits: exact in a float


def _leak_check(training: Sequence[Document], validation: Sequence[Document]) -> str:
    counts = Counter(document.id for document in (*training, *validation))
    shared = {document.id for document in training} & {document.id for document in validation}
    copies = sum(counts.values()) - len(counts)
    leaked = sum(document.id in shared for document in validation)
    return (
        f"{leaked:,} of {len(validation):,} validation documents are also among the "
        f"{len(training):,} for training; {copies:,} exact duplicates"
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
        size = sum(document.n_bytes for document in documents) / 1000
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
