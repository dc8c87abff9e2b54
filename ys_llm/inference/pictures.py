"""What a conversation draws in characters: bars, memories, and a text coloured by its loss."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ys_llm.inference.memories import Memory
from ys_llm.inference.session import ReadCount
from ys_llm.system.terminal import printable

_BAR_WIDTH = 30
_PICTURE_WIDTH = 32
_LEVELS, _PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_NATS_PER_BIT = math.log(2)
# Bits from which a token is shown in a colour of the 256: from calm to surprised.
_COLOURS = ((2.0, 0), (4.0, 229), (6.0, 221), (9.0, 208), (math.inf, 196))
_MARKED_BITS = 4.0  # without colours: from here on the number stands behind the token


def speed(n_tokens: int, seconds: float) -> str:
    """`12 tokens in 0.10 s, 120 tokens/s`."""
    return f"{n_tokens:,} tokens in {seconds:.2f} s, {n_tokens / max(seconds, 1e-9):,.0f} tokens/s"


def reading_speed(read: ReadCount, seconds: float) -> str:
    """What was read, before what was written; "" where nothing was."""
    if not read.n_tokens:
        return ""
    if not read.n_cached:
        return f"prompt {speed(read.n_tokens, seconds)}; "
    of = f"read {read.n_tokens - read.n_cached:,} of {read.n_tokens:,} prompt tokens"
    return f"{of} in {seconds:.2f} s, {read.n_cached:,} from the cache; "


def columns() -> int:
    """The width of the terminal."""
    return shutil.get_terminal_size().columns


@contextmanager
def bar(
    name: str, size: int, *, every: float
) -> Iterator[Callable[[Iterable[str]], Iterator[str]]]:
    """A bar on stderr, at a terminal, of the pieces of a text that are taken: of `size` bytes."""
    is_shown = sys.stderr.isatty()

    def watched(pieces: Iterable[str]) -> Iterator[str]:
        """The same pieces."""
        done, drawn = 0, 0.0
        for piece in pieces:
            yield piece
            done += len(piece.encode())
            if is_shown and time.perf_counter() - drawn > every:
                drawn = time.perf_counter()
                n_full = min(_BAR_WIDTH, _BAR_WIDTH * done // max(1, size))
                line = f"{'#' * n_full}{'.' * (_BAR_WIDTH - n_full)} {done / max(1, size):4.0%}"
                line = f"{line} {printable(name)}"[: columns() - 1]
                print(f"\r{line}", end="", file=sys.stderr, flush=True)

    try:
        yield watched
    finally:
        if is_shown:
            print("\r" + " " * (columns() - 1) + "\r", end="", file=sys.stderr, flush=True)


def memory_lines(memories: Sequence[Memory], n_tokens: int, *, plain: bool) -> Iterator[str]:
    """A line for each memory: its name, norm and latest change, and its numbers as a picture."""
    width = max((len(memory.name) for memory in memories), default=0)
    for memory in memories:
        picture = profile(memory.numbers, plain=plain)
        yield f"{memory.name:{width}}  {memory.norm:8.2f}  {picture}  {_change(memory, n_tokens)}"


def profile(numbers: Tensor, *, plain: bool) -> str:
    """The size of the numbers in characters, neighbours together, relative to the largest."""
    if not numbers.any():
        return " " * _PICTURE_WIDTH
    parts = numbers.double().abs().tensor_split(min(_PICTURE_WIDTH, numbers.numel()))
    sizes = [float(part.square().mean().sqrt()) for part in parts]
    levels, most = _PLAIN_LEVELS if plain else _LEVELS, max(sizes)
    shown = "".join(levels[min(len(levels) - 1, int(size / most * len(levels)))] for size in sizes)
    return f"{shown:{_PICTURE_WIDTH}}"


def _change(memory: Memory, n_tokens: int) -> str:
    if memory.changed_at is None:
        return "no change in what was read last" if memory.norm else "empty"
    ago = n_tokens - memory.changed_at
    when = "by the last token" if not ago else f"{ago} token{'s' * (ago > 1)} ago"
    if memory.change is None:
        return f"grew {when}"
    return f"changed by {memory.change:.2f} {when}"


def surprise_text(tokens: Iterable[tuple[str, float]], *, colour: bool) -> str:
    """The tokens, each with its log-probability in nats, coloured by how unlikely it was."""
    parts = []
    for text, logprob in tokens:
        bits, text = -logprob / _NATS_PER_BIT, printable(text)
        if colour:
            number = next(number for below, number in _COLOURS if bits < below or below == math.inf)
            parts.append(f"\x1b[48;5;{number}m\x1b[30m{text}\x1b[0m" if number else text)
        else:
            parts.append(f"{text}({bits:.0f})" if bits >= _MARKED_BITS else text)
    return "".join(parts)
