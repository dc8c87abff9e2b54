"""The quadratic state of Why Snakes v0.1: every product of two of its numbers drives it.

Source: Erik Hyrkas, "Why Snakes" v0.1 (August 2024), github.com/erikhyrkas/snakes.

Glossary (our name = the source's symbol): `quadratic` = P, S x S x S; `in_proj`, `out_proj`,
`skip_proj` = Q, R, the skip matrix; S = d_state.

Recurrence, row vectors, t the clock:

    s_t = LN(sum_ij s_{t-1,i} s_{t-1,j} P_ij + x_t in_proj)
    y_t = LN(s_t out_proj + x_t skip_proj)

Before every clock that is a multiple of `detach_interval` the gradient of s stops, as in the
source: what a state does later than that, it does not learn. The source's P is 0.1 for j = k, plus
0.01 everywhere; at first s sums to 0, of which such a P makes nothing: there is no memory until P
has moved. `init_noise` spares the search for a way out, on which some seeds stay; 0 is the source.

State: s, B x S, of constant size; 0 before the first token of a document.

Differs from the source: dropout of y is the trunk's, after the last LN instead of before it; the
source counts `detach_interval` from the first token of a sequence, which is the clock where no
state is carried.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.linear import linear
from ys_llm.ops.precision import Precision

NORM_EPS = 1e-5
CONSTANTS = {"norm_eps": NORM_EPS}
_DIAGONAL, _ELSEWHERE = 0.1, 0.01  # of new weights: 0.1 identity + 0.01


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.ys_v0_1`."""

    d_state: int = setting(
        16, "width S of the state, S^3 parameters; 448 in the source", minimum=1, maximum=2048
    )
    detach_interval: int = setting(
        32, "tokens after which the gradient of the state stops; 0 = never", minimum=0
    )
    init_noise: float = setting(
        0.1, "deviation of a new P from its fixed values, times S; 0 in the source", minimum=0
    )


class Mixer(nn.Module):
    """The quadratic state: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference",)
    time_major = True  # the recurrence reads its input step by step

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend_of("ys_v0_1", backend, self.backends)
        self.options = options
        d_state = options.d_state
        self.quadratic = nn.Parameter(torch.eye(d_state).repeat(d_state, 1, 1))
        self.in_proj = nn.Linear(d_model, d_state, bias=False)
        self.out_proj = nn.Linear(d_state, d_model, bias=False)
        self.skip_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = nn.LayerNorm(d_state, eps=NORM_EPS)
        self.out_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        with torch.no_grad():
            for layer in (self.in_proj, self.out_proj, self.skip_proj):
                nn.init.eye_(layer.weight).mul_(_DIAGONAL).add_(_ELSEWHERE)
            noise = options.init_noise / d_state * torch.randn_like(self.quadratic)
            self.quadratic.mul_(_DIAGONAL).add_(_ELSEWHERE).add_(noise)

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which s is 0."""
        x_TBD = x_BTD.transpose(0, 1)
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        drive_TBS = linear(self.in_proj, x_TBD).to(wide)
        detached_TB = self._detached(position_B, len(x_TBD)).to(x_BTD.device)
        starts_TB = None if starts_BT is None else starts_BT.t()
        with torch.autocast(x_BTD.device.type, enabled=False):
            s_TBS = self._states(drive_TBS, state["s"].to(wide), detached_TB, starts_TB)
        read_TBD = linear(self.out_proj, s_TBS) + linear(self.skip_proj, x_TBD)
        y_TBD: Tensor = self.out_norm(read_TBD)
        return y_TBD.transpose(0, 1), {"s": s_TBS[-1].to(state["s"].dtype)}

    def _states(
        self, drive_TBS: Tensor, s_BS: Tensor, detached_TB: Tensor, starts_TB: Tensor | None
    ) -> Tensor:
        """All states after `s_BS`."""
        weight, states = self.quadratic.flatten(0, 1).to(drive_TBS.dtype), []
        for t, drive_BS in enumerate(drive_TBS):
            if starts_TB is not None:
                s_BS = s_BS.masked_fill(starts_TB[t, :, None], 0)
            s_BS = torch.where(detached_TB[t, :, None], s_BS.detach(), s_BS)
            products = (s_BS[:, :, None] * s_BS[:, None]).flatten(1)
            s_BS = self.norm(products @ weight + drive_BS)
            states.append(s_BS)
        return torch.stack(states)

    def _detached(self, position_B: Tensor, n_tokens: int) -> Tensor:
        """T x B: before which tokens the gradient stops."""
        clock_TB = position_B + torch.arange(n_tokens).unsqueeze(1)
        interval = self.options.detach_interval
        return clock_TB % interval == 0 if interval else torch.zeros_like(clock_TB).bool()

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """The only one."""
        return self.backend, "one matmul a step, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token: 0."""
        like = self.quadratic
        shape = (batch_size, self.options.d_state)
        return {"s": torch.zeros(shape, dtype=like.dtype, device=like.device)}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        return batch_size * self.options.d_state * self.quadratic.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length."""
        layers = (self.in_proj, self.out_proj, self.skip_proj)
        return 2 * (self.quadratic.numel() + sum(layer.weight.numel() for layer in layers))
