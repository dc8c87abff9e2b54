"""A mixer behind a causal convolution of a few taps: a mixer itself, by the same protocol.

    y = mixer(c),   c_t = x_t + sum_j w_j x_{t-j}     over 1 <= j < taps of t's own document

The convolution sees which tokens stand side by side, so that the mixer need not carry them. As in
Mamba (Gu & Dao 2023) and the Canon layers of Allen-Zhu 2025 it is depthwise; with w = 0, where it
begins, it is the identity.

State: `inputs`, the last taps - 1 of them, B x (taps - 1) x D, 0 for those of an earlier document;
`mixer`, the mixer's own tree.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.mixers.protocol import Mixer
from ys_llm.ops.convolution import convolution, reference
from ys_llm.ops.precision import Precision


class Convolved(nn.Module):
    """See the top of this file."""

    no_weight_decay = ("taps",)  # a few numbers a channel, as a vector is

    def __init__(self, mixer: Any, *, d_model: int, taps: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.taps = nn.Parameter(torch.zeros(taps - 1, d_model))

    @property
    def _inner(self) -> Mixer:
        mixer: Mixer = self.mixer
        return mixer

    @property
    def backends(self) -> tuple[str, ...]:
        """Those of the mixer."""
        return self._inner.backends

    @property
    def backend(self) -> str:
        """That of the mixer."""
        return self._inner.backend

    @property
    def time_major(self) -> bool:
        """As the mixer."""
        return self._inner.time_major

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Any],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, over which no tap reaches."""
        convolve = reference if self.backend == "reference" else convolution
        x_BTD, inputs_BKD = convolve(x_BTD, self.taps, state["inputs"], starts_BT)
        y_BTD, after = self.mixer(x_BTD, state["mixer"], starts_BT, position_B)
        return y_BTD, {"inputs": inputs_BKD, "mixer": after}

    def init_state(self, batch_size: int) -> dict[str, Any]:
        """The state before the first token."""
        like, shape = self.taps, (batch_size, *self.taps.shape)
        inputs_BKD = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return {"inputs": inputs_BKD, "mixer": self._inner.init_state(batch_size)}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes after `seq_len` tokens: those of the mixer, and the last inputs."""
        own = batch_size * self.taps.numel() * self.taps.element_size()
        return own + self._inner.state_bytes(batch_size, seq_len)

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the mixer: a convolution of few taps is no matmul."""
        return self._inner.flops_per_token(seq_len)

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """That of the mixer; the reason says who decodes."""
        backend, why = self._inner.select_backend(
            batch_size=batch_size, precision=precision, previous=previous, timed=timed
        )
        return backend, f"{why}; torch decodes, as there is a convolution before it"

    def decode_spec(self) -> None:
        """None: torch decodes a mixer behind a convolution."""
        return None

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"taps={len(self.taps) + 1}"
