"""One request to a scheduler, and what it is told while the answer is made (`scheduler.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.explain import Explained
from ys_llm.inference.kept import Kept
from ys_llm.inference.memories import NOTHING_MUTED, Muted
from ys_llm.inference.sampling import ScoredToken


@dataclass(frozen=True)
class GenerationRequest:
    """What to read and how to go on.

    `ids` are taken while the prompt is read, so that they may be encoded as late as that. They are
    read after `after`, or from the beginning. `muted` are memories that are empty whatever is read
    and generated; the tokens of such a prompt have no scores. `keep` says of which tokens the state
    is kept: of none, of the last one, or also of each.
    """

    ids: Iterable[int]
    sampling: GenerateConfig
    after: Kept | None = None
    stop: tuple[str, ...] = ()
    muted: Muted = NOTHING_MUTED
    n_candidates: int = 0
    score_prompt: bool = False
    explain: bool = False
    keep: Literal["none", "last", "each"] = "none"


@dataclass(frozen=True)
class PromptRead:
    """The prompt has been read; `scored` are its tokens but the first, where that was asked."""

    n_tokens: int
    n_cached: int
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A token of the answer, and the text that it completed; `before` is kept before it."""

    token: ScoredToken
    text: str
    explained: Explained | None = None
    before: Kept | None = None


@dataclass(frozen=True)
class Finished:
    """The answer is complete; `text` is what was held back of it.

    `reason` is "stop" after an end token or a stop string, "length" at the limit of tokens.
    """

    text: str
    reason: Literal["stop", "length"]
    n_tokens: int
    prompt_seconds: float
    answer_seconds: float
    kept: Kept | None = None


@dataclass(frozen=True)
class Failed:
    """There will be no answer."""

    error: Exception


Event = PromptRead | Drawn | Finished | Failed


@dataclass(eq=False)
class Generation:
    """A request while it is served; whoever sets `cancelled` hears nothing more."""

    request: GenerationRequest
    cancelled: bool = False
    submitted_at: float = field(default_factory=time.perf_counter)
    began_at: float = 0.0  # to read
    read_at: float = 0.0
