"""The trunk that all mixers share: embedding, blocks, norm, MLP, head, initialisation.

Shape letters of the whole project: B batch, T time, D d_model, S d_state, H heads, P head width,
V vocabulary, W window, N rows (B T). A tensor whose shape is not obvious carries them as a suffix.

    pre_norm:  x <- x + mixer(RMSNorm(x));  x <- x + MLP(RMSNorm(x));  logits = RMSNorm(x) head^T
               MLP(x) = (silu(x gate) * (x up)) down                      SwiGLU, Shazeer 2020
    plain:      x <- mixer(Dropout(x)) for each layer;  logits = Dropout(x) head^T + b

`plain` is the frame of the preset ys_v0_3. The trunk finds a mixer by the name of its file and
knows nothing else of it.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ys_llm import mixers
from ys_llm.config.schema import ModelConfig
from ys_llm.config.strict_reader import parse_dataclass
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.ops import cross_entropy, rms_norm, swiglu
from ys_llm.ops.dropout import Dropout

EMBEDDING_STD = 0.02  # pre_norm; GPT-2's, so that a tied head starts near uniform
RMS_EPS = 1e-5
State = dict[str, Any]


class RMSNorm(nn.Module):
    """The stream x + added, and stream / rms(stream) * gain over the last dimension."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x_BTD: Tensor, added_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The stream, and what is read from it."""
        return rms_norm.fastest(x_BTD, added_BTD, self.weight, RMS_EPS)


class SwiGLU(nn.Module):
    """(silu(x gate) * (x up)) down, without biases."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_mlp, bias=False)
        self.up = nn.Linear(d_model, d_mlp, bias=False)
        self.down = nn.Linear(d_mlp, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """B x T x D to the same."""
        return swiglu.fastest(x_BTD, self.gate.weight, self.up.weight, self.down.weight)


class Identity(nn.Module):
    """In the place of a norm where there is none."""

    def forward(self, x_BTD: Tensor, added_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The stream, and what is read from it: the same."""
        return x_BTD, x_BTD


class Stream(NamedTuple):
    """The residual stream between layers: x + added, which the next norm sums on its way."""

    x_BTD: Tensor
    added_BTD: Tensor | None = None


class Block(nn.Module):
    """One pre-norm residual layer: a mixer over time, then an MLP over channels."""

    def __init__(self, config: ModelConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.d_model)
        self.mixer = mixer
        if config.d_mlp:
            self.mlp_norm = RMSNorm(config.d_model)
            self.mlp = SwiGLU(config.d_model, config.d_mlp)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, stream: Stream, state: State | None, starts_BT: Tensor | None
    ) -> tuple[Stream, State]:
        """The residual stream after this layer, and the mixer's state."""
        x_BTD, normed_BTD = self.mixer_norm(*stream)
        mixed_BTD, state = self.mixer(normed_BTD, state, starts_BT)
        stream = Stream(x_BTD, self.dropout(mixed_BTD))
        if hasattr(self, "mlp"):
            x_BTD, normed_BTD = self.mlp_norm(*stream)
            stream = Stream(x_BTD, self.dropout(self.mlp(normed_BTD)))
        return stream, state


class PlainBlock(nn.Module):
    """The mixer alone behind dropout: no norm, no residual, no MLP."""

    def __init__(self, config: ModelConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.dropout = Dropout(config.dropout)

    def forward(
        self, stream: Stream, state: State | None, starts_BT: Tensor | None
    ) -> tuple[Stream, State]:
        """The mixer's output and its state."""
        mixed_BTD, state = self.mixer(self.dropout(stream.x_BTD), state, starts_BT)
        return Stream(mixed_BTD), state


class Model(nn.Module):
    """A language model with a carried state.

    `model(tokens_BT, state, starts_BT)` gives logits_BTV and the state after the last token, for
    any T >= 1; without a state it starts from `init_state`. `starts_BT` (bool) marks first tokens
    of documents, over which no mixer may look back.
    """

    def __init__(self, config: ModelConfig, *, vocab_size: int, backend: str = "auto") -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        room = mixer_module(config.mixer)
        options = parse_dataclass(room.Options, config.options, where="model.options")
        self.time_major = getattr(room.Mixer, "time_major", False)
        plain = config.block == "plain"
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.blocks = nn.ModuleList(
            (PlainBlock if plain else Block)(
                config, room.Mixer(config.d_model, options, backend=backend)
            )
            for _ in range(config.n_layers)
        )
        self.final_norm = Identity() if plain else RMSNorm(config.d_model)
        self.final_dropout = Dropout(config.dropout if plain else 0.0)
        self.output = nn.Linear(config.d_model, vocab_size, bias=plain)
        if not plain:
            self._initialise()
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight

    def _initialise(self) -> None:
        """Embedding and head small; what writes to the residual stream shrinks with the depth."""
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        nn.init.normal_(self.output.weight, std=EMBEDDING_STD)
        for block in self._blocks():
            if hasattr(block, "mlp"):
                nn.init.normal_(block.mlp.gate.weight, std=self.config.d_model**-0.5)
                nn.init.normal_(block.mlp.up.weight, std=self.config.d_model**-0.5)
                depth = (2 * self.config.n_layers) ** -0.5
                nn.init.normal_(block.mlp.down.weight, std=depth * self.config.d_mlp**-0.5)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, starts_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits for the token after each of `tokens_BT`, and the state."""
        x_BTD, state = self.hidden(tokens_BT, state, starts_BT)
        return self.head(x_BTD), state

    def hidden(
        self, tokens_BT: Tensor, state: State | None = None, starts_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads: the normed stream, B x T x D, and the state."""
        state = self.init_state(tokens_BT.shape[0]) if state is None else state
        stream, layers = Stream(self._embedded(tokens_BT)), []
        for block, layer_state in zip(self._blocks(), state["layers"], strict=True):
            stream, layer_state = block(stream, layer_state, starts_BT)
            layers.append(layer_state)
        after = {"position": state["position"] + tokens_BT.shape[1], "layers": layers}
        _, normed_BTD = self.final_norm(*stream)
        return self.final_dropout(normed_BTD), after

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        """B x T x D, in memory T x B x D where the mixer goes through it in that order."""
        order = tokens_BT.t() if self.time_major else tokens_BT
        embedded: Tensor = self.embedding(order)
        return embedded.transpose(0, 1) if self.time_major else embedded

    def head(self, x_BTD: Tensor) -> Tensor:
        """Logits in float32 or wider."""
        logits: Tensor = self.output(x_BTD)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        state: State | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Mean nats per target token, without holding all logits; and the state."""
        x_BTD, state = self.hidden(tokens_BT, state, starts_BT)
        if self.time_major:
            x_BTD, targets_BT = x_BTD.transpose(0, 1), targets_BT.t()
        loss = cross_entropy.fastest(
            x_BTD.flatten(0, 1), self.output.weight, self.output.bias, targets_BT.flatten()
        )
        return loss, state

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: the position, and one state for each layer."""
        return {
            "position": 0,
            "layers": [block.mixer.init_state(batch_size) for block in self._blocks()],
        }

    def settle(self, *, batch_size: int, precision: str, taken: str = "") -> tuple[str, str]:
        """Let each mixer that has a choice of kernels make it; returns what is taken and why."""
        mixers = [block.mixer for block in self._blocks() if hasattr(block.mixer, "settle")]
        answers: list[tuple[str, str]] = [
            mixer.settle(batch_size=batch_size, precision=precision, taken=taken)
            for mixer in mixers
        ]
        return answers[0] if answers else ("torch", "this mixer has no kernels of its own")

    def _blocks(self) -> Iterable[Any]:
        return self.blocks


def detached(state: State) -> State:
    """The state cut off from the graph that made it, to be carried into the next batch."""
    cut: State = _map_tensors(state, _cut)
    return cut


def _cut(tensor: Tensor) -> Tensor:
    """Without the graph, and without the memory around it: that of all steps before the last."""
    held, tensor = tensor.untyped_storage().nbytes(), tensor.detach()
    return tensor.clone() if held > tensor.nbytes else tensor


def _map_tensors(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_tensors(item, change) for item in value]
    return value


def pack_state(state: State) -> dict[str, Tensor]:
    """The state as named tensors, as a file takes them: `position`, `<layer>.<name>`."""
    packed = {"position": torch.tensor(state["position"])}
    for number, layer in enumerate(state["layers"]):
        packed |= {f"{number}.{name}": torch.as_tensor(value) for name, value in layer.items()}
    return packed


def unpack_state(packed: Mapping[str, Tensor]) -> State:
    """The inverse of `pack_state`: numbers come back as int, all else as tensors."""
    plain = {
        name: int(value) if value.dim() == 0 else value.clone() for name, value in packed.items()
    }
    position = plain.pop("position")
    layers: list[dict[str, Any]] = []
    for name in sorted(plain, key=lambda name: int(name.partition(".")[0])):
        number, _, key = name.partition(".")
        if int(number) == len(layers):
            layers.append({})
        layers[int(number)][key] = plain[name]
    return {"position": position, "layers": layers}


def mixer_names() -> list[str]:
    """The mixers there are: the files of `ys_llm/mixers/`."""
    return sorted(found.name for found in pkgutil.iter_modules(mixers.__path__))


def mixer_module(name: str) -> Any:
    """The module of a mixer, with its `Options` and `Mixer`; UserError where there is none."""
    if name not in mixer_names():
        raise UserError(
            f"model.mixer: there is no mixer {name!r}",
            f"Choose one of {', '.join(mixer_names())}, or write ys_llm/mixers/{name}.py",
            exit_code=EXIT_USAGE,
        )
    return importlib.import_module(f"ys_llm.mixers.{name}")
