"""The request bodies of ollama's API, as far as they are supported."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from ys_llm.serving.bodies import (
    SEEDS,
    Body,
    Candidates,
    MinP,
    Penalty,
    Stops,
    StopString,
    Temperature,
    TopK,
    TopP,
)
from ys_llm.serving.limits import ApiError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h)")

Name = Annotated[str, Field(max_length=1000)]
Handle = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 32)]], Field(min_length=4, max_length=4)]
Nothing = Annotated[list[Any], Field(max_length=0)]
KeepAlive = Annotated[str, Field(max_length=100)] | float


class Options(Body):
    """ollama's options.

    The model reads any number of tokens, so that every `num_ctx` is met; `num_thread` and `num_gpu`
    are the server's own business.
    """

    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repeat_penalty: Penalty | None = None
    repeat_last_n: Literal[64] | None = None
    presence_penalty: Literal[0] | None = None  # clients that send every option send these
    frequency_penalty: Literal[0] | None = None
    seed: Annotated[int, Field(ge=-1, lt=SEEDS)] | None = None
    num_predict: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    stop: Stops | StopString | None = None

    def sampling(self) -> dict[str, Any]:
        """The options by the names of `ys`."""
        names = ("temperature", "top_k", "top_p", "min_p", "seed")
        return {name: getattr(self, name) for name in names} | {
            "repetition_penalty": self.repeat_penalty
        }

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class AnswerBody(Body):
    """What /api/generate and /api/chat share."""

    model: Name
    stream: bool = True
    options: Options | None = None
    keep_alive: KeepAlive | None = None
    format: Literal[""] | None = None
    think: Literal[False] | None = None
    logprobs: bool | None = None
    top_logprobs: Candidates | None = None

    def n_candidates(self) -> int:
        """How many alternatives of each token are shown."""
        return (self.top_logprobs or 0) if self.logprobs else 0


class GenerateBody(AnswerBody):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: Handle | None = None
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    images: Nothing | None = None


class Message(Body):
    """A message of /api/chat."""

    role: Literal["system", "user", "assistant"]
    content: str
    images: Nothing | None = None
    tool_calls: Nothing | None = None
    thinking: Literal[""] | None = None


class ChatBody(AnswerBody):
    """POST /api/chat."""

    messages: list[Message] = Field(default_factory=list, max_length=10_000)
    tools: Nothing | None = None


class ShowBody(Body):
    """POST /api/show; `name` is its former name."""

    model: Name | None = None
    name: Name | None = None
    verbose: bool | None = None


def seconds_of(keep_alive: str | float) -> float:
    """ollama's `keep_alive` in seconds: a number, or a text such as 10m; below 0 is for ever."""
    if not isinstance(keep_alive, str):
        return float(keep_alive) if keep_alive >= 0 else float("inf")
    text = keep_alive.strip()
    if re.fullmatch(r"-?\d{1,12}", text):
        return seconds_of(float(text))
    if text.startswith("-"):
        return float("inf")
    parts = _NUMBER.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        problem = f"keep_alive: expected a duration such as 10m, found {text[:40]!r}"
        raise ApiError(400, problem, param="keep_alive")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
