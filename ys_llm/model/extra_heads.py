"""Further prediction heads, for training alone: head j predicts the token j places ahead.

Source: Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction".

    h_j = x + SwiGLU_j(x)                  x: what the head reads; j = 2 .. k
    loss = (nats of head(x) at t + 1 + sum_j nats of head(h_j) at t + j) / k

A target beyond the row, or of a document that begins after t, does not count. All share the head's
matrix. The first head is the model's own, without a layer of its own (the source's have one each),
so that the model that generates is the same with any k; no copy tier takes part in the others.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.data.batches import IGNORE_INDEX
from ys_llm.model.layers import SwiGLU


class ExtraHeads(nn.Module):
    """The layers of the heads after the first."""

    def __init__(self, d_model: int, d_mlp: int, n_heads: int) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(SwiGLU(d_model, d_mlp) for _ in range(n_heads))

    def forward(
        self,
        x_BTD: Tensor,
        targets_BT: Tensor,
        weights_BT: Tensor | None,
        starts_BT: Tensor | None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """What the head's matrix reads of each, its targets and their weights."""
        for ahead, mlp in enumerate(self.mlps, start=1):
            targets = later(targets_BT, ahead, fill=IGNORE_INDEX)
            if starts_BT is not None:
                targets = targets.masked_fill(crosses_start(starts_BT, ahead), IGNORE_INDEX)
            weights = None if weights_BT is None else later(weights_BT, ahead, fill=0)
            yield x_BTD + mlp(x_BTD), targets, weights

    def initialise(self, *, n_layers: int) -> None:
        """As the MLPs of the layers."""
        for mlp in self.mlps:
            mlp.initialise(n_layers=n_layers)  # type: ignore[operator]


def later(x_BT: Tensor, ahead: int, *, fill: int) -> Tensor:
    """x at t + ahead, `fill` beyond the row."""
    return F.pad(x_BT[:, ahead:], (0, min(ahead, x_BT.shape[1])), value=fill)


def crosses_start(starts_BT: Tensor, ahead: int) -> Tensor:
    """Whether a document starts at one of the next `ahead` inputs."""
    crossed = torch.zeros_like(starts_BT)
    for n in range(1, ahead + 1):
        crossed |= F.pad(starts_BT[:, n:], (0, min(n, starts_BT.shape[1])))
    return crossed
