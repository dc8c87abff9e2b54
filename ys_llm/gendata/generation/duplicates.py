"""Which records a corpus already has: duplicates, near ones and repeated answers are rejected."""

from typing import TYPE_CHECKING

from ys_llm.data.records import Record, document_id
from ys_llm.gendata.generation.journal import Rejection

if TYPE_CHECKING:
    from ys_llm.gendata.curation.near_duplicates import NearDuplicates

NEAR = 0.8  # Jaccard similarity of word shingles at which two records count as one
_OWN_WORDS = 5  # answers of so many words are not given to two prompts; "Yes." and labels are


class Duplicates:
    """The records of a corpus so far. Those of programs are only compared exactly.

    They differ in just the numbers and words that matter, by design.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._answers: set[str] = set()  # longer ones of a model, as words
        self._near: NearDuplicates | None = None

    def add_id(self, document: str) -> None:
        """Add a record of which only the document id is known."""
        self._ids.add(document)

    def add(self, record: Record, *, near: bool) -> Rejection | None:
        """Add the record, or say why not; `near` (text of a model) also looks for similar ones."""
        document = document_id(record.response, record.prompt)
        if document in self._ids:
            return Rejection("duplicate", "the corpus already has this record")
        if near and (similarity := self._nearest(record)):
            return Rejection("near_duplicate", f"{similarity:.0%} similar to an earlier record")
        answer = " ".join(record.response.casefold().split())
        own = near and answer.count(" ") + 1 >= _OWN_WORDS
        if own and answer in self._answers:
            return Rejection("repeated_answer", "an earlier record has the same answer")
        self._ids.add(document)
        if own:
            self._answers.add(answer)
        return None

    def _nearest(self, record: Record) -> float:
        """Similarity to the nearest record at or above NEAR, or 0; then the record is added."""
        from ys_llm.gendata.curation import near_duplicates as near

        if self._near is None:
            self._near = near.NearDuplicates(NEAR)
        shingles = near.shingles_of(f"{record.prompt}\n{record.response}")
        match = self._near.add(len(self._ids), shingles, near.signature_of(shingles))
        return match.jaccard if match else 0.0
