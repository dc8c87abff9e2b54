"""The fixed filter of Why Snakes v0.2: past inputs, weighted by their distance alone.

Source: Erik Hyrkas, "Why Snakes" v0.2 (September 2024), github.com/erikhyrkas/snakes; the form that
it is computed in is that of SSD, Dao and Gu 2024, whose a, b and c depend on the input.

Glossary (our name = the source's symbol): `rate` = a, a number a head; `write`, `read` = b, c, S
numbers a head; `out_proj` = the linear layer; H heads of P = d_model / H channels; S = d_state.

Recurrence, row vectors, t the clock, x_t cut into heads, each head by itself until the last line:

    y_t = (b . c) sum_s exp(a (t - s)) x_s       s <= t, of t's own document
    out_t = LN(concat(y_t) out_proj + bias)

b and c are the same for all tokens, so that the S numbers of a state collapse to one: b . c.

`fidelity: paper` keeps two mistakes of the source, by which it differs from the equation meant:

- its masks leave out their diagonals: of its own block of `block` tokens t sees those before it,
  not itself; of the block before that, nothing; and all of the earlier ones;
- a is of either sign, and where it is positive y grows as exp(a T). Under `fixed` a is -|rate|.

State: sums of exp(a (t - s)) x_s, B x D each: of all tokens; under `paper` one of t's own block,
one of the block before and one of the earlier ones. 0 before the first token of a document; blocks
are counted by the clock.

Differs from the source: y has d_model channels, 960 in the source's size, where the source has 768;
its sequences of growing lengths are not reproduced.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.chunks import decays
from ys_llm.ops.linear import linear
from ys_llm.ops.precision import Precision

NORM_EPS = 1e-5
CONSTANTS = {"norm_eps": NORM_EPS}
_MEAN, _STD = 0.01, 0.1  # of the rate, b and c of a new mixer

State = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.ys_v0_2`."""

    fidelity: Literal["fixed", "paper"] = setting("fixed", "paper: with the source's mistakes")
    n_heads: int = setting(8, "heads H; they share d_model", minimum=1)
    d_state: int = setting(
        256, "numbers of b and c, which only enter as b . c; 16384 in the source", minimum=1
    )
    block: int = setting(32, "tokens of a block", minimum=1)


class Mixer(nn.Module):
    """The fixed filter: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "chunked")
    time_major = False

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        _check(d_model, options)
        self.backend = backend_of("ys_v0_2", backend, self.backends)
        self.options, self.d_model = options, d_model
        self.is_paper = options.fidelity == "paper"
        self.rate = nn.Parameter(torch.empty(options.n_heads))
        self.write = nn.Parameter(torch.empty(options.n_heads, options.d_state))
        self.read = nn.Parameter(torch.empty(options.n_heads, options.d_state))
        for parameter in (self.rate, self.write, self.read):
            nn.init.normal_(parameter, _MEAN, _STD)
        self.out_proj = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)

    def forward(
        self, x_BTD: Tensor, state: State, starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Tensor, State]:
        """Any T >= 1; `starts_BT` marks tokens that see nothing before themselves."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        x_BHTP = self._heads(x_BTD.to(wide))
        sums = {name: self._heads(sum_BD[:, None].to(wide)) for name, sum_BD in state.items()}
        outputs = []
        with torch.autocast(x_BTD.device.type, enabled=False):
            for first, last in pairwise(self._cuts(position_B, x_BTD.shape[1])):
                starts = None if starts_BT is None else starts_BT[:, first:last]
                read_BHTP, sums = self._piece(x_BHTP[:, :, first:last], sums, starts)
                sums = self._after(sums, (position_B + last) % self.options.block == 0)
                outputs.append(read_BHTP)
            scale_H11 = (self.write * self.read).sum(1).to(wide)[:, None, None]
            y_BTD = (scale_H11 * torch.cat(outputs, 2)).transpose(1, 2).flatten(2)
        out_BTD: Tensor = self.norm(linear(self.out_proj, y_BTD))
        after = {name: x.transpose(1, 2).flatten(1) for name, x in sums.items()}
        return out_BTD, {name: x.to(state[name].dtype) for name, x in after.items()}

    def _heads(self, x_BTD: Tensor) -> Tensor:
        """B x H x T x P."""
        heads_BTHP: Tensor = x_BTD.unflatten(2, (self.options.n_heads, -1))
        return heads_BTHP.transpose(1, 2)

    def _cuts(self, position_B: Tensor, n_tokens: int) -> list[int]:
        """Where the pieces begin that lie in one block of every row, and where the last ends."""
        if self.backend == "reference":
            return list(range(n_tokens + 1))
        clock_TB = position_B + torch.arange(n_tokens).unsqueeze(1)
        inside_T = (clock_TB % self.options.block == 0).any(1)
        inside_T[0] = False
        return [0, *inside_T.nonzero().flatten().tolist(), n_tokens]

    def _piece(self, x_BHTP: Tensor, sums: State, starts_BT: Tensor | None) -> tuple[Tensor, State]:
        """What each token of a piece reads, and the sums after the last."""
        rate_H = self.rate if self.is_paper else -self.rate.abs()
        n_tokens = x_BHTP.shape[2]
        log_decay = rate_H.to(x_BHTP.dtype)[None, :, None, None, None]
        fresh, ratio = (
            x[:, :, 0] for x in decays(log_decay.repeat(1, 1, 1, n_tokens, 1), starts_BT)
        )
        before_BHTP = ratio.tril(-1) @ x_BHTP + fresh * sums["own"]  # of the same block
        own_BHTP = before_BHTP + x_BHTP
        older = {name: fresh[:, :, -1:] * x for name, x in sums.items() if name != "own"}
        after = {"own": own_BHTP[:, :, -1:], **older}
        return before_BHTP + fresh * sums["earlier"] if self.is_paper else own_BHTP, after

    def _after(self, sums: State, is_last_B: Tensor) -> State:
        """The sums for the next token: after the last of a block, all are one older."""
        if not self.is_paper or not is_last_B.any():
            return sums
        own, previous, earlier = sums["own"], sums["previous"], sums["earlier"]
        last = is_last_B.to(own.device)[:, None, None, None]
        return {
            "own": own.masked_fill(last, 0),
            "previous": torch.where(last, own, previous),
            "earlier": torch.where(last, earlier + previous, earlier),
        }

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """chunked unless the configuration says otherwise."""
        return self.backend, "one matmul a block, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: 0."""
        like, names = self.rate, ("own", "previous", "earlier") if self.is_paper else ("own",)
        shape = (batch_size, self.d_model)
        return {name: torch.zeros(shape, dtype=like.dtype, device=like.device) for name in names}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        n_sums = 3 if self.is_paper else 1
        return batch_size * n_sums * self.d_model * self.rate.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length.

        Those of the recurrence, one multiply-add a channel; blocks do more.
        """
        return 2 * self.out_proj.weight.numel() + 2 * self.d_model

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"fidelity={self.options.fidelity}, block={self.options.block}"


def _check(d_model: int, options: Options) -> None:
    """Raise UserError where the heads do not fit."""
    if d_model % options.n_heads:
        raise UserError(
            f"model.options.ys_v0_2.n_heads {options.n_heads} does not divide model.d_model"
            f" {d_model}",
            "Choose another n_heads or d_model",
            exit_code=EXIT_USAGE,
        )
