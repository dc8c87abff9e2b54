"""What all layers of a model compute alike from one tensor is computed by the first of them."""

import weakref
from collections.abc import Callable
from functools import update_wrapper
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

More = ParamSpec("More")
Result = TypeVar("Result")


class _Last(NamedTuple):
    tensor: "weakref.ref[Tensor]"
    version: int
    more: object
    result: object


def shared_by_layers(
    function: Callable[Concatenate[Tensor, More], Result],
) -> Callable[Concatenate[Tensor, More], Result]:
    """`function`, whose last result is returned again for the same tensor, while it is unchanged.

    The result is dropped with the tensor. In inference mode tensors do not tell of changes, and
    nothing is kept.
    """
    last: _Last | None = None

    def drop(_: object) -> None:
        """Forget the result: its tensor is gone."""
        nonlocal last
        last = None

    def shared(tensor: Tensor, /, *more: More.args, **named: More.kwargs) -> Result:
        """The kept result, where it is that of these arguments."""
        nonlocal last
        if torch.is_inference_mode_enabled() or tensor.is_inference():
            return function(tensor, *more, **named)
        key, kept = (more, named), last
        if kept and kept.tensor() is tensor and kept[1:3] == (tensor._version, key):
            return kept.result  # type: ignore[return-value]
        result = function(tensor, *more, **named)
        last = _Last(weakref.ref(tensor, drop), tensor._version, key, result)
        return result

    update_wrapper(shared, function)
    return shared
