"""A mixer for tests: a causal convolution, then a matrix memory written by the delta rule.

Source: Schlag, Irie & Schmidhuber 2021, "Linear Transformers Are Secretly Fast Weight Programmers";
the convolution in front is that of Mamba (Gu & Dao 2023). Row vectors, P = d_key:

    c_t = sum_i x_{t-i} * kernel_i                                        the last `width` tokens
    q, k, v = c_t q_proj, c_t k_proj / |c_t k_proj|, c_t v_proj;  b = sigmoid(c_t rate + bias)
    M <- M + b k^T (v - k M);    y_t = (q M) out_proj

State: the window of the last tokens and the matrix, in a tree of its own form.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ys_llm.config.strict_reader import setting
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.ops.precision import Precision


@dataclass(frozen=True)
class Options:
    """What a configuration may set under `model.options.matrix_memory`."""

    d_key: int = setting(16, "width P of keys and values", minimum=1)
    width: int = setting(4, "tokens that the convolution reads", minimum=1)


CONTRACT_OPTIONS = (Options(d_key=5, width=1),)


class Memory(NamedTuple):
    """What the delta rule keeps."""

    matrix_BPP: Tensor


class Mixer(nn.Module):
    """A convolution over the last tokens, and a matrix of everything before."""

    backends = ("reference",)
    time_major = False
    no_weight_decay = ("kernel",)

    def __init__(self, d_model: int, options: Options, *, backend: str = "auto") -> None:
        super().__init__()
        if backend not in ("auto", *self.backends):
            raise UserError(
                f"train.backend.matrix_memory: there is no backend {backend!r}",
                "Choose auto or reference.",
                exit_code=EXIT_USAGE,
            )
        self.backend, self.d_model, self.options = "reference", d_model, options
        self.kernel = nn.Parameter(torch.randn(d_model, 1, options.width) * options.width**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(d_model, options.d_key, bias=False) for _ in range(3)
        )
        self.rate = nn.Linear(d_model, 1)
        self.out_proj = nn.Linear(options.d_key, d_model, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        state: dict[str, list[Tensor] | Memory],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Tensor, dict[str, list[Tensor] | Memory]]:
        """One token after the other."""
        (window_BWD,), (matrix_BPP,) = state["window"], state["memory"]
        outputs = []
        for t, x_BD in enumerate(x_BTD.unbind(1)):
            if starts_BT is not None:
                keep_B11 = (~starts_BT[:, t])[:, None, None].to(x_BD.dtype)
                window_BWD, matrix_BPP = window_BWD * keep_B11, matrix_BPP * keep_B11
            read_BWD = torch.cat([window_BWD, x_BD.unsqueeze(1)], dim=1)
            window_BWD = read_BWD[:, 1:]
            c_BD = (read_BWD * self.kernel[:, 0].t()).sum(1)
            q, k, v = (proj(c_BD).unsqueeze(1) for proj in (self.q_proj, self.k_proj, self.v_proj))
            k = k / (k.norm(dim=-1, keepdim=True) + 1e-6)
            rate_B11 = torch.sigmoid(self.rate(c_BD)).unsqueeze(1)
            correction = rate_B11 * (v - k @ matrix_BPP.to(k.dtype))
            matrix_BPP = matrix_BPP + k.transpose(1, 2) @ correction
            outputs.append((q @ matrix_BPP.to(q.dtype)).squeeze(1))
        y_BTD: Tensor = self.out_proj(torch.stack(outputs, 1))
        return y_BTD, {"window": [window_BWD], "memory": Memory(matrix_BPP)}

    def init_state(self, batch_size: int) -> dict[str, list[Tensor] | Memory]:
        """Zeros."""
        options, like = self.options, self.kernel
        zeros = partial(torch.zeros, dtype=like.dtype, device=like.device)
        window_BWD = zeros(batch_size, options.width - 1, self.d_model)
        matrix_BPP = zeros(batch_size, options.d_key, options.d_key)
        return {"window": [window_BWD], "memory": Memory(matrix_BPP)}

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the window and the matrix."""
        n = (self.options.width - 1) * self.d_model + self.options.d_key**2
        return batch_size * n * self.kernel.element_size()

    def flops_per_token(self, seq_len: int) -> int:
        """Of all matmuls, multiply-add = 2."""
        p = self.options.d_key
        return 2 * self.d_model * (4 * p + 1) + 6 * p * p

    def select_backend(
        self, *, batch_size: int, precision: Precision, previous: str = "", timed: bool = True
    ) -> tuple[str, str]:
        """There is one."""
        return self.backend, "the only one"

    def decode_spec(self) -> None:
        """None: torch decodes this mixer."""
        return None
