"""How well a model replies to conversations that are known: exact matches, and good manners.

A reply is greedy, after everything that the conversation has before it, up to `<end>`.

    exact    it is the text of the conversation, blanks at both ends aside
    ended    it ended with `<end>` within the limit
    alone    it holds no token of a role: the model did not go on to speak for somebody else
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.chat import TOKEN_OF_ROLE, Conversation, Turn, render
from ys_llm.inference.decoder import decoder_of
from ys_llm.inference.generate import generate, prefill
from ys_llm.runs.model_files import LoadedRun

MOST_TOKENS = 128
EVERYTHING = "all"


@dataclass(frozen=True)
class Reply:
    """One reply of a model, and what it was measured by."""

    text: str
    is_exact: bool
    has_ended: bool
    is_alone: bool


@dataclass(frozen=True)
class Share:
    """Shares of the replies of one kind."""

    replies: int
    exact: float
    ended: float
    alone: float


def replies_to(loaded: LoadedRun, conversation: Conversation) -> list[Reply]:
    """The model's reply in place of each turn of the assistant."""
    turns = conversation.turns
    places = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    return [_reply(loaded, turns[:place], turns[place].text) for place in places]


def shares(found: Mapping[str, Sequence[Reply]]) -> dict[str, Share]:
    """The shares of each kind, and of everything."""
    every = {EVERYTHING: [reply for replies in found.values() for reply in replies], **found}
    return {
        kind: Share(
            len(replies),
            sum(reply.is_exact for reply in replies) / len(replies),
            sum(reply.has_ended for reply in replies) / len(replies),
            sum(reply.is_alone for reply in replies) / len(replies),
        )
        for kind, replies in every.items()
        if replies
    }


def _reply(loaded: LoadedRun, before: Sequence[Turn], expected: str) -> Reply:
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = [*render(before, tokenizer).ids, tokenizer.controls[TOKEN_OF_ROLE["assistant"]]]
    sampling = GenerateConfig(temperature=0.0, max_tokens=MOST_TOKENS)
    decoder = decoder_of(model)
    read = prefill(model, ids, decoder=decoder)
    end_ids = [tokenizer.end_id]
    tokens = generate(model, read, sampling=sampling, end_ids=end_ids, decoder=decoder)
    written = [token.id for token in tokens]
    text = tokenizer.decode(written)
    roles = {tokenizer.controls[name] for name in TOKEN_OF_ROLE.values()}
    return Reply(
        text,
        text.strip() == expected.strip(),
        bool(written) and written[-1] == tokenizer.end_id,
        not roles & set(written),
    )
