"""Conversations as the tokens that a model reads: who speaks is a control token of its own.

    <end> <system> TEXT <user> TEXT <assistant> TEXT <end> <user> TEXT <assistant> TEXT <end>

`<end>` begins a conversation, as it begins any document, and ends each turn of the assistant: what
a model generates after `<assistant>` up to `<end>` is its reply. The other turns end where the next
one begins. A conversation is written span by span, and each span is encoded on its own: no text
can be read as a control token, and what is learned is known without a search.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

from ys_llm.data.controls import ROLE_TOKENS
from ys_llm.data.records import END, START
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
TOKEN_OF_ROLE: dict[Role, str] = dict(zip(ROLES, ROLE_TOKENS, strict=True))


@dataclass(frozen=True)
class Turn:
    """What one speaker says."""

    role: Role
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order; `source` is the file and line that they were read from."""

    turns: tuple[Turn, ...]
    source: str = ""

    @cached_property
    def id(self) -> str:
        """Identify the conversation by its content: 128 bits in hexadecimal."""
        return _digest(self.turns)


@dataclass(frozen=True)
class PreferencePair:
    """A conversation with two ends, of which people or a judge preferred `chosen`."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    source: str = ""

    @cached_property
    def id(self) -> str:
        """Identify the pair by its content: 128 bits in hexadecimal."""
        return _digest((*self.prompt, *self.chosen)) + _digest(self.rejected)


class Span(NamedTuple):
    """A control token and the text after it; whether a model learns to write either."""

    control: str
    text: str
    learns_control: bool
    learns_text: bool


@dataclass(frozen=True)
class Rendered:
    """The tokens of a conversation; `weights[i]` is how much the loss of predicting ids[i] counts.

    The weight is 1 for the text of the assistant and the `<end>` after it, 0 for all else.
    """

    ids: list[int]
    weights: list[float]

    @property
    def n_learned(self) -> int:
        """Return how many tokens have a weight."""
        return sum(weight > 0 for weight in self.weights)


def spans_of(turns: Iterable[Turn]) -> Iterator[Span]:
    """Yield the spans of a conversation, the `<end>` before it not among them."""
    for turn in turns:
        is_reply = turn.role == "assistant"
        yield Span(TOKEN_OF_ROLE[turn.role], turn.text, False, is_reply)
        if is_reply:
            yield Span(END, "", True, False)


def render(turns: Iterable[Turn], tokenizer: Tokenizer) -> Rendered:
    """Return the tokens of a whole conversation, from the `<end>` before it, with their weights."""
    check_roles(tokenizer)
    ids, weights = [tokenizer.end_id], [0.0]
    for span in spans_of(turns):
        text = tokenizer.encode(span.text)
        ids += [tokenizer.controls[span.control], *text]
        weights += [float(span.learns_control), *[float(span.learns_text)] * len(text)]
    return Rendered(ids, weights)


def render_pair(pair: PreferencePair, tokenizer: Tokenizer) -> tuple[Rendered, Rendered]:
    """Return both conversations of a pair; the weights are those of their different ends alone."""
    n_shared = len(render(pair.prompt, tokenizer).ids)
    chosen, rejected = (
        render((*pair.prompt, *end), tokenizer) for end in (pair.chosen, pair.rejected)
    )
    for rendered in (chosen, rejected):
        rendered.weights[:n_shared] = [0.0] * n_shared
    return chosen, rejected


def check_roles(tokenizer: Tokenizer) -> None:
    """Raise UserError unless the tokenizer has a token for each role."""
    if not tokenizer.has_roles:
        raise UserError(
            "the tokenizer has no control tokens for the roles of a conversation",
            "Fine-tune the model on conversations: that adds them.",
        )


def rows_to_begin_as(before: Tokenizer, after: Tokenizer) -> list[int]:
    """Return, for each id that `with_roles` has added, the older id that means the most like it.

    An answer follows `<assistant>` as it follows `<start>`; a prompt follows `<user>` as it follows
    `<end>`.
    """
    like = {TOKEN_OF_ROLE["assistant"]: before.controls[START]}
    added = range(before.vocab_size, after.vocab_size)
    return [like.get(after.token_text(id), before.controls[END]) for id in added]


def chat_template() -> str:
    """Return the template in the language of transformers (Jinja), which gives the same tokens.

    transformers reads a control token's name in a text as the token; the template refuses such a
    text instead.
    """
    names = ", ".join(f"'{name}'" for name in (END, START, *ROLE_TOKENS))
    roles = ", ".join(f"'{role}'" for role in ROLES)
    return (
        f"{{{{ '{END}' }}}}{{% for message in messages %}}"
        f"{{% if message['role'] not in [{roles}] %}}"
        "{{ raise_exception('unknown role ' ~ message['role']) }}{% endif %}"
        f"{{% for name in [{names}] %}}{{% if name in message['content'] %}}"
        "{{ raise_exception('a text holds the control token ' ~ name) }}{% endif %}{% endfor %}"
        "{{ '<' ~ message['role'] ~ '>' }}{{ message['content'] }}"
        f"{{% if message['role'] == 'assistant' %}}{{{{ '{END}' }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{TOKEN_OF_ROLE['assistant']}' }}}}{{% endif %}}"
    )


def _digest(turns: Sequence[Turn]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for turn in turns:
        data = turn.text.encode()
        digest.update(b"%s %d " % (turn.role.encode(), len(data)) + data)
    return digest.hexdigest()
