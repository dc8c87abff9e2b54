"""The model as several processes train it together: DDP adds up their gradients."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ys_llm.model.language_model import Model
from ys_llm.model.state import State, detach
from ys_llm.ops.dropout import Dropout
from ys_llm.training.ranks.group import Ranks


class _LossOf(nn.Module):
    """What DDP calls: the graph of what it returns goes through the loss alone."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        # DDP warns every process where each parameter has a gradient, though the next step may not.
        self.never_used = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None,
        starts_BT: Tensor | None,
        *,
        targets_BT: Tensor,
    ) -> tuple[Tensor, State]:
        """The loss, and the state without its graph."""
        loss, after = self.model(tokens_BT, state, starts_BT, targets_BT=targets_BT)
        return loss, detach(after)


def replicated(model: Model, ranks: Ranks) -> nn.Module | None:
    """The model, with gradients that are means over all processes; None for a process alone.

    A parameter without a gradient is none to wait for (a summary that did not fire). That also
    keeps DDP from rearranging its buckets after the first step, whose sums would then be in another
    order than those of a run that is resumed.
    """
    if ranks.is_alone:
        return None
    return DistributedDataParallel(
        _LossOf(model),
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )


def summed_at(parallel: nn.Module | None, *, is_last: bool) -> AbstractContextManager[None]:
    """Around a forward and backward pass: gradients are added up after the last of a step."""
    if isinstance(parallel, DistributedDataParallel) and not is_last:
        return parallel.no_sync()
    return nullcontext()


def own_masks(model: Model, ranks: Ranks, batch_size: int) -> None:
    """Let dropout draw for all rows of a batch, and use those of this process."""
    if ranks.is_alone or not model.config.dropout:
        return
    for module in model.modules():
        if isinstance(module, Dropout):
            module.first_row, module.n_rows = ranks.rows(batch_size).start, batch_size
