"""The request bodies of OpenAI's API, as far as they are supported."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ys_llm.serving.bodies import (
    Body,
    Candidates,
    MinP,
    Penalty,
    Seed,
    Stops,
    StopString,
    Temperature,
    TopK,
    TopP,
)

Name = Annotated[str, Field(max_length=1000)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Empty = Annotated[dict[str, Any], Field(max_length=0)]
MaxTokens = Annotated[int, Field(ge=0, lt=1 << 31)]
Choices = Annotated[int, Field(ge=1, le=1024)]
Prompts = (
    str
    | Annotated[list[str], Field(min_length=1)]
    | Annotated[list[Id], Field(min_length=1)]
    | Annotated[list[Annotated[list[Id], Field(min_length=1)]], Field(min_length=1)]
)
Neutral = Literal[0] | None


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None


class AnswerBody(Body):
    """What both requests share; `top_k`, `min_p` and `repetition_penalty` are vLLM's additions.

    `user` names who asks, and changes no answer.
    """

    model: Name
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stops | StopString | None = None
    user: Name | None = None
    presence_penalty: Neutral = None
    frequency_penalty: Neutral = None
    logit_bias: Empty | None = None

    def sampling(self) -> dict[str, Any]:
        """The options by the names of `ys`."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names}

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(AnswerBody):
    """POST /v1/completions."""

    prompt: Prompts
    max_tokens: MaxTokens | None = None
    logprobs: Candidates | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A message of /v1/chat/completions."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Name | None = None
    refusal: None = None

    def text(self) -> str:
        """The content."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ResponseFormat(Body):
    """`response_format`."""

    type: Literal["text"]


class ChatBody(AnswerBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Candidates | None = None
    response_format: ResponseFormat | None = None
    tools: Nothing | None = None
    store: Literal[False] | None = None

    @property
    def most_tokens(self) -> int | None:
        """The limit of tokens by its present name, else by its former one."""
        new = self.max_completion_tokens
        return self.max_tokens if new is None else new
