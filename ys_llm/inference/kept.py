"""A text that was read and generated up to some token, kept to be gone on from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from ys_llm.data.tokenizer import Tokenizer
from ys_llm.inference.generate import as_prompt, encode_pieces
from ys_llm.model.state import State, memory_bytes, tensors_of


@dataclass(frozen=True)
class Kept:
    """The state of one row; nothing changes it, so that two texts can go on from it.

    `pending` are ids that belong to the text and were not read yet: the last one of an answer.
    Where there are none, `logits_V` are those after the last token.
    """

    state: State
    pending: tuple[int, ...]
    recent: tuple[int, ...]  # the last ids, for the repetition penalty
    logits_V: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of memory."""
        logits = [] if self.logits_V is None else [self.logits_V]
        return memory_bytes([*tensors_of(self.state), *logits])


def ids_after(
    kept: Kept,
    tokenizer: Tokenizer,
    pieces: Iterable[str] | None,
    *,
    raw: bool,
    chats: bool = False,
) -> Iterator[int]:
    """What is to be read after `kept`: another prompt, or with `raw` the text that goes on.

    A prompt comes after the `<end>` of the answer, which is added where the answer was cut off.
    It is a turn of a conversation where the model `chats`.
    A text goes on as if the `<end>` had not been drawn. Without `pieces` nothing is added.
    """
    if pieces is None:
        return iter(kept.pending)
    end = (tokenizer.end_id,)
    if raw:
        pending = () if kept.pending == end else kept.pending
        return chain(pending, encode_pieces(tokenizer, pieces))
    pending = kept.pending if kept.pending == end else (*kept.pending, *end)
    return chain(pending, as_prompt(tokenizer, encode_pieces(tokenizer, pieces), chats=chats))
