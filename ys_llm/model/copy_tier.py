"""The copy tier: a part of each prediction is one of the latest tokens, said again.

A pointer in the manner of Merity et al. 2016 and See et al. 2017. h_t is what the head reads after
token t, e_t the embedding of token t divided by its root mean square, K the width of a key:

    p_t(v) = (1 - g_t) softmax(head(h_t))_v + g_t sum_s a_ts [token_s = v]
    a_ts = softmax_s(q_t . k_s / sqrt(K))    over s <= t of t's own document, t - s < window
    q_t = query(h_t)      k_s = key(h_{s-1}) + token_key(e_s)      g_t = sigmoid(gate(h_t))

The key of a token tells what stood before it, and is 0 there for the first token of a document: a
copy goes on where it began, and a name of several tokens is not copied from its second.

State: keys and tokens in view, the latest last, at most window - 1 of them, with `pending`, what
the state of the last token adds to the key of the next. Tokens are kept as id + 1: 0 is nothing, as
rows that have read texts of different lengths are padded on the left. A document that starts clears
all of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ys_llm.config.schema import CopyConfig
from ys_llm.ops import rowwise
from ys_llm.ops.copy_attention import copied_mass, copy_weights
from ys_llm.ops.linear import linear

GATE_BIAS = -2.0  # a new model copies an eighth of each prediction

CopyState = dict[str, Tensor]


class Reading(NamedTuple):
    """What copying reads: a query and a gate for each of T tokens; N keys with their tokens."""

    query_BTK: Tensor
    gate_BT: Tensor
    keys_BNK: Tensor
    tokens_BN: Tensor
    document_BN: Tensor

    def last(self) -> "Reading":
        """That of the last token."""
        return self._replace(query_BTK=self.query_BTK[:, -1:], gate_BT=self.gate_BT[:, -1:])


class CopyTier(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, config: CopyConfig) -> None:
        super().__init__()
        self.window, self.width = config.window, config.width
        self.query = nn.Linear(d_model, config.width, bias=False)
        self.key = nn.Linear(d_model, config.width, bias=False)
        self.token_key = nn.Linear(d_model, config.width, bias=False)
        self.gate = nn.Linear(d_model, 1)
        for layer in (self.query, self.key, self.token_key):
            nn.init.normal_(layer.weight, std=d_model**-0.5)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, GATE_BIAS)

    def forward(
        self,
        x_BTD: Tensor,
        embedded_BTD: Tensor,
        tokens_BT: Tensor,
        state: CopyState,
        starts_BT: Tensor | None,
    ) -> tuple[Reading, CopyState]:
        """What the loss or the logits are mixed with, and the state after the last token."""
        own_BTK = _projected(self.key, x_BTD)
        before_BTK = torch.cat([state["pending"].to(own_BTK.dtype)[:, None], own_BTK[:, :-1]], 1)
        if starts_BT is not None:
            before_BTK = before_BTK.masked_fill(starts_BT.unsqueeze(2), 0)
        new_keys = before_BTK + _projected(self.token_key, _scaled(embedded_BTD))
        keys_BNK = torch.cat([state["keys"].to(own_BTK.dtype), new_keys], 1)
        tokens_BN = torch.cat([state["tokens"], tokens_BT.to(torch.int32) + 1], 1)
        document_BN = _documents(state["tokens"], tokens_BT, starts_BT)
        gate_BT = _projected(self.gate, x_BTD).squeeze(2)
        gate_BT = gate_BT.to(torch.promote_types(gate_BT.dtype, torch.float32)).sigmoid()
        query_BTK = _projected(self.query, x_BTD).contiguous()
        kept = slice(max(0, tokens_BN.shape[1] - (self.window - 1)), None)
        is_over_BN = document_BN[:, kept] != document_BN[:, -1:]
        return Reading(query_BTK, gate_BT, keys_BNK, tokens_BN, document_BN), {
            "keys": keys_BNK[:, kept].masked_fill(is_over_BN.unsqueeze(2), 0),
            "tokens": tokens_BN[:, kept].masked_fill(is_over_BN, 0),
            "pending": own_BTK[:, -1],
        }

    def mixture(self, reading: Reading, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The head's share of each prediction and the probability copied to its target, B x T."""
        query, gate_BT, keys_BNK, tokens_BN, document_BN = reading
        targets_BT = targets_BT + 1
        mass_BT = copied_mass(query, keys_BNK, tokens_BN, document_BN, targets_BT, self.window)
        return 1 - gate_BT, gate_BT * mass_BT

    def mix(self, logits_BTV: Tensor, reading: Reading) -> Tensor:
        """log p, of the head's logits in float32 or wider."""
        gate_BT1, shares_BTN = reading.gate_BT.unsqueeze(2), self.shares(reading)
        ids_BTN = (reading.tokens_BN - 1).clamp_min(0).long().unsqueeze(1).expand_as(shares_BTN)
        own_BTV = (1 - gate_BT1) * logits_BTV.softmax(-1)
        mixed_BTV = own_BTV.scatter_add(2, ids_BTN, shares_BTN.to(own_BTV.dtype))
        return mixed_BTV.clamp_min(torch.finfo(mixed_BTV.dtype).tiny).log()

    def shares(self, reading: Reading) -> Tensor:
        """g_t a_ts, B x T x N: the probability that is copied from each token."""
        query, gate_BT, keys_BNK, _, document_BN = reading
        weights_BTN = copy_weights(query, keys_BNK, document_BN, self.window)
        return gate_BT.unsqueeze(2) * weights_BTN

    def init_state(self, batch_size: int) -> CopyState:
        """Nothing read."""
        weight = self.query.weight
        return {
            "keys": weight.new_zeros(batch_size, 0, self.width),
            "tokens": torch.zeros(batch_size, 0, dtype=torch.int32, device=weight.device),
            "pending": weight.new_zeros(batch_size, self.width),
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes after `seq_len` tokens: a key and a token for each in view, and `pending`."""
        number = self.query.weight.element_size()
        n_keys = min(self.window - 1, seq_len)
        per_key = self.width * number + torch.int32.itemsize
        return batch_size * (n_keys * per_key + self.width * number)

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs (multiply-add = 2), mean over the first `seq_len` tokens."""
        projections = sum(weight.numel() for weight in self.parameters() if weight.dim() > 1)
        window = min(self.window, seq_len)
        pairs = window * (window + 1) // 2 + (seq_len - window) * window
        return 2 * projections + 2 * self.width * pairs // seq_len

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"window={self.window}"


def _projected(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    return rowwise.from_2d(linear(layer, rowwise.to_2d(x_BTD)), x_BTD)


def _scaled(embedded_BTD: Tensor) -> Tensor:
    """Each embedding over its root mean square: a new one is small, and would tell nothing."""
    mean_BT1 = embedded_BTD.square().mean(-1, keepdim=True)
    return embedded_BTD * (mean_BT1 + 1e-12).rsqrt()


def _documents(past_BN: Tensor, tokens_BT: Tensor, starts_BT: Tensor | None) -> Tensor:
    """B x N, the number of the document of each token, 0 for padding."""
    ones_BT = torch.ones_like(tokens_BT, dtype=torch.int32)
    if starts_BT is not None:
        ones_BT = ones_BT + starts_BT.cumsum(1, dtype=torch.int32)
    return torch.cat([(past_BN > 0).to(torch.int32), ones_BT], 1)
