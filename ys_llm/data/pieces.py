"""Text cut into pieces, which no token crosses; and bytes as the characters of a byte-level BPE."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator

from ys_llm.config.schema import TokenizerKind
from ys_llm.data.case_markers import MARKERS
from ys_llm.data.joiners import JOINER
from ys_llm.data.letters import LETTERS
from ys_llm.errors import UserError

_CHUNK_CHARS = 1 << 16  # in training, the library needs 90 bytes of memory per byte of a chunk
LONGEST_PIECE = 1000  # characters; the library takes a minute to learn from a piece of 5 million
MAYBE_LONG = re.compile(rf"[^ \t\r\n]{{{LONGEST_PIECE}}}|[ \t\r\n]{{{LONGEST_PIECE}}}")


def _pattern(markers: str, word: str = f" ?[{LETTERS}]+") -> str:
    """Return the regular expression of all pieces but markers; `re` and the library match it alike.

    A piece is a word with its leading space; a contraction; a digit; symbols with their leading
    space; line breaks with the spaces before them; or spaces, except the last one before a word.
    Symbols do not include the line breaks after them, although that would save 2 % of the tokens:
    a prompt that ends in a full stop could then never be followed by a new paragraph.
    """
    return (
        f"{word}|'(?:[sdmt]|ll|ve|re)(?![{LETTERS}])|[0-9]"
        + f"| ?[^{LETTERS}0-9 \t\r\n{markers}]+"
        + "|[ \t]*[\r\n]+|[ \t]+(?![^ \t])|[ \t]+"
    )


_MARKERS: dict[TokenizerKind, str] = {"bpe_joiner": JOINER, "words": MARKERS}
# The same words for `re`, which is 13 % faster where it need not remember a way back.
_QUICK_WORD = f" [{LETTERS}]++|[{LETTERS}]++"
_CUT = re.compile(r"(?<=[^ \t\r\n])(?=[ \r\n])")  # where a piece ends in any context


def split_chunks(text: str, size: int = _CHUNK_CHARS) -> Iterator[str]:
    """Cut a text into chunks of about `size` characters that have the same pieces as the text."""
    if len(text) <= size:
        return iter((text,))
    return _cut_chunks(text, size)


def _cut_chunks(text: str, size: int) -> Iterator[str]:
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def chunks_of(blocks: Iterable[str], size: int = _CHUNK_CHARS) -> Iterator[str]:
    """Cut a text that comes in blocks into the chunks of `split_chunks`.

    No more than a chunk and a block are in memory, except of a text without spaces.
    """
    parts: list[str] = []
    length, wanted = 0, size
    for block in blocks:
        parts.append(block)
        length += len(block)
        if length > wanted:
            *whole, rest = split_chunks("".join(parts), size)
            yield from whole
            # Where there was nothing to cut, what is searched again at least doubles each time.
            parts, length, wanted = [rest], len(rest), max(size, 2 * len(rest))
    yield from split_chunks("".join(parts), size)


def split_long_piece(piece: str) -> list[str]:
    """Cut a piece into parts of LONGEST_PIECE characters."""
    starts = range(0, len(piece), LONGEST_PIECE)
    return [piece[start : start + LONGEST_PIECE] for start in starts]


def piece_pattern(kind: TokenizerKind) -> str:
    """Return the regular expression that cuts the text of a tokenizer of this kind into pieces."""
    markers = _MARKERS.get(kind, "")
    return (f"[{markers}]|" if markers else "") + _pattern(markers)


def piece_finder(kind: TokenizerKind) -> Callable[[str], list[str]]:
    """Return a function that cuts text into the pieces of `piece_pattern`."""
    markers = _MARKERS.get(kind, "")  # at the end, as `re` tries them last
    return re.compile(_pattern(markers, _QUICK_WORD) + (f"|[{markers}]" if markers else "")).findall


def to_utf8(text: str) -> bytes:
    """Encode as UTF-8; raises UserError on a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise UserError(
            f"{around!r} holds half of a character (a lone surrogate)",
            "Remove it: such text cannot be written as UTF-8.",
        ) from error


def _byte_level_alphabet() -> list[str]:
    """Return the printable character that the library uses for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable}
    codes |= {byte: 0x100 + index for index, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]


BYTE_CHARS = _byte_level_alphabet()
_BYTE_TABLE = "".join(BYTE_CHARS)
BYTE_OF_CHAR = {char: byte for byte, char in enumerate(BYTE_CHARS)}


def byte_level(piece: str) -> str:
    """Write each byte of a piece as the printable character that stands for it."""
    return codecs.charmap_decode(to_utf8(piece), "strict", _BYTE_TABLE)[0]
