"""The layers around a mixer: RMSNorm, SwiGLU, and the blocks they make up.

pre_norm:  x <- x + mixer(RMSNorm(x));  x <- x + MLP(RMSNorm(x))
           MLP(x) = (silu(x gate) * (x up)) down                      SwiGLU, Shazeer 2020
           or that of `channel_mix.py`, whose state stands beside the mixer's
plain:     x <- mixer(Dropout(x))
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ys_llm.config.schema import ModelConfig
from ys_llm.model.channel_mix import ChannelMix
from ys_llm.ops.dropout import Dropout
from ys_llm.ops.rms_norm import rms_norm
from ys_llm.ops.swiglu import swiglu

RMS_EPS = 1e-5


class Residual(NamedTuple):
    """The residual stream x + delta, which the next norm sums in the same pass."""

    x_BTD: Tensor
    delta_BTD: Tensor | None = None


class RMSNorm(nn.Module):
    """s = x + delta, and s / rms(s) * weight over the last dimension."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x_BTD: Tensor, delta_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The residual stream and its normalised copy."""
        return rms_norm(x_BTD, delta_BTD, self.weight, RMS_EPS)


class Identity(nn.Module):
    """Takes the place of RMSNorm in a plain model."""

    def forward(self, x_BTD: Tensor, delta_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The residual stream twice."""
        if delta_BTD is not None:
            x_BTD = x_BTD + delta_BTD
        return x_BTD, x_BTD


class SwiGLU(nn.Module):
    """(silu(x gate) * (x up)) down, without biases."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_mlp, bias=False)
        self.up = nn.Linear(d_model, d_mlp, bias=False)
        self.down = nn.Linear(d_mlp, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """B x T x D to the same."""
        return swiglu(self.gate, self.up, self.down, x_BTD)

    def initialise(self, *, n_layers: int) -> None:
        """Normal by fan-in; `down`, which writes to the residual stream, shrinks with the depth."""
        d_mlp, d_model = self.gate.weight.shape
        nn.init.normal_(self.gate.weight, std=d_model**-0.5)
        nn.init.normal_(self.up.weight, std=d_model**-0.5)
        nn.init.normal_(self.down.weight, std=(2 * n_layers * d_mlp) ** -0.5)


class Block(nn.Module):
    """One pre-norm residual layer: a mixer over time, then an MLP over channels if d_mlp > 0."""

    def __init__(self, config: ModelConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.d_model)
        self.mixer = mixer
        self.has_mlp = config.d_mlp > 0
        self.has_channel_mix = self.has_mlp and config.mlp == "channel_mix"
        if self.has_mlp:
            self.mlp_norm = RMSNorm(config.d_model)
            kind = ChannelMix if self.has_channel_mix else SwiGLU
            self.mlp: Any = kind(config.d_model, config.d_mlp)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, residual: Residual, state: Any, starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Residual, Any]:
        """The residual stream after this layer, and its state."""
        before = state["mixer"] if self.has_channel_mix else state
        x_BTD, normed_BTD = self.mixer_norm(*residual)
        mixed_BTD, after = self.mixer(normed_BTD, before, starts_BT, position_B)
        residual = Residual(x_BTD, self.dropout(mixed_BTD))
        if not self.has_mlp:
            return residual, after
        x_BTD, normed_BTD = self.mlp_norm(*residual)
        if self.has_channel_mix:
            mixed_BTD, latest = self.mlp(normed_BTD, state["mlp"], starts_BT)
            after = {"mixer": after, "mlp": latest}
        else:
            mixed_BTD = self.mlp(normed_BTD)
        return Residual(x_BTD, self.dropout(mixed_BTD)), after

    def init_state(self, batch_size: int) -> Any:
        """That of the mixer; beside it, that of the channel mix where there is one."""
        mixer: Any = self.mixer
        state = mixer.init_state(batch_size)
        if not self.has_channel_mix:
            return state
        return {"mixer": state, "mlp": self.mlp.init_state(batch_size)}

    def initialise(self, number: int, config: ModelConfig) -> None:
        """New weights of the MLP."""
        if self.has_channel_mix:
            n_blocks = config.n_layers + config.cross.layers
            self.mlp.initialise(depth=number / n_blocks, n_layers=config.depth)
        elif self.has_mlp:
            self.mlp.initialise(n_layers=config.depth)


class PlainBlock(nn.Module):
    """The mixer after dropout: no norm, no residual, no MLP."""

    def __init__(self, config: ModelConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.dropout = Dropout(config.dropout)

    def forward(
        self, residual: Residual, state: Any, starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Residual, Any]:
        """The mixer's output and its state."""
        x_BTD = self.dropout(residual.x_BTD)
        mixed_BTD, state = self.mixer(x_BTD, state, starts_BT, position_B)
        return Residual(mixed_BTD), state

    def init_state(self, batch_size: int) -> Any:
        """That of the mixer."""
        mixer: Any = self.mixer
        return mixer.init_state(batch_size)
