"""A diagonal linear recurrence over time, channel by channel.

    h_t = decay_t h_{t-1} + input_t
    dinput_t = dh_t + decay_{t+1} dinput_{t+1};   ddecay_t = dinput_t h_{t-1}

It is exact for any decay, 0 included: nothing is divided and no logarithm is taken. The steps run
one after the other: each is one pass over B x S numbers in the cache, while a parallel scan passes
several times over memory.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def linear_scan(decay_TBS: Tensor, input_TBS: Tensor, initial_BS: Tensor) -> Tensor:
    """h_TBS, all states after `initial_BS`."""
    return fused_backward(decay_TBS, input_TBS, initial_BS)


def positive(v: Tensor) -> Tensor:
    """v + 1/2 for v >= 0, else sigmoid(v): an input that keeps states positive."""
    return v.relu() + v.clamp_max(0).sigmoid()


def reference(decay_TBS: Tensor, input_TBS: Tensor, initial_BS: Tensor) -> Tensor:
    """The equation, step by step."""
    h_BS, states = initial_BS, []
    for decay_BS, input_BS in zip(decay_TBS, input_TBS, strict=True):
        h_BS = decay_BS * h_BS + input_BS
        states.append(h_BS)
    return torch.stack(states)


def fused_backward(decay_TBS: Tensor, input_TBS: Tensor, initial_BS: Tensor) -> Tensor:
    """As `reference`; forwards and backwards one operation a step, into memory made once."""
    h_TBS: Tensor = _Scan.apply(decay_TBS, input_TBS, initial_BS)  # type: ignore[no-untyped-call]
    return h_TBS


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        """All states."""
        h = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
        previous = initial
        for decay_t, input_t, h_t in zip(decay, inputs, h, strict=True):
            previous = torch.addcmul(input_t, decay_t, previous, out=h_t)
        ctx.save_for_backward(decay, h, initial)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of decay, inputs and the initial state."""
        decay, h, initial = ctx.saved_tensors
        d_inputs = torch.empty_like(h)
        d_h, d_steps, decays = grads[0].unbind(), d_inputs.unbind(), decay.unbind()
        later = d_steps[-1].copy_(d_h[-1])
        for t in range(len(h) - 2, -1, -1):
            later = torch.addcmul(d_h[t], decays[t + 1], later, out=d_steps[t])
        d_decay = torch.empty_like(h)
        torch.mul(d_inputs[1:], h[:-1], out=d_decay[1:])
        torch.mul(d_inputs[0], initial, out=d_decay[0])
        return d_decay, d_inputs, d_inputs[0] * decay[0]


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": reference,
    "fused_backward": fused_backward,
}
