"""States of prompts that were read: a prompt that begins as an earlier one did starts from there.

A prompt is read in pieces, always cut alike (`pieces_of`): 256 tokens at a time, then 64 at a time,
then the rest. Another cut would round differently, so a state is saved and found under a key of
the ids and of their cut, and only where a piece ends. What is generated from a saved state is then
bit for bit what is generated without the cache, by the same code on the same machine.

Everything here is a function of token ids and states. `prefill_cached` reads a prompt with it, and
so can whoever reads prompts in another way, a server in slices for one:

    keys = keys_of(pieces)                      # one for each piece, each of all ids up to its end
    n_known, saved = cache.longest(keys, whole=True)
    ...                                         # read pieces[n_known:] from saved.state
    cache.add(keys[-1], SavedPrefix(state, logits_V))

The tokens of an answer are computed by the decode step, which rounds differently: a state after an
answer continues that conversation, but is none of a prompt's. As part of a later prompt an answer
is read again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from ys_llm.model.state import State, memory_bytes, tensors_of

MEGABYTE = 1_000_000
PIECE_SIZES = (256, 64)  # tokens that are read in one call
ROOT = b""  # the key of no ids
_LARGE_SHARE = 16  # what takes more than 1/16 of the memory is saved at sparse positions only


def pieces_of(ids: Iterable[int], sizes: Sequence[int] = PIECE_SIZES) -> Iterator[list[int]]:
    """Pieces of the first size while so many ids are left, then of the next size, then the rest.

    No more ids than the first size are taken ahead of what is yielded.
    """
    source = iter(ids)
    while len(rest := list(islice(source, sizes[0]))) == sizes[0]:
        yield rest
    for size in sizes[1:]:
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest:
        yield rest


def keys_of(pieces: Iterable[Sequence[int]], before: bytes = ROOT) -> list[bytes]:
    """The key of all ids up to the end of each piece, after ids whose key is `before`."""
    keys = [before]
    for piece in pieces:
        keys.append(
            hashlib.blake2b(keys[-1] + array("q", piece).tobytes(), digest_size=32).digest()
        )
    return keys[1:]


def is_checkpoint(n_tokens: int) -> bool:
    """Whether a state is saved after this many tokens, besides the end of the prompt.

    After each of the last, shorter pieces, and after every 256th token of the first 8192; further
    on every 512th, every 1024th and so on, so that of a long prompt at most a sixteenth is read
    again and few states are kept.
    """
    longest = PIECE_SIZES[0]
    return n_tokens % longest > 0 or n_tokens % max(longest, 1 << n_tokens.bit_length() - 5) == 0


@dataclass(frozen=True)
class SavedPrefix:
    """The state after some ids; the logits after them where these were a whole prompt."""

    state: State
    logits_V: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """How many ids there were."""
        return int(self.state["position_B"][0])

    @property
    def n_bytes(self) -> int:
        """Bytes of memory."""
        tensors = [*tensors_of(self.state), *([] if self.logits_V is None else [self.logits_V])]
        return memory_bytes(tensors)


class PrefixCache:
    """Saved prefixes by their keys, at most `max_bytes` of them: the least recently used go first.

    It serves one model with the weights it has now. What is saved is shared, and must not be
    changed in place.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.n_bytes = max_bytes, 0
        self.changed = False  # since it was made, or loaded from a file
        self._saved: OrderedDict[bytes, SavedPrefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._saved)

    def items(self) -> Iterator[tuple[bytes, SavedPrefix]]:
        """Keys and prefixes, the least recently used first."""
        yield from self._saved.items()

    def longest(self, keys: Sequence[bytes], *, whole: bool) -> tuple[int, SavedPrefix | None]:
        """The last of `keys` under which something is saved, counted from 1; (0, None) without one.

        Where the keys reach to the end of the prompt (`whole`), what is saved under the last one
        counts only if it has logits: generation begins with them.
        """
        for number in range(len(keys), 0, -1):
            saved = self._saved.get(keys[number - 1])
            if saved and (saved.logits_V is not None or number < len(keys) or not whole):
                for key in keys[:number]:
                    if key in self._saved:
                        self._saved.move_to_end(key)
                return number, saved
        return 0, None

    def add(self, key: bytes, saved: SavedPrefix) -> None:
        """Save a prefix, unless it is too large: a whole prompt, or at least 256 tokens, may fill
        the memory, the smaller steps between them may take a sixteenth.
        """
        is_sparse = saved.logits_V is not None or saved.n_tokens % PIECE_SIZES[0] == 0
        if saved.n_bytes > self.max_bytes // (1 if is_sparse else _LARGE_SHARE):
            return
        if before := self._saved.pop(key, None):
            self.n_bytes -= before.n_bytes
        self._saved[key] = saved
        self.n_bytes += saved.n_bytes
        self.changed = True
        while self.n_bytes > self.max_bytes:
            _, oldest = self._saved.popitem(last=False)
            self.n_bytes -= oldest.n_bytes
