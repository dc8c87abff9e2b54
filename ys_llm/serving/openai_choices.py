"""One choice of an answer, as OpenAI's two requests give it: in one piece, or as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ys_llm.data.tokenizer import Tokenizer
from ys_llm.inference.generation import Drawn, Event, Failed, Finished, PromptRead
from ys_llm.inference.sampling import ScoredToken
from ys_llm.serving.openai_bodies import ChatBody, CompletionBody
from ys_llm.serving.openai_logprobs import CompletionLogprobs, chat_logprobs

Json = dict[str, Any]


@dataclass(frozen=True)
class Partial:
    """What one event adds to a choice; `logprobs` holds lists, which go on in the next one."""

    text: str = ""
    logprobs: Json | None = None
    reason: str | None = None
    is_first: bool = False


class Choice(Protocol):
    """Turns events into parts, and parts into what is sent."""

    def part(self, event: Event) -> Partial | None:
        """What the event adds; None where it adds nothing."""

    def chunk(self, part: Partial) -> Json:
        """A part in a stream."""

    def whole(self, part: Partial) -> Json:
        """All parts together."""


def joined(parts: Sequence[Partial]) -> Partial:
    """All parts of a choice as one."""
    logprobs: Json | None = None
    for part in parts:
        if part.logprobs is not None:
            logprobs = part.logprobs if logprobs is None else _appended(logprobs, part.logprobs)
    text = "".join(part.text for part in parts)
    return Partial(text, logprobs, parts[-1].reason if parts else None)


def _appended(first: Json, then: Json) -> Json:
    return {
        name: items if items is None else [*items, *then[name]] for name, items in first.items()
    }


class CompletionChoice:
    """Of /v1/completions; with `echo` the prompt is the beginning of its text."""

    def __init__(self, body: CompletionBody, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self._echo, self._tokenizer, self._prompt = bool(body.echo), tokenizer, prompt
        self._logprobs: CompletionLogprobs | None = None
        if body.logprobs is not None:
            self._logprobs = CompletionLogprobs(tokenizer, with_top=body.logprobs > 0)

    def part(self, event: Event) -> Partial | None:
        """See `Choice`."""
        match event:
            case PromptRead():
                return self._echoed(event) if self._echo else None
            case Drawn():
                return Partial(event.text, self._of([event.token.id], [event.token]))
            case Finished():
                return Partial(event.text, reason=event.reason)
            case Failed():
                return None

    def chunk(self, part: Partial) -> Json:
        """See `Choice`."""
        return {"text": part.text, "logprobs": part.logprobs, "finish_reason": part.reason}

    whole = chunk

    def _echoed(self, read: PromptRead) -> Partial:
        prompt = self._prompt
        if not read.scored:
            return Partial(prompt.text)
        # What is read begins with <end>; the tokens of the prompt are the last ones.
        scores: list[ScoredToken | None] = [None, *read.scored]
        shown = scores[prompt.n_hidden :]
        ids = [self._tokenizer.end_id if one is None else one.id for one in shown]
        return Partial(prompt.text, self._of(ids, shown))

    def _of(self, ids: Sequence[int], scores: Sequence[ScoredToken | None]) -> Json | None:
        return None if self._logprobs is None else dict(self._logprobs.of(ids, scores))


@dataclass(frozen=True)
class Prompt:
    """A prompt of a completion: its text, and how many of the ids that are read are not of it."""

    text: str
    n_hidden: int


class ChatChoice:
    """Of /v1/chat/completions."""

    def __init__(self, body: ChatBody, tokenizer: Tokenizer) -> None:
        self._body, self._tokenizer = body, tokenizer

    def part(self, event: Event) -> Partial | None:
        """See `Choice`."""
        match event:
            case PromptRead():
                return Partial(is_first=True)
            case Drawn():
                return Partial(event.text, self._logprobs(event.token))
            case Finished():
                return Partial(event.text, reason=event.reason)
            case Failed():
                return None

    def chunk(self, part: Partial) -> Json:
        """See `Choice`."""
        delta = {"role": "assistant", "content": ""} if part.is_first else {}
        if part.text:
            delta["content"] = part.text
        return {"delta": delta, "logprobs": part.logprobs, "finish_reason": part.reason}

    def whole(self, part: Partial) -> Json:
        """See `Choice`."""
        message = {"role": "assistant", "content": part.text, "refusal": None}
        return {"message": message, "logprobs": part.logprobs, "finish_reason": part.reason}

    def _logprobs(self, token: ScoredToken) -> Json | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._tokenizer, token)
