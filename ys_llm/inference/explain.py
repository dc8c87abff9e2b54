"""What can be seen of one token while it is drawn: uncertainty, what was copied, and the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ys_llm.inference.copied import Copyable
from ys_llm.inference.memories import NOTHING_MUTED, Muted, emptied, shown_name
from ys_llm.inference.sampling import ScoredToken, log_softmax
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import State, detach, flatten


@dataclass(frozen=True)
class Part:
    """One tensor of the state that predicted a token: its norm, and that of its last change.

    `change` is what the token before has changed; None of the first token.
    """

    norm: float
    change: float | None


@dataclass(frozen=True)
class Explained:
    """`entropy` of the distribution in nats; `copied` is the share of the probability, 0 to 1.

    `copied` is None without a copy tier, and of the first token, whose query is not kept.
    """

    entropy: float
    copied: float | None
    memory: Mapping[str, Part]  # by names such as `1.main`


def parts_of(state: State) -> dict[str, Tensor]:
    """What the layers carry in a state of one row, as `DecodeRows.parts` gives it."""
    layers = flatten({"layers": state["layers"]})
    return {name: part[0] for name, part in layers.items()}


class Explainer:
    """Explains the tokens of one answer.

    The share that was copied is computed by torch, in a step of its own beside the one that draws.
    """

    def __init__(self, model: Model, state: State, muted: Muted = NOTHING_MUTED) -> None:
        self._model, self._muted, self._empty = model, muted, flatten(model.init_state(1))
        self._state = None if model.copy_tier is None else state
        self._copyable: Copyable | None = None  # by the token that was read last
        self._before: dict[str, Tensor] = {}

    def read(self, id: int) -> None:
        """Follow the decode step that reads this token."""
        tier = self._model.copy_tier
        if self._state is None or tier is None:
            return
        device = next(self._model.parameters()).device
        with inference_mode(self._model):
            row = torch.tensor([[id]], dtype=torch.int64, device=device)
            before = emptied(self._state, self._muted, self._empty)
            _, state, reading = self._model.read(row, before)
        self._state = detach(state)
        if reading is not None:
            self._copyable = Copyable(tier, reading, int(state["position_B"]))

    def explain(
        self, parts: Mapping[str, Tensor], logits_V: Tensor, token: ScoredToken
    ) -> Explained:
        """`parts` of the state that predicted the token, and the logits that it was drawn from."""
        logprobs_V = log_softmax(logits_V)
        entropy = -float((logprobs_V.exp() * logprobs_V.clamp_min(-1e4)).sum())
        copied = None
        if self._copyable is not None:
            copied = self._copyable.of(-1, token.id, token.logprob).share
        memory = {shown_name(name): self._part(name, part) for name, part in parts.items()}
        return Explained(entropy, copied, memory)

    def _part(self, name: str, part: Tensor) -> Part:
        with torch.inference_mode():
            before, now = self._before.get(name), part.to("cpu", torch.float32, copy=True)
            self._before[name] = now
            is_like = before is not None and before.shape == now.shape
            change = float((now - before).norm()) if before is not None and is_like else None
            return Part(float(now.norm()), change)
