"""The heap that is played through, against its own rules and against glibc's."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.training.heap import ALIGNMENT, Heap

# Played by a process of its own, whose heap nothing else has used: bytes by which it has grown.
GLIBC = """
import ctypes, random, sys
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Info
libc.free.argtypes = [ctypes.c_void_p]
libc.mallopt(-4, 0), libc.mallopt(-1, 2**31 - 1)
before, place = libc.mallinfo2().arena, {}
for line in sys.stdin:
    name, size = map(int, line.split())
    if size:
        pointer = ctypes.c_void_p()
        libc.posix_memalign(ctypes.byref(pointer), 64, size)
        place[name] = pointer.value
    else:
        libc.free(place.pop(name))
print(libc.mallinfo2().arena - before)
"""


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000)), max_size=60))
@settings(deadline=None)
def test_blocks_are_aligned_and_never_overlap(wishes: list[tuple[int, int]]) -> None:
    heap, sizes = Heap(), dict[int, int]()
    for name, size in wishes:
        if name in sizes:
            heap.free(name)
            del sizes[name]
        else:
            heap.take(name, size)
            sizes[name] = size
        spans = sorted(heap._blocks.values())
        assert all(begin % ALIGNMENT == ALIGNMENT - 16 for begin, _ in spans)
        ends = [begin + size for begin, size in spans]
        assert all(end <= begin for end, (begin, _) in zip(ends, spans[1:], strict=False))
        assert max(ends, default=0) <= heap.top
        assert sum(sizes.values()) <= heap.top


def test_freed_room_becomes_one_hole_and_is_taken_again() -> None:
    heap = Heap()
    for name in range(10):
        heap.take(name, 10_000)
    full = heap.top
    for name in (1, 3, 2, 5, 4, 0, 6, 7, 8, 9):
        heap.free(name)
    heap.take(0, 99_000)
    assert heap.top == full
    heap.free(99)  # unknown: of another heap


def test_the_hole_of_a_tensor_is_too_small_for_the_next_of_its_size() -> None:
    heap = Heap()
    heap.take(0, 1 << 20)
    heap.take(1, 64)
    heap.free(0)
    heap.take(2, 1 << 20)
    assert heap.top > 2 << 20


@pytest.mark.skipif(not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="needs glibc")
@pytest.mark.parametrize("seed", range(3))
def test_it_grows_as_glibcs_does(seed: int) -> None:
    draw, alive, events, heap = random.Random(seed), list[int](), list[tuple[int, int]](), Heap()
    for name in range(3000):
        size = draw.choice((32_768, 262_144, 1_048_576, 720_896))
        events.append((name, size))
        heap.take(name, size)
        alive.append(name)
        while len(alive) > draw.randint(60, 120):
            gone = alive.pop(draw.randrange(len(alive)))
            events.append((gone, 0))
            heap.free(gone)
    lines = "".join(f"{name} {size}\n" for name, size in events)
    command = [sys.executable, "-c", GLIBC]
    said = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    assert heap.top == pytest.approx(int(said), rel=0.1)
