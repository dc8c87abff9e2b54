"""The language model as an export carries it: the same parameters and equations, in plain torch.

This file is copied into every export (`runs/export.py`). It needs torch, `ops/exported.py` and the
`mixers/exported/` of its layers alone, and is built from what config.json holds.

The whole memory of a text is one state, a dict of tensors whose first dimension is the batch:

    position         int64, how many tokens each row has read
    layers.N.*       the state of the Nth layer's mixer
    copy.*           the keys and tokens that can be copied, where there is a copy tier

All zeros is the state before the first token. A state is never changed in place: keep one, and the
text can be continued from there as often as you like.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.ops.exported import Shapes, TensorDict, convolved, rms_normed, wide

# Of the tensors of a state, by the last part of a name; the rest are floats.
INTEGERS = {
    "position": torch.int64,
    "document": torch.int32,
    "count": torch.int32,
    "tokens": torch.int32,
}


class Network(nn.Module):
    """`network(tokens_BT, state)` returns logits_BTV and the state after the last token."""

    def __init__(self, config: Mapping[str, Any], mixers: Mapping[str, Any]) -> None:
        """Uninitialised parameters; `mixers` are the classes by the names in `config["layers"]`."""
        super().__init__()
        self.config = dict(config)
        d_model, vocab_size, plain = config["d_model"], config["vocab_size"], _is_plain(config)
        self.embedding = nn.Embedding(vocab_size, d_model)
        names = [config["layers"][i % len(config["layers"])] for i in range(config["n_layers"])]
        self.blocks = nn.ModuleList(_Block(config, mixers[name], name) for name in names)
        self.final_norm = nn.Identity() if plain else RMSNorm(d_model, config["norm_eps"])
        self.final_dropout = nn.Dropout(config["dropout"] if plain else 0.0)
        self.output = nn.Linear(d_model, vocab_size, bias=plain)
        self.copy_tier = CopyTier(d_model, config["copy"]) if config["copy"]["window"] else None
        if config["tie_embeddings"]:
            self.output.weight = self.embedding.weight

    @property
    def applied(self) -> list[Any]:
        """The blocks in the order in which they are applied; one may come again."""
        blocks: Any = self.blocks
        return [blocks[i] for i in self.config["layer_order"] or range(len(self.blocks))]

    def shapes(self) -> Shapes:
        """Of the tensors of a state, without the batch, before the first token."""
        shapes: Shapes = {"position": ()}
        for i, block in enumerate(self.applied):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in block.shapes().items()}
        if self.copy_tier is not None:
            shapes |= {f"copy.{name}": shape for name, shape in self.copy_tier.shapes().items()}
        return shapes

    def init_state(self, batch_size: int) -> TensorDict:
        """The state before the first token: zeros."""
        weight = self.embedding.weight
        floats = torch.promote_types(weight.dtype, torch.float32)
        return {
            name: torch.zeros(
                batch_size,
                *shape,
                dtype=INTEGERS.get(name.rpartition(".")[2], floats),
                device=weight.device,
            )
            for name, shape in self.shapes().items()
        }

    def forward(
        self, tokens_BT: Tensor, state: TensorDict | None = None, n_logits: int = 0
    ) -> tuple[Tensor, TensorDict]:
        """Logits (float32 or wider) of all tokens, or of the last `n_logits`, and the state."""
        state = self.init_state(len(tokens_BT)) if state is None else state
        position_B = state["position"]
        after = {"position": position_B + tokens_BT.shape[1]}
        x_BTD = embedded_BTD = self.embedding(tokens_BT)
        for i, block in enumerate(self.applied):
            x_BTD, changed = block(x_BTD, _below(state, f"layers.{i}."), position_B)
            after |= {f"layers.{i}.{name}": tensor for name, tensor in changed.items()}
        x_BTD = self.final_dropout(self.final_norm(x_BTD))
        logits_BTV = wide(self.output(x_BTD[:, -n_logits:]))
        if self.copy_tier is None:
            return logits_BTV, after
        read = (x_BTD, embedded_BTD, tokens_BT)
        logits_BTV, changed = self.copy_tier(logits_BTV, read, _below(state, "copy."))
        return logits_BTV, after | {f"copy.{name}": tensor for name, tensor in changed.items()}


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(d_model)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last dimension is d_model."""
        return (rms_normed(wide(x), self.eps) * self.weight).to(x.dtype)


class SwiGLU(nn.Module):
    """(silu(x gate) * (x up)) down."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_mlp, bias=False)
        self.up = nn.Linear(d_model, d_mlp, bias=False)
        self.down = nn.Linear(d_mlp, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last dimension is d_model."""
        y: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return y


class ChannelMix(nn.Module):
    """sigmoid(x^r receptance) (relu(x^k key)^2 value), x^c_t = x_t + (x_{t-1} - x_t) shift_c."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.empty(2, d_model))
        self.key = nn.Linear(d_model, d_mlp, bias=False)
        self.value = nn.Linear(d_mlp, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD: Tensor, latest_B1D: Tensor) -> tuple[Tensor, Tensor]:
        """y_BTD and the last x; `latest_B1D` is the x before the first."""
        before_BTD = torch.cat([latest_B1D.to(x_BTD.dtype), x_BTD[:, :-1]], 1)
        k, r = (x_BTD + (before_BTD - x_BTD) * shift_D for shift_D in self.shift.unbind(0))
        y_BTD = self.receptance(r).sigmoid() * self.value(self.key(k).relu().square())
        return y_BTD, x_BTD[:, -1:].to(latest_B1D.dtype)


class Convolved(nn.Module):
    """A mixer behind a convolution: y = mixer(c), c_t = x_t + sum_j w_j x_{t-j}."""

    def __init__(self, d_model: int, n_taps: int, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer: Any = mixer
        self.taps = nn.Parameter(torch.empty(n_taps - 1, d_model))

    def shapes(self) -> Shapes:
        """Of the latest inputs, and of the mixer's state."""
        mixer: Shapes = self.mixer.shapes()
        own = {"inputs": tuple(self.taps.shape)}
        return own | {f"mixer.{name}": shape for name, shape in mixer.items()}

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """As a mixer."""
        with_self = torch.cat([self.taps, torch.ones_like(self.taps[:1])])
        c_BTD, inputs = convolved(x_BTD, with_self, state["inputs"])
        y_BTD, changed = self.mixer(c_BTD, _below(state, "mixer."), position_B)
        return y_BTD, {"inputs": inputs} | {f"mixer.{name}": x for name, x in changed.items()}


class _Block(nn.Module):
    """A mixer and an MLP, each after a norm and on a residual; plain: the mixer alone."""

    def __init__(self, config: Mapping[str, Any], mixer: Any, name: str) -> None:
        super().__init__()
        d_model, eps = config["d_model"], config["norm_eps"]
        self.is_plain, self.has_mlp = _is_plain(config), config["d_mlp"] > 0
        self.has_channel_mix = config["mlp"] == "channel_mix"
        built = mixer(d_model, config["options"][name], config["constants"][name])
        n_taps = config["convolution"]
        self.mixer: Any = Convolved(d_model, n_taps, built) if n_taps else built
        self.dropout = nn.Dropout(config["dropout"])
        if self.is_plain:
            return
        self.mixer_norm = RMSNorm(d_model, eps)
        if self.has_mlp:
            self.mlp_norm = RMSNorm(d_model, eps)
            kind = ChannelMix if self.has_channel_mix else SwiGLU
            self.mlp: Any = kind(d_model, config["d_mlp"])

    def shapes(self) -> Shapes:
        """Of the mixer's state, and the latest input of a channel mix beside it."""
        shapes: Shapes = self.mixer.shapes()
        if not self.has_channel_mix:
            return shapes
        own = {"mlp": (1, self.mlp.shift.shape[1])}
        return {f"mixer.{name}": shape for name, shape in shapes.items()} | own

    def forward(
        self, x_BTD: Tensor, state: TensorDict, position_B: Tensor
    ) -> tuple[Tensor, TensorDict]:
        """The residual stream, and the state."""
        if self.is_plain:
            plain: tuple[Tensor, TensorDict] = self.mixer(self.dropout(x_BTD), state, position_B)
            return plain
        own = _below(state, "mixer.") if self.has_channel_mix else state
        mixed_BTD, after = self.mixer(self.mixer_norm(x_BTD), own, position_B)
        x_BTD = x_BTD + self.dropout(mixed_BTD)
        if self.has_channel_mix:
            mixed_BTD, latest = self.mlp(self.mlp_norm(x_BTD), state["mlp"])
            after = {f"mixer.{name}": x for name, x in after.items()} | {"mlp": latest}
        elif self.has_mlp:
            mixed_BTD = self.mlp(self.mlp_norm(x_BTD))
        if self.has_mlp:
            x_BTD = x_BTD + self.dropout(mixed_BTD)
        return x_BTD, after


class CopyTier(nn.Module):
    """A part of each prediction is one of the latest tokens, said again.

        (a_t0, a_t.) = softmax(z_t, q_t . k_s / sqrt(K))    over the s in view
        p_t(v) = (1 - g_t (1 - a_t0)) softmax(head(h_t))_v + g_t sum_s a_ts [token_s = v]
        q_t = query(h_t)      k_s = key(h_{s-1}) + token_key(e_s / rms(e_s))

    With a sentinel z_t = gate(h_t) and g_t = 1; without one z_t = -inf, g_t = sigmoid(gate(h_t)).

    State: keys and tokens (id + 1, 0 is nothing) of the latest window - 1, and what the last token
    adds to the key of the next.
    """

    def __init__(self, d_model: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.window, self.width = config["window"], config["width"]
        self.has_sentinel = config["gate"] == "sentinel"
        self.query = nn.Linear(d_model, self.width, bias=False)
        self.key = nn.Linear(d_model, self.width, bias=False)
        self.token_key = nn.Linear(d_model, self.width, bias=False)
        self.gate = nn.Linear(d_model, 1)

    def shapes(self) -> Shapes:
        """Of keys, tokens and what is pending."""
        n_keys = self.window - 1
        return {"keys": (n_keys, self.width), "tokens": (n_keys,), "pending": (self.width,)}

    def forward(
        self, logits_BTV: Tensor, read: tuple[Tensor, Tensor, Tensor], state: TensorDict
    ) -> tuple[Tensor, TensorDict]:
        """log p of the mixture; `read` are h, e and the tokens, of which the last have logits."""
        x_BTD, embedded_BTD, tokens_BT = read
        n_queries, n_tokens = logits_BTV.shape[1], tokens_BT.shape[1]
        own_BTK = wide(self.key(x_BTD))
        before_BTK = torch.cat([state["pending"][:, None], own_BTK[:, :-1]], 1)
        mean_square = wide(embedded_BTD).square().mean(-1, keepdim=True)
        of_token_BTK = wide(self.token_key(embedded_BTD)) * (mean_square + 1e-12).rsqrt()
        keys_BNK = torch.cat([state["keys"], before_BTK + of_token_BTK], 1)
        tokens_BN = torch.cat([state["tokens"], tokens_BT.to(torch.int32) + 1], 1)
        last_BTD = x_BTD[:, n_tokens - n_queries :]
        rest_BT, copied_BTN = self._shares(last_BTD, keys_BNK, tokens_BN)
        own_BTV = rest_BT.unsqueeze(2) * logits_BTV.softmax(-1)
        ids_BTN = (tokens_BN - 1).clamp_min(0).long().unsqueeze(1).expand_as(copied_BTN)
        mixed_BTV = own_BTV.scatter_add(2, ids_BTN, copied_BTN)
        after = {"keys": keys_BNK[:, n_tokens:], "tokens": tokens_BN[:, n_tokens:]}
        log_p_BTV = mixed_BTV.clamp_min(torch.finfo(mixed_BTV.dtype).tiny).log()
        return log_p_BTV, {**after, "pending": own_BTK[:, -1]}

    def _shares(self, x_BTD: Tensor, keys_BNK: Tensor, tokens_BN: Tensor) -> tuple[Tensor, Tensor]:
        """The head's share, B x T, and the probability that each token gives, B x T x N."""
        said_BT1, n_keys = wide(self.gate(x_BTD)), keys_BNK.shape[1]
        key_N = torch.arange(n_keys, device=x_BTD.device)
        age_TN = key_N[n_keys - x_BTD.shape[1] :, None] - key_N
        seen_BTN = (age_TN >= 0) & (age_TN < self.window) & (tokens_BN[:, None] > 0)
        scores_BTN = wide(self.query(x_BTD)) @ keys_BNK.mT / math.sqrt(self.width)
        scores_BTN = scores_BTN.masked_fill(~seen_BTN, -torch.inf)
        if self.has_sentinel:
            weights = torch.cat([said_BT1, scores_BTN], 2).softmax(-1)
            return weights[..., 0], weights[..., 1:]
        gate_BT1 = said_BT1.sigmoid()
        return 1 - gate_BT1.squeeze(2), gate_BT1 * scores_BTN.softmax(-1)


def _is_plain(config: Mapping[str, Any]) -> bool:
    return bool(config["block"] == "plain")


def _below(state: TensorDict, prefix: str) -> TensorDict:
    """What is below a prefix, by the rest of its name."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
