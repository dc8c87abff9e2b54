"""One decode step for every sequence of a batch, by torch or by the compiled decoder.

Torch serves every mixer on every device. The compiled decoder is an acceleration: it serves models
on the CPU whose mixers all have a compiled step, see `decoder.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ys_llm.inference.decoder import MAX_SEQUENCES, Decoder, SequenceState, StepMemory
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import State, concat_rows, detach, flatten, map_state, select_rows


class DecodeRows(Protocol):
    """The sequences that are decoded together, each with its own state, one row each."""

    def add(self, states: Sequence[State]) -> None:
        """Append a row for each state (of one sequence); the states stay as they are."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, which keep their order."""

    def step(self, ids: Sequence[int]) -> Tensor:
        """Read one token of each row; the logits after it, N x V, valid until the next step."""

    def row_state(self, row: int) -> State:
        """The state of a row, which later steps do not change."""

    def parts(self, row: int) -> dict[str, Tensor]:
        """What a row's layers carry, by name (`layers.0.main`): the memory itself, no copies.

        It is valid until the next step, and until rows come or go.
        """

    def empty(self, row: int, names: Collection[str]) -> None:
        """Make memories of a row what they are before the first token; `flatten` names them.

        Tensors of the copy tier keep no token; where they keep their length, zeros are none.
        """


def decode_rows(model: Model, decoder: Decoder | None, *, threads: int | None = None) -> DecodeRows:
    """An empty batch, decoded by `decoder` on its or on `threads`, or by torch without one."""
    return TorchRows(model) if decoder is None else CompiledRows(decoder, threads)


class TorchRows:
    """Rows decoded by the model itself: their states are the rows of one state tree."""

    def __init__(self, model: Model) -> None:
        self.state: State | None = None
        self._model = model
        self._device = next(model.parameters()).device
        self._empty = flatten(model.init_state(1))

    def add(self, states: Sequence[State]) -> None:
        """See `DecodeRows`."""
        if states:
            before = [] if self.state is None else [self.state]
            self.state = concat_rows([*before, *states])

    def keep(self, rows: Sequence[int]) -> None:
        """See `DecodeRows`."""
        self.state = select_rows(self.state, rows) if rows else None

    def step(self, ids: Sequence[int]) -> Tensor:
        """See `DecodeRows`."""
        ids_B1 = torch.tensor(ids, dtype=torch.int64, device=self._device)[:, None]
        with inference_mode(self._model):
            logits_BTV, self.state = self._model(ids_B1, self.state)
        logits_BV: Tensor = logits_BTV[:, -1]
        return logits_BV

    def row_state(self, row: int) -> State:
        """See `DecodeRows`."""
        state: State = map_state(detach(select_rows(self.state, [row])), Tensor.contiguous)
        return state

    def parts(self, row: int) -> dict[str, Tensor]:
        """See `DecodeRows`."""
        assert self.state is not None
        layers = flatten({"layers": self.state["layers"]})
        return {name: part[row] for name, part in layers.items()}

    def empty(self, row: int, names: Collection[str]) -> None:
        """See `DecodeRows`."""
        tensors = flatten(self.state)
        with torch.inference_mode():
            for name in names:
                part = tensors[name][row]
                if name.startswith("copy."):
                    part.zero_()
                else:
                    part.copy_(self._empty[name][0])


class CompiledRows:
    """Rows decoded by the compiled decoder, `MAX_SEQUENCES` in one call."""

    def __init__(self, decoder: Decoder, threads: int | None = None) -> None:
        self._decoder, self._threads = decoder, threads
        self._sequences: list[SequenceState] = []
        self._memory = list[StepMemory]()

    def add(self, states: Sequence[State]) -> None:
        """See `DecodeRows`."""
        if states:
            added = [self._decoder.sequence(state) for state in states]
            self._sequences = self._decoder.side_by_side([*self._sequences, *added])

    def keep(self, rows: Sequence[int]) -> None:
        """See `DecodeRows`."""
        self._sequences = self._decoder.side_by_side([self._sequences[row] for row in rows])

    def step(self, ids: Sequence[int]) -> Tensor:
        """See `DecodeRows`."""
        begins = range(0, len(ids), MAX_SEQUENCES)
        self._memory += [StepMemory() for _ in begins[len(self._memory) :]]
        parts = [
            self._decoder.step(
                self._sequences[i : i + MAX_SEQUENCES],
                ids[i : i + MAX_SEQUENCES],
                threads=self._threads,
                memory=memory,
            )
            for i, memory in zip(begins, self._memory, strict=False)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def row_state(self, row: int) -> State:
        """See `DecodeRows`."""
        return self._decoder.state(self._sequences[row])

    def parts(self, row: int) -> dict[str, Tensor]:
        """See `DecodeRows`."""
        return self._decoder.parts(self._sequences[row])

    def empty(self, row: int, names: Collection[str]) -> None:
        """See `DecodeRows`."""
        self._decoder.empty(self._sequences[row], names)
