"""One request to a language model and its answer, for any back end.

Reasoning models put their reasoning between tags into the answer; `without_reasoning` removes it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

_BYTES_PER_TOKEN = 4  # of UTF-8; for English, Russian and Chinese alike within a third
_MOST_BYTES_PER_TOKEN = 16  # of any language; fewer tokens than that were read of a cut prompt
_TEMPLATE_TOKENS = 16  # what a chat template adds
_REASONING = re.compile(r"<(think|thinking)>.*?</\1>\s*", re.IGNORECASE | re.DOTALL)
_OPEN_TAG = re.compile(r"<(?:think|thinking)>", re.IGNORECASE)
REASONING_TAG = re.compile(r"</?(?:think|thinking)>", re.IGNORECASE)


@dataclass(frozen=True)
class ChatRequest:
    """One prompt; `format` is "", "json" or a JSON schema, `options` are those of ollama."""

    model: str
    prompt: str
    system: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    format: str | Mapping[str, Any] = ""

    def digest(self) -> str:
        """Hash of all fields: equal requests have equal digests."""
        fields = [self.model, self.prompt, self.system, dict(self.options), self.format]
        text = json.dumps(fields, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ChatAnswer:
    """A complete answer; `done_reason` is "stop", or "length" where num_predict cut it off."""

    text: str
    done_reason: str
    model_digest: str  # "" where the server does not list the model
    eval_count: int  # tokens of the answer
    seconds: float  # of the successful try
    tries: int = 1
    prompt_eval_count: int = 0  # tokens of the prompt; 0 where the server does not report it
    server: str = ""  # its name and version; "" where it does not tell


class BackEnd(Protocol):
    """What answers requests; see `ollama.Ollama`."""

    def ask(self, request: ChatRequest, should_stop: Callable[[], bool]) -> ChatAnswer:
        """The complete answer, or an exception."""


def without_reasoning(text: str) -> str:
    """The answer without `<think>...</think>`; empty if a tag is opened and never closed."""
    rest = _REASONING.sub("", text)
    return "" if _OPEN_TAG.search(rest) else rest


def too_long(prompt: str, system: str, options: Mapping[str, Any]) -> str:
    """Why a prompt does not fit into num_ctx, or "": an estimate, made before asking.

    The server would cut the prompt silently.
    """
    n_bytes = len(prompt.encode("utf-8", "replace")) + len(system.encode("utf-8", "replace"))
    estimate = n_bytes // _BYTES_PER_TOKEN + _TEMPLATE_TOKENS
    num_ctx, num_predict = options["num_ctx"], options["num_predict"]
    if estimate + num_predict <= num_ctx:
        return ""
    return (
        f"the prompt has {len(prompt) + len(system):,} characters, about {estimate:,} tokens; "
        f"num_ctx {num_ctx:,} less num_predict {num_predict:,} leaves {num_ctx - num_predict:,}"
    )


def did_not_fit(prompt: str, system: str, answer: ChatAnswer) -> str:
    """Why the server must have cut the prompt (it says nothing of it), or "".

    It counts fewer tokens than the text can have. Without a count nothing is known.
    """
    n_bytes = len(prompt.encode("utf-8", "replace")) + len(system.encode("utf-8", "replace"))
    read = answer.prompt_eval_count
    if not read or n_bytes <= _MOST_BYTES_PER_TOKEN * read:
        return ""
    needed = n_bytes // _BYTES_PER_TOKEN + _TEMPLATE_TOKENS + answer.eval_count
    return (
        f"the prompt of {n_bytes:,} bytes did not fit: the server read {read:,} tokens of it; set "
        f"sampling.num_ctx to {_round_up(needed):,} or more"
    )


def _round_up(tokens: int) -> int:
    """The next power of two, in which memory is given out."""
    return 1 << max(tokens - 1, 1).bit_length()


def context_is_full(answer: ChatAnswer, options: Mapping[str, Any]) -> bool:
    """Whether prompt and answer fill num_ctx, so that part of the prompt was cut off."""
    return bool(answer.prompt_eval_count + answer.eval_count >= options["num_ctx"])
