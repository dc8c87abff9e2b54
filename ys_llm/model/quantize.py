"""Linear layers with weights in fewer bytes: bfloat16, or int8 with one scale for each row.

    int8:  scale_r = max_i |w_ri| / 127;   w_ri ~ scale_r round(w_ri / scale_r)

Decoding one token takes as long as reading the weights, so with half or a quarter of the bytes the
compiled decoder takes about half or a quarter of the time. Torch computes with the weights expanded
to their former dtype at every call: there it saves memory and no time. `ys eval --quantize` shows
the loss of accuracy.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Quantization = Literal["bf16", "int8"]


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight rounded to int8 and the scale of each row; a row of zeros has scale 1."""
    scales = weight.abs().amax(1) / 127
    scales = torch.where(scales > 0, scales, 1)
    return torch.round(weight / scales[:, None]).to(torch.int8), scales


class QuantizedLinear(nn.Module):
    """A linear layer that keeps only the quantised weight: `quantized`, and `scales` for int8.

    Both are buffers, so that a state dict holds them.
    """

    quantized: Tensor
    scales: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, quantization: Quantization) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        weight, scales = linear.weight.detach(), None
        if quantization == "int8":
            weight, scales = int8_rows(weight)
        else:
            weight = weight.bfloat16()
        self.register_buffer("quantized", weight)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, computed at every access."""
        weight = self.quantized.to(self.dtype)
        return weight if self.scales is None else weight * self.scales[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        return torch.nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.quantized.dtype}"


def quantize_linears(module: nn.Module, quantization: Quantization) -> None:
    """Replace every nn.Linear below `module` by its quantised form, in place.

    The matrices that multiply a recurrent state are not nn.Linear and keep their precision: errors
    would accumulate. So does the embedding: a token reads only one row of it.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, QuantizedLinear(child, quantization))
