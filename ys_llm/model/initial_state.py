"""A learned initial state: what a frozen model begins from, in place of its own.

RWKV's users call it state tuning. What is learned is every memory of the mixers that has a constant
size and holds floating-point numbers: some kilobytes that are read as if they were a text before
the text. A cache that grows with the text is empty at first, and no part of it. A document that
starts later in a row starts from nothing, not from this: it is for the beginning of a row.
"""

import torch
from torch import Tensor, nn

from ys_llm.errors import UserError
from ys_llm.model.state import State, flatten, unflatten

_NO_MEMORY = "Use --method lora: a model of attention alone begins with an empty cache."


class InitialState(nn.Module):
    """The learned numbers, of one row; they begin at the model's own initial state."""

    def __init__(self, state: State) -> None:
        """`state`: the model's own, of one row. Raises UserError where it has no memory."""
        super().__init__()
        found = {name: t for name, t in flatten(_layers(state)).items() if _is_learned(t)}
        if not found:
            raise UserError("the model has no memory of constant size to learn", _NO_MEMORY)
        self.names = tuple(found)
        self.values = nn.ParameterList(nn.Parameter(t.detach().clone()) for t in found.values())

    def named(self) -> dict[str, Tensor]:
        """The learned numbers by their paths in the state, as `state.flatten` names them."""
        return dict(zip(self.names, self.values, strict=True))

    def placed_in(self, state: State) -> State:
        """The state of any number of rows with these numbers in each."""
        own, layers = self.named(), _layers(state)
        tensors = {
            name: own[name].expand_as(tensor) if name in own else tensor
            for name, tensor in flatten(layers).items()
        }
        return {**state, **unflatten(tensors, like=layers)}


def _layers(state: State) -> State:
    return {"layers": state["layers"]}


def _is_learned(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and bool(torch.isfinite(tensor).all())
