"""The copy tier: a part of each prediction is one of the latest tokens, said again.

A pointer with a sentinel, in the manner of Merity et al. 2016: the head takes part in the softmax
that chooses what to copy, with a score of its own, so that little is copied where nothing fits.
h_t is what the head reads after token t, e_t the embedding of token t divided by its root mean
square, K the width of a key:

    (a_t0, a_t.) = softmax(z_t, q_t . k_s / sqrt(K))    over the s in view: t and window - 1 before
    p_t(v) = a_t0 softmax(head(h_t))_v + sum_s a_ts [token_s = v]
    q_t = query(h_t)      k_s = key(h_{s-1}) + token_key(e_s)      z_t = gate(h_t)

The key of a token tells what stood before it, and is 0 there for the first token of a document: a
copy goes on where it began, and a name of several tokens is not copied from its second.

`gate: separate` is the form of See et al. 2017, in which h_t alone says how much is copied:

    p_t(v) = (1 - g_t) softmax(head(h_t))_v + g_t sum_s a_ts [token_s = v]
    g_t = sigmoid(gate(h_t))      z_t = -inf

Which ones of t's own document are in view, `keep` decides. `recent`: the latest. `surprising`: the
latest window / 4, and of the whole document before those the tokens that surprised most when they
were read (`kept_tokens.py`), by what the head and the latest window / 4 tokens had told of them:

    surprise_s = -log p_{s-1}(token_s)    with these tokens alone in view

The whole mixture says of s what depends on which tokens are kept, so that a text could only be read
a token at a time; the head alone would be surprised by every repetition. A document's first token
surprises nobody: its surprise is 0.

State: keys and tokens in view, the latest last, at most window - 1 of them, with `pending`, what
the state of the last token adds to the key of the next. Tokens are kept as id + 1: 0 is nothing, as
rows that have read texts of different lengths are padded on the left. A document that starts clears
all of them. `surprising` adds each token's surprise, and what the next token's is computed from.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ys_llm.config.schema import CopyConfig
from ys_llm.model.kept_tokens import expiries, held, is_held, room_of
from ys_llm.ops import rowwise
from ys_llm.ops.copy_attention import View, copied_mass, copy_weights
from ys_llm.ops.cross_entropy import mixed_nats, token_nats
from ys_llm.ops.linear import linear, side_by_side

# A new model copies an eighth of each prediction, with a sentinel once it has read 20 tokens.
GATE_BIAS = {"separate": -2.0, "sentinel": 5.0}

CopyState = dict[str, Tensor]


class Embedded(NamedTuple):
    """The embeddings of tokens, and the table that they were looked up in, where they were."""

    rows_BTD: Tensor
    table_VD: Tensor | None


class Reading(NamedTuple):
    """What copying reads: a query, g and z for each of T tokens; N keys with their tokens.

    With a sentinel g is 1, without one z is -inf: for both, p is that of `CopyTier.mixture`.
    """

    query_BTK: Tensor
    gate_BT: Tensor
    sentinel_BT: Tensor
    keys_BNK: Tensor
    tokens_BN: Tensor
    view: View

    def last(self) -> "Reading":
        """That of the last token."""
        view, last = self.view, self.query_BTK.shape[1] - 1
        if view.expires_BN is not None:
            view = view._replace(expires_BN=view.expires_BN - last)
        return self._replace(
            query_BTK=self.query_BTK[:, -1:],
            gate_BT=self.gate_BT[:, -1:],
            sentinel_BT=self.sentinel_BT[:, -1:],
            view=view,
        )


class CopyTier(nn.Module):
    """See the top of this file."""

    def __init__(self, d_model: int, config: CopyConfig) -> None:
        super().__init__()
        self.window, self.width = config.window, config.width
        self.has_sentinel = config.gate == "sentinel"
        self.room = room_of(config.window) if config.keep == "surprising" else None
        self.query = nn.Linear(d_model, config.width, bias=False)
        self.key = nn.Linear(d_model, config.width, bias=False)
        self.token_key = nn.Linear(d_model, config.width, bias=False)
        self.gate = nn.Linear(d_model, 1)
        for layer in (self.query, self.key, self.token_key):
            nn.init.normal_(layer.weight, std=d_model**-0.5)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, GATE_BIAS[config.gate])

    def forward(
        self,
        x_BTD: Tensor,
        embedded: Embedded,
        tokens_BT: Tensor,
        state: CopyState,
        starts_BT: Tensor | None,
        head: nn.Module,
    ) -> tuple[Reading, CopyState]:
        """What the loss or the logits are mixed with, and the state after the last token."""
        layers = (self.query, self.key, self.gate)
        query_BTK, own_BTK, gate_BT1 = (
            rowwise.from_2d(part, x_BTD) for part in side_by_side(layers, rowwise.to_2d(x_BTD))
        )
        before_BTK = _shifted(state["pending"], own_BTK)
        if starts_BT is not None:
            before_BTK.masked_fill_(starts_BT.unsqueeze(2), 0)
        keys_BNK = before_BTK.add_(self._token_keys(embedded, tokens_BT))
        if state["keys"].shape[1]:
            keys_BNK = torch.cat([state["keys"].to(own_BTK.dtype), keys_BNK], 1)
        tokens_BN = torch.cat([state["tokens"], tokens_BT.to(torch.int32) + 1], 1)
        document_BN = _documents(state["tokens"], tokens_BT, starts_BT)
        said_BT = gate_BT1.squeeze(2)
        said_BT = said_BT.to(torch.promote_types(said_BT.dtype, torch.float32))
        gates, view = self._gates(said_BT), View(document_BN, self.window)
        reading = Reading(query_BTK.contiguous(), *gates, keys_BNK, tokens_BN, view)
        if self.room is None:
            after = self._latest(reading)
        else:
            reading, after = self._surprising(reading, said_BT, x_BTD, state, head)
        return reading, {**after, "pending": own_BTK[:, -1]}

    def _gates(self, said_BT: Tensor) -> tuple[Tensor, Tensor]:
        """g and z, from what the layer `gate` says."""
        if self.has_sentinel:
            return torch.ones_like(said_BT), said_BT
        return said_BT.sigmoid(), torch.full_like(said_BT, -torch.inf)

    def _token_keys(self, embedded: Embedded, tokens_BT: Tensor) -> Tensor:
        """The keys of tokens; those of the whole vocabulary are looked up in where more are read.

        Gradients of many tokens with one key are summed in float32.
        """
        table_VD = embedded.table_VD
        if table_VD is not None and tokens_BT.numel() > len(table_VD):
            return functional.embedding(tokens_BT, self._keys_of(table_VD))
        return self._keys_of(embedded.rows_BTD)

    def _keys_of(self, embedded: Tensor) -> Tensor:
        """token_key(e / rms(e)): a new embedding is small, and would tell nothing.

        The projection is what is scaled: it has fewer numbers than the embedding.
        """
        rows = linear(self.token_key, rowwise.to_2d(embedded))
        norm: Tensor = torch.linalg.vector_norm(embedded, dim=-1, keepdim=True)
        scale = (norm.square() / embedded.shape[-1] + 1e-12).rsqrt()
        return rowwise.from_2d(rows, embedded) * scale

    def _latest(self, reading: Reading) -> CopyState:
        """The keys and tokens of the latest tokens."""
        document_BN, tokens_BN = reading.view.document_BN, reading.tokens_BN
        kept = slice(max(0, tokens_BN.shape[1] - (self.window - 1)), None)
        is_over_BN = document_BN[:, kept] != document_BN[:, -1:]
        return {
            "keys": reading.keys_BNK[:, kept].masked_fill(is_over_BN.unsqueeze(2), 0),
            "tokens": tokens_BN[:, kept].masked_fill(is_over_BN, 0),
        }

    def _surprising(
        self, reading: Reading, said_BT: Tensor, x_BTD: Tensor, state: CopyState, head: nn.Module
    ) -> tuple[Reading, CopyState]:
        """The reading with the view of each token, and what is held after the last."""
        assert self.room is not None
        document_BN, n_new = reading.view.document_BN, x_BTD.shape[1]
        new_BT = self._surprise(reading, said_BT, x_BTD, state, head)
        surprise_BN = torch.cat([state["surprise"], new_BT.to(torch.float32)], 1)
        expires_BN = expiries(surprise_BN, document_BN, n_new, self.room)
        kept_BS = held(expires_BN, document_BN, n_new, self.room)
        empty_BS = ~is_held(expires_BN, document_BN, n_new).gather(1, kept_BS)
        keys_BSK = reading.keys_BNK.gather(1, kept_BS.unsqueeze(2).expand(-1, -1, self.width))
        reading = reading._replace(view=View(document_BN, 0, expires_BN))
        return reading, {
            "keys": keys_BSK.masked_fill(empty_BS.unsqueeze(2), 0),
            "tokens": reading.tokens_BN.gather(1, kept_BS).masked_fill(empty_BS, 0),
            "surprise": surprise_BN.gather(1, kept_BS).masked_fill(empty_BS, 0),
            "hidden": x_BTD[:, -1],
            "query": reading.query_BTK[:, -1],
            "gate": said_BT[:, -1:],
        }

    @torch.no_grad()
    def _surprise(
        self, reading: Reading, said_BT: Tensor, x_BTD: Tensor, state: CopyState, head: nn.Module
    ) -> Tensor:
        """B x T, nats; see the top of this file."""
        assert self.room is not None
        n_new = x_BTD.shape[1]
        tokens_BT = reading.tokens_BN[:, -n_new:]
        before_BTD = _shifted(state["hidden"], x_BTD)
        nats_N = token_nats(head, before_BTD.flatten(0, 1), tokens_BT.flatten() - 1)
        gate_BT, sentinel_BT = self._gates(_shifted(state["gate"], said_BT))
        query_BTK = _shifted(state["query"], reading.query_BTK)
        # One key, token and document more, as the first query may be that of no token at all.
        keys_BNK, tokens_BN, document_BN = (
            torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
            for x in (reading.keys_BNK, reading.tokens_BN, reading.view.document_BN)
        )
        view = View(document_BN, self.room.n_recent)
        before = Reading(query_BTK, gate_BT, sentinel_BT, keys_BNK, tokens_BN, view)
        nats_BT = mixed_nats(nats_N.view_as(gate_BT), *self.mixture(before, tokens_BT - 1))
        is_first_BT = document_BN[:, -n_new:] != reading.view.document_BN[:, -n_new:]
        return nats_BT.masked_fill(is_first_BT, 0)

    def mixture(self, reading: Reading, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The head's share of each prediction and the probability copied to its target, B x T."""
        query_BTK, gate_BT, sentinel_BT, keys_BNK, tokens_BN, view = reading
        arguments = (query_BTK, keys_BNK, sentinel_BT, tokens_BN, targets_BT + 1, view)
        rest_BT, mass_BT = copied_mass(*arguments)
        return _head_share(gate_BT, rest_BT), gate_BT * mass_BT

    def mix(self, logits_BTV: Tensor, reading: Reading) -> Tensor:
        """log p, of the head's logits in float32 or wider."""
        head_BT, shares_BTN = self.shares(reading)
        ids_BTN = (reading.tokens_BN - 1).clamp_min(0).long().unsqueeze(1).expand_as(shares_BTN)
        own_BTV = head_BT.unsqueeze(2) * logits_BTV.softmax(-1)
        mixed_BTV = own_BTV.scatter_add(2, ids_BTN, shares_BTN.to(own_BTV.dtype))
        return mixed_BTV.clamp_min(torch.finfo(mixed_BTV.dtype).tiny).log()

    def shares(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """The head's share, B x T, and the probability that each token gives, B x T x N."""
        query_BTK, gate_BT, sentinel_BT, keys_BNK, _, view = reading
        rest_BT, weights_BTN = copy_weights(query_BTK, keys_BNK, sentinel_BT, view)
        return _head_share(gate_BT, rest_BT), gate_BT.unsqueeze(2) * weights_BTN

    def init_state(self, batch_size: int) -> CopyState:
        """Nothing read."""
        weight = self.query.weight
        state = {
            "keys": weight.new_zeros(batch_size, 0, self.width),
            "tokens": torch.zeros(batch_size, 0, dtype=torch.int32, device=weight.device),
            "pending": weight.new_zeros(batch_size, self.width),
        }
        if self.room is None:
            return state
        return state | {
            "surprise": torch.zeros(batch_size, 0, dtype=torch.float32, device=weight.device),
            "hidden": weight.new_zeros(batch_size, weight.shape[1]),
            "query": weight.new_zeros(batch_size, self.width),
            "gate": weight.new_zeros(batch_size, 1),
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes after `seq_len` tokens: a key and a token for each in view, and `pending`.

        `surprising` adds 4 bytes for each, and what belongs to the last token.
        """
        number, n_keys = self.query.weight.element_size(), min(self.window - 1, seq_len)
        per_key, once = self.width * number + torch.int32.itemsize, self.width * number
        if self.room is not None:
            per_key += torch.float32.itemsize
            once += (self.query.weight.shape[1] + self.width + 1) * number
        return batch_size * (n_keys * per_key + once)

    def flops_per_token(self, seq_len: int, vocab_size: int) -> int:
        """Forward FLOPs (multiply-add = 2), mean over the first `seq_len` tokens.

        Surprise costs the head once more, and a look at the latest tokens.
        """
        projections = sum(weight.numel() for weight in self.parameters() if weight.dim() > 1)
        flops = 2 * projections + 2 * self.width * _pairs(self.window, seq_len) // seq_len
        if self.room is None:
            return flops
        looking = 2 * self.width * _pairs(self.room.n_recent, seq_len) // seq_len
        return flops + looking + 2 * self.query.weight.shape[1] * vocab_size

    def extra_repr(self) -> str:
        """Show what the weights' shapes do not."""
        return f"window={self.window}, keep={'recent' if self.room is None else 'surprising'}"


def _head_share(gate_BT: Tensor, rest_BT: Tensor) -> Tensor:
    """1 - g (1 - rest), with all digits of a small rest: the head's loss is divided by them."""
    return (1 - gate_BT) + gate_BT * rest_BT


def _shifted(first: Tensor, x_BT: Tensor) -> Tensor:
    """x of the token before: `first` (B x ...), which was carried, then all but the last."""
    carried = first.to(x_BT.dtype).view(len(x_BT), 1, *x_BT.shape[2:])
    return torch.cat([carried, x_BT[:, :-1]], 1)


def _pairs(window: int, seq_len: int) -> int:
    """How many pairs of a query and a key of its `window` latest `seq_len` tokens have."""
    window = min(window, seq_len)
    return window * (window + 1) // 2 + (seq_len - window) * window


def _documents(past_BN: Tensor, tokens_BT: Tensor, starts_BT: Tensor | None) -> Tensor:
    """B x N, the number of the document of each token, 0 for padding."""
    ones_BT = torch.ones_like(tokens_BT, dtype=torch.int32)
    if starts_BT is not None:
        ones_BT = ones_BT + starts_BT.cumsum(1, dtype=torch.int32)
    return torch.cat([(past_BN > 0).to(torch.int32), ones_BT], 1)
