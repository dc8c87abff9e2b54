"""Kept states by their handles, which clients give back to go on from there."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ys_llm.inference.kept import Kept
from ys_llm.serving.limits import ApiError

_WORDS, _WORD_BITS = 4, 31  # ollama's `context` is a list of integers, which fit 32 bits


@dataclass(frozen=True)
class _Entry:
    owner: str
    kept: Kept


class KeptStates:
    """At most `max_bytes` of states, the least recently used out first.

    A handle is a random number of 124 bits: nobody finds the state of another by trying. `owner`
    is the model whose state it is, and no other can use it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.n_bytes = max_bytes, 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, owner: str, kept: Kept) -> str:
        """Keep a state; its handle."""
        words = [secrets.randbits(_WORD_BITS) for _ in range(_WORDS)]
        handle = text_of(words)
        self._entries[handle] = _Entry(owner, kept)
        self.n_bytes += kept.n_bytes
        while self.n_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.n_bytes -= oldest.kept.n_bytes
        return handle

    def find(self, owner: str, handle: str) -> Kept:
        """The state of a handle; ApiError where it is not kept, or of another model."""
        entry = self._entries.get(handle)
        if entry is None or entry.owner != owner:
            problem = "unknown context: it was of another model, or is kept no longer"
            raise ApiError(400, f"{problem}. Send the whole text again", param="context")
        self._entries.move_to_end(handle)
        return entry.kept


def text_of(words: Sequence[int]) -> str:
    """A handle, from the integers of ollama's `context`."""
    return "".join(f"{word & 0xFFFFFFFF:08x}" for word in words[:_WORDS])


def words_of(handle: str) -> list[int]:
    """A handle as the integers of ollama's `context`."""
    return [int(handle[i : i + 8], 16) for i in range(0, len(handle), 8)]
