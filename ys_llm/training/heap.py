"""The heap of a process, played through: what glibc's allocator takes for blocks that come and go.

A block goes into the smallest hole that it fits into, else on top; holes side by side become one.
An aligned block of n bytes is asked for as n + ALIGNMENT + 48, and what that is too much becomes a
hole again. So the hole that a tensor leaves is too small for the next tensor of its size, and the
heap grows well beyond the sum of its blocks.
"""

from bisect import bisect_left, insort

ALIGNMENT = 64  # of torch's tensors on a CPU
_HEADER, _UNIT, _SMALLEST = 8, 16, 32  # of a chunk, in bytes


class Heap:
    """Blocks under names; `top` is the most that the heap has been so far."""

    def __init__(self) -> None:
        self.top = 0
        self._end = 0
        self._holes: list[tuple[int, int]] = []  # (size, begin), sorted
        self._hole_at: dict[int, int] = {}  # begin -> size
        self._hole_to: dict[int, int] = {}  # end -> begin
        self._blocks: dict[int, tuple[int, int]] = {}  # name -> (begin, size)

    def take(self, name: int, n_bytes: int) -> None:
        """A block of this size, aligned."""
        size = _chunk(n_bytes)
        begin, room = self._room(_chunk(size + ALIGNMENT + _SMALLEST))
        lead = -(begin + 2 * _HEADER) % ALIGNMENT
        if 0 < lead < _SMALLEST:
            lead += ALIGNMENT
        if lead:
            self._leave(begin, lead)
        rest = room - lead - size
        if rest >= _SMALLEST:
            self._leave(begin + lead + size, rest)
            rest = 0
        self._blocks[name] = (begin + lead, size + rest)

    def free(self, name: int) -> None:
        """Make a hole of this block; a name that is not known is none of this heap's."""
        if name in self._blocks:
            self._leave(*self._blocks.pop(name))

    def _room(self, needed: int) -> tuple[int, int]:
        """(begin, size) of the smallest hole with so much room, else of new room on top."""
        at = bisect_left(self._holes, (needed, 0))
        if at < len(self._holes):
            size, begin = self._holes.pop(at)
            del self._hole_at[begin], self._hole_to[begin + size]
            return begin, size
        begin, self._end = self._end, self._end + needed
        self.top = max(self.top, self._end)
        return begin, needed

    def _leave(self, begin: int, size: int) -> None:
        if begin in self._hole_to:
            before = self._hole_to[begin]
            size += self._forget(before)
            begin = before
        if begin + size in self._hole_at:
            size += self._forget(begin + size)
        if begin + size == self._end:
            self._end = begin
            return
        insort(self._holes, (size, begin))
        self._hole_at[begin], self._hole_to[begin + size] = size, begin

    def _forget(self, begin: int) -> int:
        """Take a hole off the books; returns its size."""
        size = self._hole_at.pop(begin)
        del self._hole_to[begin + size]
        del self._holes[bisect_left(self._holes, (size, begin))]
        return size


def _chunk(n_bytes: int) -> int:
    return max(_SMALLEST, -(-(n_bytes + _HEADER) // _UNIT) * _UNIT)
