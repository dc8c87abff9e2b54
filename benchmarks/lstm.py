"""torch's nn.LSTM in place of a model's mixers: the baseline of whole training steps.

It is no mixer of `ys`: it cannot start anew at a document within a row, and reads on instead. That
spares it work, so the comparison favours it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ys_llm.model.language_model import Model
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.trainer import Run

# In place of the default stack's mixers and MLPs, with as many parameters (within 2 %).
OVERRIDES = ("model.d_mlp=384", "model.layers=[min_gru]", "model.options={}")


class Mixer(nn.Module):
    """An LSTM with a state as wide as the residual stream; see `ys_llm.mixers.protocol.Mixer`."""

    backends = ("torch",)
    time_major = True  # as nn.LSTM is by default

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.backend = "torch"
        self.lstm = nn.LSTM(d_model, d_model)

    def forward(
        self, x_BTD: Tensor, state: dict[str, Tensor], starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and state; documents are not told apart."""
        before = tuple(state[name][None] for name in ("h", "c"))
        y_TBD, (h, c) = self.lstm(x_BTD.transpose(0, 1), before)
        return y_TBD.transpose(0, 1), {"h": h[0], "c": c[0]}

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """Zeros."""
        zeros = torch.zeros(batch_size, self.lstm.hidden_size)
        return {"h": zeros, "c": zeros.clone()}

    def select_backend(self, **_: Any) -> tuple[str, str]:
        """There is one."""
        return self.backend, "torch's own"

    def decode_spec(self) -> None:
        """None: it is only trained."""
        return None

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of h and c."""
        return 2 * 4 * batch_size * self.lstm.hidden_size

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls."""
        return sum(2 * w.numel() for w in self.lstm.parameters() if w.dim() == 2)


def put_in(model: Model) -> Model:
    """The model with an LSTM in every block; changes it."""
    for block in cast(Any, model.blocks):
        block.mixer = Mixer(model.config.d_model)
    return model


def with_lstm(run: Run) -> Run:
    """The run with an LSTM in every block, and an optimizer of those weights."""
    model = put_in(run.model)
    return replace(run, model=model, optimizer=make_optimizer(model, run.config.train))
