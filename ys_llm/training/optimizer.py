"""The optimizer and its parameter groups: weight decay on matrices only."""

import torch
from torch import nn

from ys_llm.config.schema import TrainConfig
from ys_llm.training.muon import MuonAdamW


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused, or Muon for the matrices between activations.

    `set_learning_rate` sets the rate of each step.

    Parameters whose module names them in `no_weight_decay` and those with fewer than two dimensions
    (norms, biases, per-channel scales) do not decay: they have no direction to shrink towards.
    """
    exempt, outer = _exempt_from_decay(model), _outer_matrices(model)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2 or id(parameter) in exempt:
            plain.append(parameter)
        elif config.optimizer == "muon" and id(parameter) not in outer:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )
    if not matrices:
        return adamw
    return MuonAdamW(matrices, adamw, weight_decay=config.weight_decay)


def _outer_matrices(model: nn.Module) -> set[int]:
    """Ids of embeddings and of the head: a row of theirs is a token, not a direction."""
    embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
    head = getattr(model, "output", None)
    return {id(p) for module in (*embeddings, head) if module for p in module.parameters()}


def _exempt_from_decay(model: nn.Module) -> set[int]:
    """Ids of the parameters that a module declares in its `no_weight_decay` tuple of names."""
    exempt: set[int] = set()
    for module in model.modules():
        names: tuple[str, ...] = getattr(module, "no_weight_decay", ())
        learned = tuple(f"parametrizations.{name}." for name in names)  # where torch moves them
        for name, parameter in module.named_parameters():
            if name in names or name.startswith(learned):
                exempt.add(id(parameter))
    return exempt


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
