"""Short pieces of several prompts, read together: each decode step reads a token of every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ys_llm.inference.decode_step import DecodeRows
from ys_llm.inference.generate import Slices
from ys_llm.inference.generation import Generation
from ys_llm.inference.prompt_reader import PieceRead, ShortPiece
from ys_llm.inference.sampling import ScoredToken


@dataclass(eq=False)
class Reading:
    """A prompt while it is read; `scored` are the tokens so far, where that was asked."""

    generation: Generation
    slices: Slices
    scored: list[ScoredToken] = field(default_factory=list)


@dataclass(eq=False)
class _Row:
    """A piece while it is read."""

    reading: Reading
    piece: ShortPiece
    n_read: int = 0

    @property
    def is_read(self) -> bool:
        """Whether nothing of it is left."""
        return self.n_read == len(self.piece.ids)


class PieceRows:
    """Reads pieces as rows of one batch."""

    def __init__(self, rows: DecodeRows) -> None:
        self._decode_rows = rows
        self._rows, self._joining = list[_Row](), list[_Row]()

    def __len__(self) -> int:
        return len(self._rows) + len(self._joining)

    def add(self, reading: Reading, piece: ShortPiece) -> None:
        """Read a piece with the next steps."""
        self._joining.append(_Row(reading, piece))

    def step(self) -> list[tuple[Reading, PieceRead]]:
        """Read the next token of every piece; those that are complete leave."""
        if self._joining:  # together, since all rows are moved
            self._decode_rows.add([row.piece.state for row in self._joining])
            self._rows, self._joining = [*self._rows, *self._joining], []
        logits_NV = self._decode_rows.step([row.piece.ids[row.n_read] for row in self._rows])
        complete = list[tuple[Reading, PieceRead]]()
        for number, row in enumerate(self._rows):
            row.n_read += 1
            if row.is_read:
                state = self._decode_rows.row_state(number)
                complete.append((row.reading, PieceRead(logits_NV[number].clone(), state)))
        self._keep(lambda row: not row.is_read)
        return complete

    def drop(self, is_unwanted: Callable[[Generation], bool]) -> list[Generation]:
        """Leave out the pieces of these prompts, which are returned."""
        generations = [row.reading.generation for row in (*self._rows, *self._joining)]
        dropped = list(filter(is_unwanted, generations))
        if dropped:
            self._joining = [one for one in self._joining if one.reading.generation not in dropped]
            self._keep(lambda row: row.reading.generation not in dropped)
        return dropped

    def _keep(self, is_wanted: Callable[[_Row], bool]) -> None:
        remaining = [number for number, row in enumerate(self._rows) if is_wanted(row)]
        if len(remaining) < len(self._rows):
            self._decode_rows.keep(remaining)
            self._rows = [self._rows[number] for number in remaining]
