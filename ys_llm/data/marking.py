"""Text written with markers, for tokenizers that learn from such text, and back."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Marking:
    """A way to write text with markers: `decode(encode(text))` is `text`, for any text.

    `unfinished` matches an end of written text that is read in another way if more text follows.
    `names` are what the markers are displayed as.
    """

    encode: Callable[[str], str]
    decode: Callable[[str], str]
    unfinished: re.Pattern[str]
    names: Mapping[str, str]


class MarkingDecoder:
    """`decode` for text that arrives in parts: a marker waits until what follows it is known."""

    def __init__(self, marking: Marking) -> None:
        self._marking, self._pending = marking, ""

    def push(self, encoded: str) -> str:
        """Return the text that no later part can change."""
        encoded = self._pending + encoded
        unfinished = self._marking.unfinished.search(encoded)
        end = unfinished.start() if unfinished else len(encoded)
        self._pending = encoded[end:]
        return self._marking.decode(encoded[:end])

    def flush(self) -> str:
        """Return the text of what is still pending, at the end of the input."""
        pending, self._pending = self._pending, ""
        return self._marking.decode(pending)
