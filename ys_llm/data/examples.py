"""Examples to fine-tune on: conversations as tokens of which the replies alone are learned.

They are kept in memory, 3 bytes a token: what people fine-tune on is small beside a corpus.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ys_llm.data.chat import (
    Conversation,
    PreferencePair,
    Rendered,
    Turn,
    render,
    render_pair,
)
from ys_llm.data.records import Document, utf8_length
from ys_llm.data.shards import TokenShard
from ys_llm.data.tokenizer import Tokenizer

_SHOWN = 3  # of the examples that are named


class Example(NamedTuple):
    """An example as tokens, the bytes of what is learned of it, and where it was read."""

    rendered: Rendered
    n_bytes: int
    source: str


@dataclass(frozen=True)
class Pairs:
    """Conversations by twos that begin alike: document n of one was preferred to that of the other.

    `ids` identify the pairs by their content.
    """

    chosen: TokenShard
    rejected: TokenShard
    ids: tuple[str, ...]


def example_of(conversation: Conversation, tokenizer: Tokenizer) -> Example:
    """Return a conversation as an example."""
    rendered = render(conversation.turns, tokenizer)
    return Example(rendered, _reply_bytes(conversation.turns), conversation.source)


def example_of_document(document: Document, tokenizer: Tokenizer) -> Example:
    """Return a text, or a response to its prompt, in the form in which models are pretrained."""
    before = [tokenizer.end_id]
    if document.prompt is not None:
        before += [*tokenizer.encode(document.prompt), tokenizer.start_id]
    ids = [*tokenizer.encode(document.text), tokenizer.end_id]
    weights = [0.0] * len(before) + [1.0] * len(ids)
    return Example(Rendered(before + ids, weights), utf8_length(document.text), document.source)


def examples_of_pair(pair: PreferencePair, tokenizer: Tokenizer) -> tuple[Example, Example]:
    """Return both ends of a pair as examples."""
    chosen, rejected = render_pair(pair, tokenizer)
    return (
        Example(chosen, _reply_bytes(pair.chosen), pair.source),
        Example(rejected, _reply_bytes(pair.rejected), pair.source),
    )


def shard_of(examples: Sequence[Example], tokenizer: Tokenizer) -> TokenShard:
    """Return the examples as a shard, each a document, in their order.

    The `<end>` that ends the last turn of one is the one that begins the next.
    """
    tokens, counts, offsets = list[int](), list[bool](), list[int]()
    is_learned = False  # the `<end>` that comes next
    for example in examples:
        ids, weights = example.rendered.ids, example.rendered.weights
        offsets.append(len(tokens))
        ends = len(ids) - 1 if len(ids) > 1 and ids[-1] == tokenizer.end_id else len(ids)
        tokens += ids[:ends]
        counts += [is_learned, *(weight > 0 for weight in weights[1:ends])]
        is_learned = ends < len(ids) and weights[-1] > 0
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return TokenShard(
        np.array([*tokens, tokenizer.end_id], dtype=dtype),
        np.array(offsets, dtype=np.int64),
        np.array([example.n_bytes for example in examples], dtype=np.int64),
        np.array([*counts, is_learned], dtype=np.bool_),
    )


def pairs_of(pairs: Sequence[PreferencePair], tokenizer: Tokenizer) -> Pairs:
    """Return preference pairs as tokens."""
    both = [examples_of_pair(pair, tokenizer) for pair in pairs]
    chosen, rejected = [one for one, _ in both], [other for _, other in both]
    ids = tuple(pair.id for pair in pairs)
    return Pairs(shard_of(chosen, tokenizer), shard_of(rejected, tokenizer), ids)


def too_long(examples: Iterable[Example], seq_len: int, what_follows: str) -> str:
    """Return a line about the examples that are longer than a row; "" where there are none.

    The last token of an example is a target alone. `what_follows` says what becomes of their ends.
    """
    found = [example for example in examples if len(example.rendered.ids) - 1 > seq_len]
    if not found:
        return ""
    named = "; ".join(f"{e.source} has {len(e.rendered.ids) - 1:,}" for e in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return f"{len(found):,} of more than {seq_len:,} tokens, {what_follows}: {named}{more}"


def _reply_bytes(turns: Iterable[Turn]) -> int:
    return sum(utf8_length(turn.text) for turn in turns if turn.role == "assistant")
