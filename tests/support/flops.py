"""FLOPs of a pass as torch counts them, with the kernels that it has no count for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def counted_flops(run: Callable[[], Any]) -> float:
    """Multiply-add = 2; nothing that compiled code does is seen."""
    counts = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_flops,
        torch.ops.mkldnn._linear_pointwise: _linear_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        run()
    return float(counter.get_total_flops())


def _flash_flops(query: Any, keys: Any, *_: Any, **__: Any) -> int:
    """Two matmuls over every pair of tokens, masked or not."""
    return 4 * math.prod(query) * int(keys[2])


def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * int(weight[0])
