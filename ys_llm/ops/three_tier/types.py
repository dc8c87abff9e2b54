"""Types of the three-tier recurrence: weights, state, and the clock of the summaries."""

from typing import Any, NamedTuple

from torch import Tensor

EPS = 1e-5  # of every LayerNorm: torch's default, and the source's
_MAIN_TENSORS = 7  # tensors of `Weights` before its summaries
_SUMMARY_TENSORS = 5


class Summary(NamedTuple):
    """Weights of one summary tier and the number of steps between its updates.

    The update is R wide inside and S wide outside: A and B (controller, influencer) are S x R, gain
    and bias R, C (shaper) R x S. In the source R = S.
    """

    state_controller: Tensor
    input_influencer: Tensor
    output_shaper: Tensor
    gain: Tensor
    bias: Tensor
    every: int


class Weights(NamedTuple):
    """Weights of the recurrence. state_controller is S x S, or H x P x P for H heads of width P.

    gain, bias, summary_scale (of L + G), drive_bias and gate_bias have one number per channel.
    Where there is a gate_bias the state is gated, and the gate's input stands beside the drive.
    """

    state_controller: Tensor
    gain: Tensor
    bias: Tensor
    output_shaper: Tensor | None = None
    summary_scale: Tensor | None = None
    drive_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    local_summary: Summary | None = None
    global_summary: Summary | None = None

    @property
    def n_heads(self) -> int:
        """Number of diagonal blocks of the state controller."""
        return 1 if self.state_controller.dim() == 2 else len(self.state_controller)

    @property
    def summaries(self) -> tuple[Summary | None, Summary | None]:
        """Local, then global."""
        return self.local_summary, self.global_summary


class State(NamedTuple):
    """State of the recurrence: three B x S tensors, and the clock t of the next token.

    The clock is one number for all rows; `reference` also takes one per row (B, int64, on the CPU).
    """

    main: Tensor
    local_summary: Tensor
    global_summary: Tensor
    position: int | Tensor = 0


def one_clock(state: State) -> int:
    """The clock of all rows."""
    assert isinstance(state.position, int), "only `reference` takes a clock per row"
    return state.position


def flat(weights: Weights) -> list[Tensor | None]:
    """All tensors of the weights in one list, as autograd expects them."""
    tensors: list[Any] = list(weights[:_MAIN_TENSORS])
    for summary in weights.summaries:
        tensors += [None] * _SUMMARY_TENSORS if summary is None else summary[:_SUMMARY_TENSORS]
    return tensors


def unflat(tensors: list[Any], like: Weights) -> Weights:
    """The inverse of `flat`; the update intervals, which are not tensors, come from `like`."""
    main, rest = tensors[:_MAIN_TENSORS], tensors[_MAIN_TENSORS:]
    groups = (rest[:_SUMMARY_TENSORS], rest[_SUMMARY_TENSORS:])
    summaries = [
        summary and Summary._make([*group, summary.every])
        for group, summary in zip(groups, like.summaries, strict=True)
    ]
    return Weights._make([*main, *summaries])
