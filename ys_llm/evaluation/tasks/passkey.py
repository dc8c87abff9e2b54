"""Passkey: five digits said once somewhere in a long text, and asked for at its end.

Protocol. Lengths: 1,000, 10,000 and 100,000 tokens before the answer, in the model's own tokens,
`<end>` first; 1,000,000 with `--long`. Samples: 50 of each length, seed 1, their keys spread evenly
over the depth of the texts (`passkey_text.py`). The text is read in pieces with the carried state,
so that memory does not grow with it. Then ANSWER_TOKENS are decoded greedily, or fewer where the
model says `<end>`.

Score. An answer is right if the digits of its first word are the key. By chance one in 100,000 is.
`as published` is the score of "2Mamba2Furious" (arXiv 2602.17363, 2026): the last ten ids of text
and answer are decoded, cut at the first space, and the digits that are left must be the key. It
differs where a model stops early, as the ten ids begin in the text then and the answer counts as
wrong, and where a new line ends the key. Its texts state the key twice and after an instruction,
and its lengths are about characters: the figures are not comparable, the scoring is.

Standard error: sqrt(p (1 - p) / samples), for all depths together and for each fifth of the text,
of which the first is its beginning.

`ys compare --task passkey` trains small models on the same texts in bytes: the five digits alone
are answers, and all of them must be right, each after the right ones before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ys_llm.data.shards import Int64Array
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.evaluation.bits_per_byte import evaluating
from ys_llm.evaluation.tasks.passkey_text import DIGITS, Passkey, passkey_at, text_ids
from ys_llm.evaluation.tasks.task import Task, answers_from
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, state_bytes

LENGTHS, LONG_LENGTHS = (1_000, 10_000, 100_000), (1_000_000,)
SAMPLES = 50
SEED = 1
ANSWER_TOKENS = 10
FIFTHS = ("0-20 %", "20-40 %", "40-60 %", "60-80 %", "80-100 %")
ALL_DEPTHS = "all"
_ROWS = 16  # texts read together
_COLUMNS = 256  # tokens of each at a time

Decode = Callable[[Iterable[int]], str]


@dataclass(frozen=True)
class PasskeyRow:
    """`tokens` are those of each text before its answer, `state_bytes` those carried for one.

    `depth` is "all", or a fifth of the text in which the key lies.
    """

    tokens: int
    depth: str
    samples: int
    accuracy: float
    standard_error: float
    as_published: float
    state_bytes: int


@dataclass(frozen=True)
class Answer:
    """A key, what was said, and the text's last ids before it."""

    passkey: Passkey
    last_ids: Sequence[int]
    said: Sequence[int]


def measure_passkey(
    model: Model, tokenizer: Tokenizer, *, n_tokens: int, samples: int = SAMPLES, seed: int = SEED
) -> list[PasskeyRow]:
    """The share of keys that the model says after texts of `n_tokens`: of all, and by depth."""
    passkeys = [passkey_at(seed, number, samples) for number in range(samples)]
    answers: list[Answer] = []
    n_bytes = 0
    with evaluating(model):
        for begin in range(0, samples, _ROWS):
            group = passkeys[begin : begin + _ROWS]
            last_B1V, state, last_ids = _read(model, tokenizer, group, n_tokens)
            n_bytes = state_bytes(state) // len(group)
            said = _said(model, last_B1V, state, end_id=tokenizer.end_id)
            answers += map(Answer, group, last_ids, said)
    return rows_of(answers, tokenizer.decode, n_tokens=n_tokens, n_bytes=n_bytes)


def rows_of(
    answers: Sequence[Answer], decode: Decode, *, n_tokens: int, n_bytes: int
) -> list[PasskeyRow]:
    """A row for all answers, and one for each fifth of the depth that has any."""
    found = []
    for depth in (ALL_DEPTHS, *FIFTHS):
        chosen = [one for one in answers if depth in (ALL_DEPTHS, fifth_of(one.passkey))]
        if not chosen:
            continue
        right = [key_said(decode(one.said)) == one.passkey.key for one in chosen]
        published = [
            published_key(one.last_ids, one.said, decode) == one.passkey.key for one in chosen
        ]
        number = len(chosen)
        share = sum(right) / number
        error = math.sqrt(share * (1 - share) / number)
        row = (n_tokens, depth, number, share, error, sum(published) / number, n_bytes)
        found.append(PasskeyRow(*row))
    return found


def fifth_of(passkey: Passkey) -> str:
    """The fifth of the text in which a key lies."""
    return FIFTHS[min(int(passkey.depth * len(FIFTHS)), len(FIFTHS) - 1)]


def key_said(answer: str) -> str:
    """The digits of an answer's first word: ` 48213. Remember` says 48213."""
    return _digits((answer.split() or [""])[0])


def published_key(text: Sequence[int], said: Sequence[int], decode: Decode) -> str:
    """The digits before the first space in the last ANSWER_TOKENS ids of text and answer.

    A published text ends in the space before its key, ours does not: one in front is not counted.
    """
    last = [*text, *said][-ANSWER_TOKENS:]
    return _digits(decode(last).removeprefix(" ").partition(" ")[0])


def _digits(word: str) -> str:
    return "".join(letter for letter in word if letter.isdecimal())


def _read(
    model: Model, tokenizer: Tokenizer, passkeys: Sequence[Passkey], n_tokens: int
) -> tuple[Tensor, State, list[list[int]]]:
    """The logits after the last token of each text, the state, and the last ids."""
    device, state = next(model.parameters()).device, None
    last_ids: list[list[int]] = [[] for _ in passkeys]
    rows = [text_ids(passkey, tokenizer, n_tokens) for passkey in passkeys]
    while pieces := [piece for row in rows if (piece := list(islice(row, _COLUMNS)))]:
        last_B1V, state = model(torch.tensor(pieces, device=device), state, logits="last")
        last_ids = [
            [*before, *piece][-ANSWER_TOKENS:]
            for before, piece in zip(last_ids, pieces, strict=True)
        ]
    assert state is not None
    return last_B1V, state, last_ids


def _said(model: Model, last_B1V: Tensor, state: State, *, end_id: int) -> Iterator[list[int]]:
    """What each row says: ANSWER_TOKENS, or those before its `<end>`."""
    said_B1 = last_B1V.argmax(-1)
    said = [said_B1]
    for _ in range(ANSWER_TOKENS - 1):
        last_B1V, state = model(said_B1, state, logits="last")
        said_B1 = last_B1V.argmax(-1)
        said.append(said_B1)
    for ids in torch.cat(said, 1).tolist():
        yield ids[: ids.index(end_id)] if end_id in ids else ids


class _Bytes:
    """Ids that are bytes, and one more for `<end>`."""

    end_id = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode())


def _in_bytes(draw: np.random.Generator, n_bytes: int) -> tuple[Int64Array, Int64Array]:
    """A text of `n_bytes` before the answer, and the digits as answers."""
    passkey = passkey_at(int(draw.integers(1 << 62)))
    ids = [*text_ids(passkey, _Bytes(), n_bytes), *_Bytes().encode(passkey.answer)]
    return answers_from(np.array(ids, dtype=np.int64), len(ids) - DIGITS)


PASSKEY = Task(
    "passkey",
    "bytes",
    vocab_size=257,
    chance=10.0**-DIGITS,
    make=_in_bytes,
    sizes=(128, 256, 512),
    longer=(1024, 2048),
    whole=True,
)
