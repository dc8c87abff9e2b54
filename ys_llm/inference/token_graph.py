"""One token after another as a CUDA graph: the launches of a whole model become one call.

What a token launches depends on the clock alone, and of it only on which summaries are renewed: a
model of periods 16 and 64 has three cases. Each is captured when it first comes, on one token and
one state that stay where they are: a replay reads both and leaves the state after the token.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from ys_llm.model.language_model import Model, State
from ys_llm.ops.three_tier.gpu.cuda_graph import Record, Replay, record_cuda

Case = tuple[bool, ...]


def has_token_graph(model: Model) -> bool:
    """Whether this model is on a CUDA device, and its state of one size at every position."""
    return next(model.parameters()).is_cuda and _periods(model) is not None


class TokenGraph:
    """A model with the state of one text: called with the next token's id, gives its logits (V)."""

    def __init__(self, model: Model, state: State, record: Record = record_cuda) -> None:
        periods = _periods(model)
        assert periods is not None, "the state of this model grows"
        self.model, self.periods, self.record = model, periods, record
        self.replays: dict[Case, tuple[Replay, list[Tensor]]] = {}
        with torch.inference_mode():
            self.id_BT = torch.zeros(
                1, 1, dtype=torch.int64, device=next(model.parameters()).device
            )
            self.state = _copied(state)

    def __call__(self, id: int) -> Tensor:
        """Read one more token; the logits after it."""
        with torch.inference_mode():
            self.id_BT.fill_(id)
            case = tuple(self.state["position"] % every == every - 1 for every in self.periods)
            if case not in self.replays:
                self.replays[case] = self._captured()
            replay, logits = self.replays[case]
            replay()
            self._advance_clock()
            return logits[-1].clone()

    def _captured(self) -> tuple[Replay, list[Tensor]]:
        """The token at this position, captured where it can be; the state is as it was before."""
        before, logits = _copied(self.state), []

        def take_token() -> None:
            logits_BTV, after = self.model(self.id_BT, self.state)
            for own, new in zip(_tensors(self.state), _tensors(after), strict=True):
                own.copy_(new)
            logits.append(logits_BTV[0, -1])
            del logits[:-1]

        try:
            (replay,) = self.record([take_token])
        except RuntimeError as error:  # of the device: out of memory, or not to be captured
            why = str(error).splitlines()[0]
            warnings.warn(f"tokens are launched without a CUDA graph: {why}", stacklevel=3)
            replay = take_token
        for own, old in zip(_tensors(self.state), _tensors(before), strict=True):
            own.copy_(old)
        return replay, logits

    def _advance_clock(self) -> None:
        self.state["position"] += 1
        for layer in self.state["layers"]:
            layer["position"] += 1


def _periods(model: Model) -> tuple[int, ...] | None:
    """The periods of all summaries of the model; None where a mixer keeps something else."""
    every: set[int] = set()
    for block in model.blocks:
        options: Any = getattr(block.mixer, "options", None)
        if not hasattr(options, "local_interval"):
            return None
        every |= {options.local_interval, options.global_interval}
    return tuple(sorted(every - {0}))


def _tensors(state: State) -> list[Tensor]:
    return [value for layer in state["layers"] for value in layer.values() if _is_tensor(value)]


def _copied(state: State) -> State:
    layers = [
        {name: value.clone() if _is_tensor(value) else value for name, value in layer.items()}
        for layer in state["layers"]
    ]
    return {**state, "layers": layers}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
