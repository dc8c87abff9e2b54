"""The texts of the passkey task: five digits said once in a long text, and asked for at its end.

    <end> ... The grass is green. The sky is blue. ... The pass key is 48213. Remember it. ...
    ... What is the pass key? The pass key is 48213

The filler is one paragraph, repeated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Protocol

from ys_llm.errors import UserError

FILLER = (
    " The grass is green.",
    " The sky is blue.",
    " The sun is yellow.",
    " Here we go.",
    " There and back again.",
)
QUESTION = " What is the pass key? The pass key is"
DIGITS = 5


class Encoder(Protocol):
    """What makes ids of a text."""

    end_id: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""


@dataclass(frozen=True)
class Passkey:
    """A key, and where it is hidden: before which sentence, as a share of all; a cycle's start."""

    key: str
    depth: float
    first: int

    @property
    def needle(self) -> str:
        """What is hidden."""
        return f" The pass key is {self.key}. Remember it."

    @property
    def answer(self) -> str:
        """What continues the question."""
        return f" {self.key}"

    def text(self, n_sentences: int) -> str:
        """A document with as many sentences of filler before its question, for training.

        It goes on after the answer: the published score takes an early end for a wrong answer.
        """
        sentences = list(islice(self.filler(), n_sentences))
        sentences.insert(int(self.depth * (n_sentences + 1)), self.needle)
        return "".join([*sentences, QUESTION, self.answer, ".", *FILLER]).strip()

    def filler(self) -> Iterator[str]:
        """Sentences without end."""
        return islice(chain.from_iterable(repeat(FILLER)), self.first, None)


def passkey_at(seed: int, number: int = 0, samples: int = 1) -> Passkey:
    """Key `number` of `samples`, which are spread evenly over the depth of their texts."""
    draw = random.Random(f"passkey {seed} {number}")
    depth = (number % samples + draw.random()) / samples
    return Passkey(f"{draw.randrange(10**DIGITS):05}", depth, draw.randrange(len(FILLER)))


def text_ids(passkey: Passkey, encoder: Encoder, n_tokens: int) -> Iterator[int]:
    """The `n_tokens` before the answer, `<end>` first, without keeping them.

    The last sentence before the question is cut short where that makes the length exact.
    """
    needle, question = encoder.encode(passkey.needle), encoder.encode(QUESTION)
    n_filler = n_tokens - 1 - len(needle) - len(question)
    if n_filler < 0:
        least = n_tokens - n_filler
        raise UserError(f"a passkey needs {least} tokens, found {n_tokens}", "Give a longer length")
    sentences = {sentence: encoder.encode(sentence) for sentence in FILLER}
    yield encoder.end_id
    hidden, written = False, 0
    for sentence in passkey.filler():
        if not hidden and written >= int(passkey.depth * n_filler):
            hidden = True
            yield from needle
        ids = sentences[sentence][: n_filler - written]
        written += len(ids)
        yield from ids
        if written == n_filler:
            break
    yield from question if hidden else needle + question
