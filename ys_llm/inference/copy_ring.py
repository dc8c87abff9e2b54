"""What one sequence can copy, as the compiled decoder keeps it: a ring of tokens with their keys.

The compiled step attends to all slots in use alike and writes the token that it reads to the slot
it is told. The ring here keeps the latest tokens: the oldest one is written over.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ys_llm.csrc.loader import Library
from ys_llm.model.copy_tier import CopyState, CopyTier


class CopyRing:
    """As many slots as `tier` has tokens in view, filled from a model's state of one row.

    `panel` is the number of slots whose keys are interleaved in memory (`packed`).
    """

    def __init__(
        self, tier: CopyTier, state: CopyState, row: int, library: Library, panel: int
    ) -> None:
        self._width, self._slots = tier.width, tier.window
        tokens_N = state["tokens"][row]
        n_kept = int(tokens_N.count_nonzero())  # the latest: padding is before them
        first = len(tokens_N) - n_kept
        self._keys = _packed(state["keys"][row, first:], self._slots, panel)
        self._tokens = torch.zeros(self._slots, dtype=torch.int64)
        self._tokens[:n_kept] = tokens_N[first:] - 1
        pointers = map(library.pointer, (self._keys, self._tokens))
        self._struct: Any = library.ffi.new("struct ys_copy_ring *", (*pointers, 0, 0))
        self._used = self._next = n_kept  # a state has a token less than there are slots

    def prepared(self) -> Any:
        """The `struct ys_copy_ring` for the next step, with the slot of the token that it reads."""
        self._struct.next = self._next
        self._used = self._struct.used = max(self._used, self._next + 1)
        self._next = (self._next + 1) % self._slots
        return self._struct

    def empty(self, names: Collection[str]) -> None:
        """Forget what `names` of a state (`copy.keys`, `copy.tokens`) hold."""
        if "copy.tokens" in names:
            self._used = self._next = 0
        elif "copy.keys" in names:
            self._keys.zero_()

    def state(self) -> CopyState:
        """Keys and tokens of a model's state of one row, the latest last."""
        n_kept = min(self._used, self._slots - 1)
        order_N = (torch.arange(-n_kept, 0) + self._next) % self._slots
        keys_NK = self._keys.transpose(1, 2).reshape(-1, self._width)[order_N]
        tokens_N = self._tokens[order_N].to(torch.int32) + 1
        return {"keys": keys_NK[None], "tokens": tokens_N[None]}


def _packed(keys_NK: Tensor, slots: int, panel: int) -> Tensor:
    """The keys as `decoder_weights.packed` packs rows, with zeros in the slots behind them."""
    width, whole = keys_NK.shape[1], len(keys_NK) // panel
    panels = keys_NK.new_zeros(-(-slots // panel), width, panel)
    by_slot = panels.transpose(1, 2)
    by_slot[:whole] = keys_NK[: whole * panel].reshape(whole, panel, width)
    if len(keys_NK) > whole * panel:
        by_slot[whole, : len(keys_NK) - whole * panel] = keys_NK[whole * panel :]
    return panels
