"""LRU: a linear recurrence of complex numbers, each with a decay and a turn of its own.

Source: Orvieto et al. 2023, "Resurrecting Recurrent Neural Networks for Long Sequences", section 3.

Glossary (our name = the paper's symbol): `decay` = nu_log, `turn` = theta_log, `scale` = gamma_log;
`in_proj` = B, its real and its imaginary part; `out_proj` = C, the same; `skip` = D; the state h =
x; S = N.

Recurrence, row vectors, t the clock:

    l   = exp(-exp(decay) + i exp(turn))                     S complex numbers, |l| < 1
    h_t = l h_{t-1} + exp(scale) (x_t in_proj)
    y_t = Re(h_t C) + skip x_t                               C = out_proj, of h's two parts

State: h, B x S x 2, its real and imaginary part, of constant size; 0 before the first token of a
document.

Differs from the source: the scan doubles how far back each token has summed, log2 T times, instead
of a tree over pairs; the block around it is that of every mixer here.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.linear import linear
from ys_llm.ops.precision import Precision

_RING = (0.1, 0.999)  # |l| of a new mixer, evenly over the ring between
_TURNS = (0.01, 2 * math.pi)  # radians a token


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.lru`."""

    d_state: int = setting(256, "complex numbers S of the state", minimum=1)


CONTRACT_OPTIONS = (Options(d_state=12),)


class Mixer(nn.Module):
    """The LRU: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "doubling")
    time_major = False

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend_of("lru", backend, self.backends)
        self.d_state = options.d_state
        self.in_proj = nn.Linear(d_model, 2 * options.d_state, bias=False)
        self.out_proj = nn.Linear(2 * options.d_state, d_model, bias=False)
        nn.init.normal_(self.in_proj.weight, std=(2 * d_model) ** -0.5)
        nn.init.normal_(self.out_proj.weight, std=options.d_state**-0.5)
        self.skip = nn.Parameter(torch.randn(d_model))
        least, most = (radius**2 for radius in _RING)
        squared = torch.empty(options.d_state).uniform_(least, most)
        self.decay = nn.Parameter((-0.5 * squared.log()).log())
        self.turn = nn.Parameter(torch.empty(options.d_state).uniform_(*_TURNS).log())
        self.scale = nn.Parameter(0.5 * (1 - squared).log())  # so that h is as large as its input

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which h is 0."""
        before_BS = torch.view_as_complex(state["h"])
        projected = linear(self.in_proj, x_BTD).to(state["h"].dtype)
        written_BTS = torch.complex(*(self.scale.exp() * x for x in projected.chunk(2, dim=-1)))
        factor_S = torch.polar((-self.decay.exp()).exp(), self.turn.exp())
        scan = _stepwise if self.backend == "reference" else _doubling
        h_BTS = scan(factor_S, written_BTS, before_BS, starts_BT)
        y_BTD = linear(self.out_proj, torch.cat([h_BTS.real, h_BTS.imag], -1).to(x_BTD.dtype))
        return y_BTD + self.skip * x_BTD, {"h": torch.view_as_real(h_BTS[:, -1]).clone()}

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """doubling unless the configuration says otherwise."""
        return self.backend, "log2 T operations over all tokens, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token: 0."""
        like = self.out_proj.weight
        shape = (batch_size, self.d_state, 2)
        return {"h": torch.zeros(shape, dtype=like.dtype, device=like.device)}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        return 2 * batch_size * self.d_state * self.out_proj.weight.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length."""
        return 2 * (self.in_proj.weight.numel() + self.out_proj.weight.numel())


def _stepwise(
    factor_S: Tensor, written_BTS: Tensor, h_BS: Tensor, starts_BT: Tensor | None
) -> Tensor:
    """All states, token by token."""
    states = []
    for t, written_BS in enumerate(written_BTS.unbind(1)):
        if starts_BT is not None:
            h_BS = h_BS.masked_fill(starts_BT[:, t, None], 0)
        h_BS = factor_S * h_BS + written_BS
        states.append(h_BS)
    return torch.stack(states, 1)


def _doubling(
    factor_S: Tensor, written_BTS: Tensor, before_BS: Tensor, starts_BT: Tensor | None
) -> Tensor:
    """As `_stepwise`: after round n, each token has the sum over the last 2^n, itself included."""
    h_BNS, n_tokens = torch.cat([before_BS.unsqueeze(1), written_BTS], 1), written_BTS.shape[1]
    place_N = torch.arange(n_tokens + 1, device=h_BNS.device)
    reach_BN = place_N.expand(len(h_BNS), -1)  # how many places before each are of its document
    if starts_BT is not None:
        start_BN = place_N.where(F.pad(starts_BT, (1, 0)), 0).cummax(1).values
        reach_BN = reach_BN - start_BN
    shift = 1
    while shift <= n_tokens:
        earlier_BNS = F.pad(h_BNS[:, :-shift], (0, 0, shift, 0))
        earlier_BNS = earlier_BNS.masked_fill((reach_BN < shift).unsqueeze(2), 0)
        h_BNS = h_BNS + factor_S**shift * earlier_BNS
        shift *= 2
    return h_BNS[:, 1:]
