"""Weights in fewer bytes: bfloat16, or int8 with one scale for each row.

    int8:  scale_r = max_i |w_ri| / 127;   w_ri ~ scale_r * round(w_ri / scale_r)

A token read alone takes as long as reading the weights from memory does, so half or a quarter of
the bytes is that much of the time. What they lose is stated by `ys eval --weights`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Narrow = Literal["fp32", "bf16", "int8"]


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded weight in int8 and the scale of each row; a row of zeros has scale 1."""
    scales = weight.abs().amax(1) / 127
    scales = torch.where(scales > 0, scales, 1)
    return torch.round(weight / scales[:, None]).to(torch.int8), scales


class QuantizedLinear(nn.Linear):
    """A linear layer whose weights are rounded to `narrow`, held in it, and also as before.

    `weight` is what the rounded numbers stand for: all that computes with it sees the loss, while
    what can read `narrow` and `scales` reads fewer bytes.
    """

    narrow: Tensor
    scales: Tensor | None

    def __init__(self, linear: nn.Linear, kind: Narrow) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight, scales = linear.weight.detach(), None
        if kind == "int8":
            narrow, scales = int8_rows(weight)
            rounded = narrow.to(weight.dtype) * scales[:, None]
        else:
            narrow = weight.bfloat16()
            rounded = narrow.to(weight.dtype)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("narrow", narrow, persistent=False)
        self.register_buffer("scales", scales, persistent=False)


def quantize_linears(module: nn.Module, kind: Narrow) -> None:
    """Round the weights of every nn.Linear below `module`, in place; "fp32" changes nothing.

    What a recurrence multiplies its own state by is no nn.Linear and stays as it is: its errors
    would be carried on. So does an embedding, of which a token reads one row.
    """
    if kind == "fp32":
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, QuantizedLinear(child, kind))
