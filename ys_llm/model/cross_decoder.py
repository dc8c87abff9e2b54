"""Layers that all attend to one global cache: the second half of YOCO.

Source: Sun et al. 2024, "You Only Cache Once". The first half are the model's other layers, whose
state is constant where their mixers' is.

    k_t, v_t = RMSNorm(x_t) k_proj R_t, RMSNorm(x_t) v_proj        x: after the first half, once
    each layer:  x <- x + attention(RMSNorm(x) q_proj R_t; k, v) out_proj;  x <- x + MLP(RMSNorm(x))

Attention is that of `ops/attention.py`, the rotation R_t that of `ops/rotary.py`.

State: `keys`, `values` and `document`, the number of each key's document, as in `ops/kv_cache.py`,
once for all layers; `mlps`, those of the layers' channel mixes, where they have such.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ys_llm.config.cross import CrossConfig
from ys_llm.config.schema import ModelConfig
from ys_llm.model.layers import Block, Residual, RMSNorm
from ys_llm.ops.attention import attention
from ys_llm.ops.kv_cache import append, documents, first_kept, kept, pairs
from ys_llm.ops.linear import linear
from ys_llm.ops.rotary import angles, rotate

INIT_STD = 0.02  # of GPT-2 and its descendants


class Cache(NamedTuple):
    """The keys and values of all tokens in view, and the rotation of the new ones."""

    keys_BNGP: Tensor
    values_BNGP: Tensor
    document_BN: Tensor
    table: tuple[Tensor, Tensor]


class CrossAttention(nn.Module):
    """Takes the mixer's place in a block; its state is the cache, which it does not change."""

    def __init__(self, d_model: int, config: CrossConfig) -> None:
        super().__init__()
        self.d_head, self.window = d_model // config.n_heads, config.window
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INIT_STD)

    def forward(
        self, x_BTD: Tensor, cache: Cache, starts_BT: Tensor | None, position_B: Tensor
    ) -> tuple[Tensor, None]:
        """What the layer reads from the cache, which holds the keys of these tokens already."""
        query_BTHP = linear(self.q_proj, x_BTD).unflatten(-1, (-1, self.d_head))
        query_BTHP = rotate(query_BTHP, *cache.table)
        mixed_BTHP = attention(query_BTHP, *cache[:3], self.window)
        return linear(self.out_proj, mixed_BTHP.flatten(2)), None


class CrossDecoder(nn.Module):
    """See the top of this file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cross = config.cross
        self.config, self.d_head = cross, config.d_model // cross.n_heads
        self.n_kv_heads = cross.n_kv_heads or cross.n_heads
        self.norm = RMSNorm(config.d_model)
        self.k_proj = nn.Linear(config.d_model, self.n_kv_heads * self.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, self.n_kv_heads * self.d_head, bias=False)
        for layer in (self.k_proj, self.v_proj):
            nn.init.normal_(layer.weight, std=INIT_STD)
        self.blocks = nn.ModuleList(
            Block(config, CrossAttention(config.d_model, cross)) for _ in range(cross.layers)
        )

    def forward(
        self,
        residual: Residual,
        state: dict[str, Any],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Residual, dict[str, Any]]:
        """The residual stream after all layers, and the cache."""
        x_BTD, normed_BTD = self.norm(*residual)
        cache, after = self._cached(normed_BTD, state, starts_BT, position_B)
        residual, mlps = Residual(x_BTD), []
        blocks: Any = self.blocks
        for block, mlp in zip(blocks, state["mlps"] or [None] * len(blocks), strict=True):
            before = cache if mlp is None else {"mixer": cache, "mlp": mlp}
            residual, own = block(residual, before, starts_BT, position_B)
            mlps += [] if mlp is None else [own["mlp"]]
        return residual, {**after, "mlps": mlps}

    def _cached(
        self,
        x_BTD: Tensor,
        state: dict[str, Any],
        starts_BT: Tensor | None,
        position_B: Tensor,
    ) -> tuple[Cache, dict[str, Tensor]]:
        """The cache with these tokens, and what a later token may see of it."""
        n_tokens, window = x_BTD.shape[1], self.config.window
        keys, values = (
            linear(layer, x_BTD).unflatten(-1, (-1, self.d_head))
            for layer in (self.k_proj, self.v_proj)
        )
        clocks = tuple(position_B.tolist())
        table = angles(clocks, n_tokens, self.d_head, self.config.rope_theta, x_BTD)
        keys_BNGP = append(state["keys"], rotate(keys, *table))
        values_BNGP = append(state["values"], values)
        document_BN = documents(state["document"], starts_BT, n_tokens)
        latest = kept(keys_BNGP.shape[1], n_tokens, position_B, window)
        tensors = {"keys": keys_BNGP, "values": values_BNGP, "document": document_BN}
        after = {name: tensor[:, latest] for name, tensor in tensors.items()}
        return Cache(keys_BNGP, values_BNGP, document_BN, table), after

    def init_state(self, batch_size: int) -> dict[str, Any]:
        """The empty cache."""
        like, shape = self.k_proj.weight, (batch_size, 0, self.n_kv_heads, self.d_head)
        here: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        blocks: Any = self.blocks
        return {
            "keys": torch.zeros(shape, **here),
            "values": torch.zeros(shape, **here),
            "document": torch.zeros(batch_size, 0, dtype=torch.int32, device=like.device),
            "mlps": [b.mlp.init_state(batch_size) for b in blocks if b.has_channel_mix],
        }

    def state_bytes(self, batch_size: int, seq_len: int) -> int:
        """Bytes of the cache after `seq_len` tokens, without the channel mixes'."""
        n_keys = seq_len - first_kept(seq_len, self.config.window)
        size = 2 * self.n_kv_heads * self.d_head * self.k_proj.weight.element_size()
        return batch_size * n_keys * (size + torch.int32.itemsize)

    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of the cache and of what attends to it, without MLPs."""
        width, n_layers = self.k_proj.in_features, self.config.layers
        cached = 4 * width * self.n_kv_heads * self.d_head
        attended = 4 * width * pairs(seq_len, self.config.window) // seq_len
        return cached + n_layers * (4 * width * width + attended)
