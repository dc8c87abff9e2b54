"""What is in a corpus already: a record that is there, or nearly there, is not wanted again."""

from typing import TYPE_CHECKING

from ys_llm.data.records import Record, document_id
from ys_llm.gendata.generation.journal import Rejection

if TYPE_CHECKING:
    from ys_llm.gendata.curation.near_duplicates import NearDuplicates

NEAR = 0.8  # Jaccard of word shingles from which on two records are one


class Duplicates:
    """The records kept so far. Records of programs are compared exactly alone.

    They differ in the numbers and words that matter and in nothing else: that is what they are for.
    """

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._near: NearDuplicates | None = None

    def know(self, document: str) -> None:
        """Keep a record of which the key is all that is known."""
        self._keys.add(document)

    def add(self, record: Record, *, near: bool) -> Rejection | None:
        """Keep the record, or say why not; `near` compares it with its like as well."""
        key = document_id(record.response, record.prompt)
        if key in self._keys:
            return Rejection("duplicate", "the same record is there already")
        if near and (found := self._nearest(record)):
            return Rejection("near_duplicate", f"{found:.0%} of it is in one that is there")
        self._keys.add(key)
        return None

    def _nearest(self, record: Record) -> float:
        """Jaccard with the nearest record that is too near; 0 where none is, and it is kept."""
        from ys_llm.gendata.curation import near_duplicates as near

        if self._near is None:
            self._near = near.NearDuplicates(NEAR)
        shingles = near.shingles_of(f"{record.prompt}\n{record.response}")
        match = self._near.add(len(self._keys), shingles, near.signature_of(shingles))
        return match.jaccard if match else 0.0
