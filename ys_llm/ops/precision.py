"""The dtype of matmul operands: the only file that reads autocast."""

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the operands of a matmul with x: autocast's, or that of x."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def compute_precision(x: Tensor) -> Precision:
    """The same by its name in a recurrence: "bf16" under bf16 autocast, else "fp32"."""
    return "bf16" if compute_dtype(x) == torch.bfloat16 else "fp32"
