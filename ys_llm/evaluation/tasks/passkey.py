"""Passkey: five digits said once somewhere in a long text, and asked for at its end.

    <end> ... The grass is green. The sky is blue. ... The pass key is 48213. Remember it. ...
    ... What is the pass key? The pass key is 48213

The filler is one paragraph, repeated. The text is read in pieces with the carried state; an answer
is right if each of its tokens is the most probable one, which is what greedy decoding would say.
By chance one in 100,000 is. Standard error: sqrt(p (1 - p) / samples).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch
from torch import Tensor

from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.bits_per_byte import evaluating
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, state_bytes
from ys_llm.runs.model_files import LoadedRun

FILLER = (
    " The grass is green.",
    " The sky is blue.",
    " The sun is yellow.",
    " Here we go.",
    " There and back again.",
)
QUESTION = " What is the pass key? The pass key is"
_ROWS = 16  # texts read together
_COLUMNS = 256  # tokens of each at a time


@dataclass(frozen=True)
class PasskeyRow:
    """`tokens` are those of each text before its answer, `state_bytes` those carried for one."""

    task: str
    tokens: int
    samples: int
    accuracy: float
    standard_error: float
    state_bytes: int


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
        """A document with as many sentences of filler, for training."""
        sentences = list(islice(self.filler(), n_sentences))
        sentences.insert(int(self.depth * (n_sentences + 1)), self.needle)
        return "".join(sentences).strip() + QUESTION + self.answer + "."

    def filler(self) -> Iterator[str]:
        """Sentences without end."""
        return islice(chain.from_iterable(repeat(FILLER)), self.first, None)


def passkey_at(seed: int, number: int = 0, samples: int = 1) -> Passkey:
    """Key `number` of `samples`, which are spread evenly over the depth of their texts."""
    draw = random.Random(f"passkey {seed} {number}")
    depth = (number % samples + draw.random()) / samples
    return Passkey(f"{draw.randrange(10**5):05}", depth, draw.randrange(len(FILLER)))


def text_ids(passkey: Passkey, tokenizer: Tokenizer, n_tokens: int) -> Iterator[int]:
    """The `n_tokens` before the answer, `<end>` first, without keeping them.

    The last sentence before the question is cut short where that makes the length exact.
    """
    needle, question = tokenizer.encode(passkey.needle), tokenizer.encode(QUESTION)
    n_filler = n_tokens - 1 - len(needle) - len(question)
    if n_filler < 0:
        least = n_tokens - n_filler
        raise UserError(f"a passkey needs {least} tokens, found {n_tokens}", "Give a longer length")
    sentences = {sentence: tokenizer.encode(sentence) for sentence in FILLER}
    yield tokenizer.end_id
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


def measure_passkey(
    model: Model, tokenizer: Tokenizer, *, n_tokens: int, samples: int = 50, seed: int = 1
) -> PasskeyRow:
    """The share of keys that the model says after texts of `n_tokens`."""
    passkeys = [passkey_at(seed, number, samples) for number in range(samples)]
    right, n_bytes = 0, 0
    with evaluating(model):
        for begin in range(0, samples, _ROWS):
            group = passkeys[begin : begin + _ROWS]
            last_B1V, state = _read(model, tokenizer, group, n_tokens)
            n_bytes = state_bytes(state) // len(group)
            right += _n_right(model, tokenizer, group, last_B1V, state)
    share = right / samples
    error = math.sqrt(share * (1 - share) / samples)
    return PasskeyRow("passkey", n_tokens, samples, share, error, n_bytes)


def _read(
    model: Model, tokenizer: Tokenizer, passkeys: Sequence[Passkey], n_tokens: int
) -> tuple[Tensor, State]:
    """The logits after the last token of each text, and the state."""
    device, state = next(model.parameters()).device, None
    rows = [text_ids(passkey, tokenizer, n_tokens) for passkey in passkeys]
    while pieces := [piece for row in rows if (piece := list(islice(row, _COLUMNS)))]:
        last_B1V, state = model(torch.tensor(pieces, device=device), state, logits="last")
    assert state is not None
    return last_B1V, state


def _n_right(
    model: Model,
    tokenizer: Tokenizer,
    passkeys: Sequence[Passkey],
    last_B1V: Tensor,
    state: State,
) -> int:
    """How many answers are right; those of a tokenizer may differ in length, so padded."""
    answers = [torch.tensor(tokenizer.encode(passkey.answer)) for passkey in passkeys]
    padded_BT = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-1)
    padded_BT = padded_BT.to(last_B1V.device)
    said_BT = last_B1V.argmax(-1)
    if padded_BT.shape[1] > 1:
        logits_BTV, _ = model(padded_BT[:, :-1].clamp_min(0), state)
        said_BT = torch.cat([said_BT, logits_BTV.argmax(-1)], 1)
    return int(((said_BT == padded_BT) | (padded_BT < 0)).all(1).sum())


def passkey_of_run(
    loaded: LoadedRun, lengths: Sequence[int], *, samples: int
) -> Iterator[PasskeyRow]:
    """A row for each length, with the run's own tokenizer."""
    for n_tokens in lengths:
        yield measure_passkey(loaded.model, loaded.tokenizer, n_tokens=n_tokens, samples=samples)
