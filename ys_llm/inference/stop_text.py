"""The text of an answer while it is generated, up to the first of its stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from ys_llm.data.tokenizer import StreamDecoder, Tokenizer


class StopText:
    """Decodes token by token; what may be the beginning of a stop string is held back.

    The results of `push` and `flush`, joined, are the text before the first stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.stopped = False
        self._decoder, self._stop, self._held = StreamDecoder(tokenizer), tuple(stop), ""

    def push(self, id: int) -> str:
        """The text that this token completes."""
        return self._passed(self._decoder.push(id))

    def flush(self) -> str:
        """The text that is still held back, at the end of the ids."""
        text = self._passed(self._decoder.flush())
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _passed(self, text: str) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        text = self._held + text
        ends = [where for word in self._stop if (where := text.find(word)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        n_held = max(_overlap(text, word) for word in self._stop)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that `word` begins with, short of all of `word`."""
    return next(n for n in range(min(len(text), len(word) - 1), -1, -1) if text.endswith(word[:n]))
