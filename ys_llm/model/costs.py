"""What a model costs: parameters by part, FLOPs per token, bytes of state, the rate of products."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.model.language_model import Model

PROBE_SIZE = 1024  # a product large enough that its rate is the machine's, small enough for 0.1 s


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part of the trunk, shared ones counted once."""
    parts = {"embedding": 0, "mixers": 0, "mlps": 0, "norms": 0, "head": 0}
    for name, parameter in model.named_parameters():
        parts[_part(name)] += parameter.numel()
    return {part: count for part, count in parts.items() if count}


def _part(name: str) -> str:
    if name.startswith("embedding"):
        return "embedding"
    if name.startswith("output"):
        return "head"
    if ".mixer." in name:
        return "mixers"
    return "mlps" if ".mlp." in name else "norms"


def parameter_count(model: nn.Module) -> int:
    """All parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_token(model: Model, seq_len: int) -> int:
    """Forward FLOPs per token of all matrix products, multiply-add = 2; training costs 3 times."""
    config = model.config
    blocks: Any = model.blocks
    mixers = sum(block.mixer.flops_per_token(seq_len) for block in blocks)
    mlps = 0 if config.block == "plain" else config.n_layers * 6 * config.d_model * config.d_mlp
    return int(mixers + mlps + 2 * config.d_model * model.vocab_size)


def state_bytes(model: Model, *, batch_size: int, seq_len: int) -> int:
    """Bytes of the state carried after `seq_len` tokens."""
    blocks: Any = model.blocks
    return sum(block.mixer.state_bytes(batch_size, seq_len) for block in blocks)


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square product of this dtype: the median of five rounds after a warm-up."""
    a, b = (torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype, device=device) for _ in range(2))
    seconds = [_product_seconds(a, b, device) for _ in range(7)][2:]
    return 2 * PROBE_SIZE**3 / statistics.median(seconds)


def _product_seconds(a: Tensor, b: Tensor, device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    a @ b
    synchronise(device)
    return time.perf_counter() - begin


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
