"""minLSTM: a forget and an input gate that see the input alone and add up to 1.

Source: Feng et al. 2024, "Were RNNs All We Needed?", section 3.2 and the form of its appendix B,
in which states are positive; `min_gru` is the same with one gate.

Glossary (our name = the paper's symbol): `in_proj` = Linear_{d_h} of f, i and h~, side by side;
`decay` = f', `written` = i'; `candidate` = h~; the state `h` = h; S = d_h.

Recurrence, row vectors, t the clock:

    f_t = sigmoid(forget_t);   i_t = sigmoid(input_t)    [forget_t, input_t, candidate_t] =
    f'_t = f_t / (f_t + i_t);  i'_t = i_t / (f_t + i_t)                     x_t in_proj + bias
    h_t = f'_t h_{t-1} + i'_t g(candidate_t)             g(v) = v + 1/2 for v >= 0, else sigmoid(v)
    y_t = h_t out_proj

State: h, B x S, of constant size; 0 before the first token of a document.

Differs from the source: as `min_gru` does. f' is computed as sigmoid(log f - log i), which needs
no special case where both gates are closed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.mixers.protocol import backend_of
from ys_llm.ops.linear import linear
from ys_llm.ops.linear_scan import linear_scan, positive, reference
from ys_llm.ops.precision import Precision


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.min_lstm`."""

    d_state: int = setting(256, "width S of the state", minimum=1)


CONTRACT_OPTIONS = (Options(d_state=24),)


class Mixer(nn.Module):
    """The minLSTM: x_BTD -> y_BTD with a carried state of constant size."""

    backends = ("reference", "scan")
    time_major = True  # the scan reads its input step by step

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend_of("min_lstm", backend, self.backends)
        self.d_state = options.d_state
        self.in_proj = nn.Linear(d_model, 3 * options.d_state)
        self.out_proj = nn.Linear(options.d_state, d_model, bias=False)
        for weight in (*self.in_proj.weight.chunk(3), self.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.in_proj.bias)

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, Tensor],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Any T >= 1; `starts_BT` marks first tokens of documents, before which h is 0."""
        projected = linear(self.in_proj, x_BTD.transpose(0, 1)).to(state["h"].dtype)
        forget_TBS, input_TBS, candidate_TBS = projected.chunk(3, dim=-1)
        log_ratio_TBS = F.logsigmoid(forget_TBS) - F.logsigmoid(input_TBS)
        decay_TBS, written_TBS = log_ratio_TBS.sigmoid(), (-log_ratio_TBS).sigmoid()
        if starts_BT is not None:
            decay_TBS = decay_TBS.masked_fill(starts_BT.t()[:, :, None], 0.0)
        scan = reference if self.backend == "reference" else linear_scan
        h_TBS = scan(decay_TBS, written_TBS * positive(candidate_TBS), state["h"])
        return linear(self.out_proj, h_TBS).transpose(0, 1), {"h": h_TBS[-1].clone()}

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """scan unless the configuration says otherwise."""
        return self.backend, "one operation a step, in float32 or wider"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token: 0."""
        like = self.out_proj.weight
        h = torch.zeros(batch_size, self.d_state, dtype=like.dtype, device=like.device)
        return {"h": h}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the state after `seq_len` tokens: the same for every length."""
        return batch_size * self.d_state * self.out_proj.weight.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of all matmuls, multiply-add = 2; the same for every length."""
        return 2 * (self.in_proj.weight.numel() + self.out_proj.weight.numel())
