"""What the three-tier recurrence takes and keeps: weights, state and the clock of the summaries."""

from typing import Any, NamedTuple

from torch import Tensor

_PLAIN = 6  # tensors of `Weights` before its summaries
EPS = 1e-5  # of every LayerNorm, torch's default and the source's


class Summary(NamedTuple):
    """Weights of one summary tier and its period in steps.

    It is renewed R wide and held S wide: A and B (controller, influencer) are S x R, gain and bias
    R, C (shaper) R x S; R = S in the source.
    """

    state_controller: Tensor
    input_influencer: Tensor
    output_shaper: Tensor
    gain: Tensor
    bias: Tensor
    every: int


class Weights(NamedTuple):
    """Weights of the recurrence. state_controller is S x S, or H x P x P for H heads of width P.

    gain, bias, entry and drive_bias have one number for each of the S channels.
    """

    state_controller: Tensor
    gain: Tensor
    bias: Tensor
    output_shaper: Tensor | None = None
    entry: Tensor | None = None
    drive_bias: Tensor | None = None
    local_summary: Summary | None = None
    global_summary: Summary | None = None

    @property
    def n_heads(self) -> int:
        """Blocks of the state controller."""
        return 1 if self.state_controller.dim() == 2 else len(self.state_controller)


class State(NamedTuple):
    """What the recurrence remembers: each B x S, and the clock t of the next token."""

    main: Tensor
    local_summary: Tensor
    global_summary: Tensor
    position: int = 0


def is_renewed(summary: Summary | None, t: int) -> bool:
    """Whether this summary is renewed after the output of step t."""
    return summary is not None and t % summary.every == summary.every - 1


def flat(weights: Weights) -> list[Tensor | None]:
    """All tensors of the weights in one list, as autograd takes them."""
    tensors: list[Any] = list(weights[:_PLAIN])
    for summary in (weights.local_summary, weights.global_summary):
        tensors += [None] * 5 if summary is None else summary[:5]
    return tensors


def unflat(tensors: list[Any], like: Weights) -> Weights:
    """The inverse of `flat`; the periods, which are no tensors, come from `like`."""
    tiers = [
        tier and Summary._make([*tensors[begin : begin + 5], tier.every])
        for begin, tier in ((_PLAIN, like.local_summary), (_PLAIN + 5, like.global_summary))
    ]
    return Weights._make([*tensors[:_PLAIN], *tiers])
