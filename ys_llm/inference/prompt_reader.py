"""A prompt while it is read: what is known after the pieces so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ys_llm.inference.compiled_sampling import PENALTY_WINDOW
from ys_llm.inference.copied import Copyable
from ys_llm.inference.prefix_cache import SavedPrefix
from ys_llm.inference.sampling import ScoredToken, log_softmax, score_token
from ys_llm.model.copy_tier import Reading
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import State, detach, map_state


@dataclass(frozen=True)
class ShortPiece:
    """A piece of a prompt that the decode step is to read after `state`, token by token."""

    state: State
    ids: Sequence[int]


@dataclass(frozen=True)
class PieceRead:
    """What the decode step has made of a short piece: the logits after it, and the state."""

    logits_V: Tensor
    state: State


class PromptReader:
    """Reads the pieces of a prompt; `observe` is told the score of every token but the first."""

    def __init__(
        self,
        model: Model,
        state: State | None = None,
        observe: Callable[[ScoredToken], None] | None = None,
        n_candidates: int = 0,
    ) -> None:
        self.n_tokens, self.n_read, self.state = 0, 0, state  # n_read: pieces
        self.logits_V: Tensor | None = None
        self._model, self._observe, self._n_candidates = model, observe, n_candidates
        self.recent, self.n_cached = deque[int](maxlen=PENALTY_WINDOW), 0
        self._copyable: Copyable | None = None  # by what follows the last token

    @property
    def is_scoring(self) -> bool:
        """Whether every token is scored, which takes the logits of all."""
        return self._observe is not None

    def read(self, piece: Sequence[int]) -> None:
        """Read the next piece in one pass."""
        with inference_mode(self._model):
            row = _row(self._model, piece)
            if self._observe is None:
                logits_BTV, state = self._model(row, self.state, logits="last")
            else:
                logits_BTV, state, reading = self._model.read(row, self.state)
                scored = _scored(piece, logits_BTV[0], self.logits_V, self._n_candidates)
                for token in self._with_copied([*scored], reading, int(state["position_B"])):
                    self._observe(token)
        # In memory as a state from a file is, whose next piece must be rounded alike.
        self.state, self.logits_V = map_state(detach(state), Tensor.contiguous), logits_BTV[0, -1]
        self._pass(piece)
        self.n_read += 1

    def short(self, piece: Sequence[int]) -> ShortPiece:
        """The next piece, for the decode step to read; `take` what that has read."""
        state = self._model.init_state(1) if self.state is None else self.state
        return ShortPiece(state, piece)

    def take(self, piece: Sequence[int], read: PieceRead) -> None:
        """Go on after the next piece, which was read elsewhere."""
        self.state, self.logits_V = read.state, read.logits_V
        self._pass(piece)
        self.n_read += 1

    def _with_copied(
        self, scored: list[ScoredToken], reading: Reading | None, n_read: int
    ) -> list[ScoredToken]:
        """The tokens of a piece, the first of which the last query of the piece before predicts."""
        tier = self._model.copy_tier
        if tier is None or reading is None:
            return scored
        before, now = self._copyable, Copyable(tier, reading, n_read)
        self._copyable = now
        predicted_by = [(now, query) for query in range(len(scored))]
        if before is not None:
            predicted_by.insert(0, (before, -1))
        return [
            replace(token, copied=copyable.of(query, token.id, token.logprob))
            for token, (copyable, query) in zip(scored, predicted_by, strict=False)
        ]

    def skip(self, pieces: Sequence[Sequence[int]], saved: SavedPrefix) -> None:
        """Take over what is saved of the next pieces."""
        self.state, self.logits_V = saved.state, saved.logits_V
        for piece in pieces:
            self._pass(piece)
            self.n_cached += len(piece)

    def saved(self, *, whole: bool) -> SavedPrefix:
        """What is read so far, to be saved; `whole`: it is all of the prompt."""
        assert self.state is not None
        return SavedPrefix(self.state, self.logits_V if whole else None)

    def _pass(self, piece: Sequence[int]) -> None:
        self.recent.extend(piece)
        self.n_tokens += len(piece)


def _row(model: Model, ids: Sequence[int]) -> Tensor:
    return torch.tensor([ids], dtype=torch.int64, device=next(model.parameters()).device)


def _scored(
    ids: Sequence[int], logits_TV: Tensor, before_V: Tensor | None, n_candidates: int
) -> Iterator[ScoredToken]:
    """The tokens of one piece; `before_V` are the logits after the piece before it, if any."""
    if before_V is not None:
        yield score_token(ids[0], log_softmax(before_V), n_candidates)
    for id, logprobs_V in zip(ids[1:], log_softmax(logits_TV[:-1]), strict=True):
        yield score_token(id, logprobs_V, n_candidates)
