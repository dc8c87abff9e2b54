"""Messages of a conversation as the ids that a model reads.

A model that was fine-tuned on conversations reads them as it has learned them (`data/chat.py`). One
that has learned records, `prompt<start>response<end>`, reads a record for each turn, in order, and
answers the prompt of the last one:

    <end> prompt <start> response <end> ... prompt <start>

Such training data has no system message: the text of one is the first paragraph of the next prompt.
A model without records is given the texts as paragraphs, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from ys_llm.data.chat import TOKEN_OF_ROLE, Role, Turn, spans_of
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.inference.generate import encode_pieces
from ys_llm.runs.model_files import LoadedRun
from ys_llm.serving.limits import ApiError

_PARAGRAPH = "\n\n"
_PIECE_CHARS = 1 << 16  # encoded at a time


@dataclass(frozen=True)
class ChatMessage:
    """Who says what."""

    role: Role
    text: str


class Ids:
    """Ids that are made again each time, so that several answers begin with them."""

    def __init__(self, make: Callable[[], Iterator[int]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[int]:
        return self._make()


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces, so that others are served while a long one is encoded."""
    return (text[i : i + _PIECE_CHARS] for i in range(0, len(text), _PIECE_CHARS))


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """ApiError where the last message is not the user's."""
    if not messages or messages[-1].role != "user":
        raise ApiError(400, "messages: the last one must be the user's", param="messages")


def chat_ids(loaded: LoadedRun, messages: Sequence[ChatMessage]) -> Iterator[int]:
    """What is read before the answer."""
    tokenizer = loaded.tokenizer
    if loaded.chats:
        return _turns_of_a_chat(tokenizer, messages)
    if not loaded.has_records:
        text = _PARAGRAPH.join(message.text for message in messages)
        return chain([tokenizer.end_id], encode_pieces(tokenizer, pieces_of(text)))
    return chain.from_iterable(_turn_ids(tokenizer, *turn) for turn in turns_of(messages))


def turns_of(messages: Sequence[ChatMessage]) -> list[tuple[str, str | None]]:
    """Prompt and response of each turn; the last one has no response yet."""
    turns: list[tuple[str, str | None]] = []
    prompt: list[str] = []
    for message in messages:
        if message.role == "assistant":
            turns.append((_PARAGRAPH.join(prompt), message.text))
            prompt = []
        else:
            prompt.append(message.text)
    return [*turns, (_PARAGRAPH.join(prompt), None)]


def _turns_of_a_chat(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> Iterator[int]:
    """The conversation as `data/chat.py` writes it, up to the control token before the answer."""
    yield tokenizer.end_id
    turns = (Turn(message.role, message.text) for message in messages if message.text)
    for span in spans_of(turns):
        yield tokenizer.controls[span.control]
        yield from encode_pieces(tokenizer, pieces_of(span.text))
    yield tokenizer.controls[TOKEN_OF_ROLE["assistant"]]


def _turn_ids(tokenizer: Tokenizer, prompt: str, response: str | None) -> Iterator[int]:
    yield tokenizer.end_id
    yield from encode_pieces(tokenizer, pieces_of(prompt))
    yield tokenizer.start_id
    if response is not None:
        yield from encode_pieces(tokenizer, pieces_of(response))
