"""What every request body has in common: strict fields, sampling, and errors that name a field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ys_llm.config.schema import GenerateConfig
from ys_llm.serving.limits import ApiError, Limits

SEEDS = 1 << 63
MOST_CANDIDATES = 20
MOST_STOPS, LONGEST_STOP = 16, 1000

Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=1 << 31)]
Penalty = Annotated[float, Field(gt=0, le=100)]
Seed = Annotated[int, Field(ge=-1, lt=SEEDS)]  # -1: a new one
StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stops = Annotated[list[StopString], Field(max_length=MOST_STOPS)]
Candidates = Annotated[int, Field(ge=0, le=MOST_CANDIDATES)]


class Body(BaseModel):
    """Fields of exactly these names and types; any other is refused by its name."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


T = TypeVar("T", bound=Body)


def parse(kind: type[T], data: bytes) -> T:
    """The body of a request; ApiError 400 that names what is wrong."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _problem(error) from None


def sampling_of(
    default: GenerateConfig, changes: Mapping[str, Any], *, max_tokens: int | None, limits: Limits
) -> GenerateConfig:
    """The run's own settings with those that were given; -1: as many tokens as the server allows.

    ApiError where more tokens are asked for than that.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    n_tokens = min(default.max_tokens, limits.answer_tokens) if max_tokens is None else max_tokens
    if n_tokens < 0:
        n_tokens = limits.answer_tokens
    if n_tokens > limits.answer_tokens:
        problem = f"at most {limits.answer_tokens:,} tokens are generated, found {n_tokens:,}"
        raise ApiError(400, problem, param="max_tokens")
    if given.get("seed") == -1:
        del given["seed"]
    return replace(default, **given, max_tokens=n_tokens)


def _problem(error: ValidationError) -> ApiError:
    """The first problem, with the name of its field."""
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    kind, where = first["type"], [part for part in first["loc"] if _is_of_body(part)]
    name = ".".join(map(str, where))
    if kind == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if kind == "extra_forbidden":
        return ApiError(400, f"{name} is not supported", param=name)
    if kind == "literal_error":
        expected = first["ctx"]["expected"]
        return ApiError(400, f"{name}: only {expected} is supported", param=name)
    return ApiError(400, f"{name or 'the body'}: {_lower(first['msg'])}", param=name or None)


def _is_of_body(part: int | str) -> bool:
    """Not the name of a type of a union, which pydantic puts there too."""
    return isinstance(part, int) or part.replace("_", "").isalnum()


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
