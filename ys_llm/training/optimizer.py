"""What is optimised and how fast: parameter groups, and the learning rate as a pure function.

AdamW (Loshchilov & Hutter 2019) with decay on matrices only: norms, biases and per-channel scales
have no direction to shrink towards. The rate depends on the step alone, so a resumed run needs no
scheduler state.
"""

import math

import torch
from torch import nn

from ys_llm.config.schema import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over two groups, fused where the device has it; its rate is set at each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


def learning_rate(step: int, config: TrainConfig, *, total_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0, of `total_steps`.

    Warm-up: linear, reaching the peak at step `warmup_steps`. Then with p in [0, 1] the share of
    the steps after it that are done, and f the final rate as a share of the peak:
      linear                   f + (1 - f)(1 - p)
      cosine                   f + (1 - f)(1 + cos(pi p)) / 2
      constant_sqrt_cooldown   1 until the last `cooldown_fraction` of all steps, then with q its
                               share done  f + (1 - f)(1 - sqrt(q))           (Haegele et al. 2024)
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps - 1)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    final = config.final_learning_rate / peak
    p = (step - warmup) / max(1, total_steps - warmup)
    if config.schedule == "linear":
        share = 1 - p
    elif config.schedule == "cosine":
        share = (1 + math.cos(math.pi * p)) / 2
    else:
        cooldown = max(1, round(config.cooldown_fraction * total_steps))
        q = max(0.0, (step - (total_steps - cooldown)) / cooldown)
        share = 1 - math.sqrt(q)
    return peak * (final + (1 - final) * share)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
