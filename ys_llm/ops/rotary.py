"""Rotary positions (Su et al. 2021): channel c is turned with channel c + P/2 by an angle.

    y_c = x_c cos - x_{c+P/2} sin,   y_{c+P/2} = x_{c+P/2} cos + x_c sin

A rotation has itself with the angle reversed as its gradient, so that nothing is kept for the
backward pass besides the table.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def rotate(x_BTHP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x turned by the angles of a table, as `angles` makes it; summed in the table's dtype."""
    return fused_backward(x_BTHP, cos, sin)


def angles(
    clocks: tuple[int, ...], n_tokens: int, d_head: int, theta: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of clock * theta ** (-2c / P), B x T x 1 x P/2; float32 or wider.

    B is 1 where all rows share one clock, whose tables are kept for other layers and passes.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    settings = (n_tokens, d_head, theta, dtype, like.device)
    if len(set(clocks)) == 1:
        return _table_of_one_clock(clocks[0], *settings)
    return _table(clocks, *settings)


def _table(
    clocks: tuple[int, ...],
    n_tokens: int,
    d_head: int,
    theta: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    # float64: at clock 100,000 a float32 angle is already wrong by 0.004 rad.
    here: dict[str, Any] = {"dtype": torch.float64, "device": device}
    pair = torch.arange(0, d_head, 2, **here) / d_head
    clock_BT = torch.tensor(clocks, **here)[:, None] + torch.arange(n_tokens, **here)
    angle = clock_BT[:, :, None, None] * theta**-pair
    return angle.cos().to(dtype), angle.sin().to(dtype)


@lru_cache(maxsize=8)
def _table_of_one_clock(clock: int, *settings: Any) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a pass that trains may read it after one that does not
        return _table((clock,), *settings)


def reference(x_BTHP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The equations."""
    left, right = x_BTHP.to(cos.dtype).chunk(2, dim=-1)
    turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return turned.to(x_BTHP.dtype)


def fused_backward(x_BTHP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `reference`, in two passes per direction."""
    y: Tensor = _Rotation.apply(x_BTHP, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x turned forwards."""
        ctx.table = cos, sin
        return _turned(x, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient turned backwards."""
        return _turned(grads[0], *ctx.table, sign=-1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, sign: int) -> Tensor:
    halves = x.unflatten(-1, (2, -1)).to(cos.dtype)
    y = halves * cos.unsqueeze(-2)
    y[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-sign)
    y[..., 1, :].addcmul_(halves[..., 0, :], sin, value=sign)
    turned: Tensor = y.flatten(-2).to(x.dtype)
    return turned


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": reference,
    "fused_backward": fused_backward,
}
