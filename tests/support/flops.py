"""FLOPs of a pass as torch counts them, with the kernels that it has no count for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper


def counted_flops(run: Callable[[], Any]) -> float:
    """Multiply-add = 2; nothing that compiled code does is seen."""
    with _Counter() as counter:
        run()
    return float(counter.flops)


class _Counter(TorchDispatchMode):
    """torch's FlopCounterMode without a count for every module, which takes most of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        made = function(*args, **named)
        if count := _COUNTS.get(function.overloadpacket):
            self.flops += count(*args, **named, out_val=made)
        return made


def _flash_flops(query: Any, keys: Any, *_: Any, **__: Any) -> int:
    """Two matmuls over every pair of tokens, masked or not."""
    return 4 * math.prod(query) * int(keys[2])


def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * int(weight[0])


_COUNTS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_flash_flops),
    torch.ops.mkldnn._linear_pointwise: shape_wrapper(_linear_flops),
}
