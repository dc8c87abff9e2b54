"""The language model that all mixers share: embedding, blocks, head, loss, initial weights.

Shape letters of the whole project: B batch, T time, D d_model, S d_state, H heads, P head width,
V vocabulary, W window, N rows (B T). A tensor whose shape is not obvious carries them as a suffix.

    pre_norm:  logits = RMSNorm(blocks(embedding(tokens))) output^T
    plain:     logits = Dropout(blocks(embedding(tokens))) output^T + b

With a copy tier (`copy_tier.py`) the logits are log p of the mixture of both. Blocks are applied in
`model.layer_order`; one that comes again has a state of its own each time. Those of
`cross_decoder.py` follow.

`plain` is the frame of the preset ys_v0_3. The blocks are in `layers.py`. A mixer is found by the
name of its file, and used only through the methods of `mixers/protocol.py`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ys_llm.config.schema import ModelConfig
from ys_llm.config.strict_reader import parse_dataclass, raise_problems
from ys_llm.errors import UserError
from ys_llm.mixers.protocol import Mixer, mixer_module
from ys_llm.model.convolution import Convolved
from ys_llm.model.copy_tier import CopyTier, Embedded, Reading
from ys_llm.model.cross_decoder import CrossDecoder
from ys_llm.model.extra_heads import ExtraHeads
from ys_llm.model.initial_state import InitialState
from ys_llm.model.layers import Block, Identity, PlainBlock, Residual, RMSNorm
from ys_llm.model.state import State, initial_positions
from ys_llm.ops.cross_entropy import Mixture, cross_entropy
from ys_llm.ops.dropout import Dropout
from ys_llm.ops.linear import is_plain
from ys_llm.ops.precision import Precision

EMBEDDING_STD = 0.02  # pre_norm; GPT-2's, so that a tied head starts near uniform


class Model(nn.Module):
    """A language model with a carried state.

    `model(tokens_BT, state, starts_BT)` returns logits_BTV and the state after the last token, for
    any T >= 1; with `targets_BT` it returns the mean loss instead of the logits. Without a state it
    starts from `init_state`. This call is the only entry: hooks and wrappers of the model, and of
    any module in it, take effect.
    """

    def __init__(
        self, config: ModelConfig, *, vocab_size: int, backends: Mapping[str, str] | None = None
    ) -> None:
        """Random weights; `backends` by the names of mixers, "auto" where a name is missing."""
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        plain = config.block == "plain"
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        build = _mixer_builders(config, backends or {})
        self.blocks = nn.ModuleList(
            (PlainBlock if plain else Block)(config, build[name]())
            for name in config.mixers_of_blocks
        )
        self.cross_decoder = CrossDecoder(config) if config.cross.layers else None
        self.final_norm = Identity() if plain else RMSNorm(config.d_model)
        self.final_dropout = Dropout(config.dropout if plain else 0.0)
        self.output = nn.Linear(config.d_model, vocab_size, bias=plain)
        self.copy_tier = CopyTier(config.d_model, config.copy) if config.copy.window else None
        n_extra = config.prediction_heads - 1
        self.extra_heads = ExtraHeads(config.d_model, config.d_mlp, n_extra) if n_extra else None
        self.initial_state: InitialState | None = None
        self.time_major = all(mixer.time_major for mixer in self.mixers)
        if not plain:
            self._initialise()
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight

    @property
    def applied(self) -> list[Any]:
        """The blocks in the order in which they are applied."""
        return [self.blocks[number] for number in self.config.order]

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of each of `applied`; layers that attend to the global cache have none."""
        return [block.mixer for block in self.applied]

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,
        starts_BT: Tensor | None = None,
        *,
        targets_BT: Tensor | None = None,
        weights_BT: Tensor | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> tuple[Tensor, State]:
        """Logits (float32 or wider) or the mean loss in nats per target, and the state.

        `starts_BT` (bool) marks first tokens of documents, before which no mixer sees anything.
        `targets_BT` are the tokens to be predicted, `weights_BT` how much each counts; a target
        that is `IGNORE_INDEX`, or of weight 0, does not. A loss never needs all
        logits in memory at once. While it is trained, it is the mean over all prediction heads.
        `logits="last"` computes those of the last token only, B x 1 x V.
        """
        x_BTD, state, reading = self._hidden(tokens_BT, state, starts_BT)
        if targets_BT is not None:
            loss = self._loss(x_BTD, reading, targets_BT, weights_BT)
            if self.extra_heads is None or not self.training:
                return loss, state
            further = self.extra_heads(x_BTD, targets_BT, weights_BT, starts_BT)
            losses = [loss, *(self._loss(x, None, *ahead) for x, *ahead in further)]
            return torch.stack(losses).mean(), state
        if logits == "last":
            x_BTD, reading = x_BTD[:, -1:], reading and reading.last()
        return self._logits(x_BTD, reading), state

    def read(
        self, tokens_BT: Tensor, state: State | None = None
    ) -> tuple[Tensor, State, Reading | None]:
        """Logits of all tokens, the state, and what the copy tier reads, where there is one."""
        x_BTD, state, reading = self._hidden(tokens_BT, state, None)
        return self._logits(x_BTD, reading), state, reading

    def _logits(self, x_BTD: Tensor, reading: Reading | None) -> Tensor:
        logits_BTV: Tensor = self.output(x_BTD)
        logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
        if reading is None or self.copy_tier is None:
            return logits_BTV
        return self.copy_tier.mix(logits_BTV, reading)

    def init_state(self, batch_size: int) -> State:
        """The state before the first token, the learned one where there is one; see `state.py`."""
        state: State = {
            "position_B": initial_positions(batch_size),
            "layers": [block.init_state(batch_size) for block in self.applied],
        }
        for name, part in (("cross", self.cross_decoder), ("copy", self.copy_tier)):
            if part is not None:
                state[name] = part.init_state(batch_size)
        return state if self.initial_state is None else self.initial_state.placed_in(state)

    def learn_initial_state(self) -> InitialState:
        """Freeze the model, and give it an initial state to be learned."""
        self.requires_grad_(False)
        self.initial_state = InitialState(self.init_state(1))
        return self.initial_state

    def select_backends(
        self,
        *,
        batch_size: int,
        precision: Precision,
        previous: Mapping[str, str] | None = None,
        timed: bool = True,
    ) -> dict[str, tuple[str, str]]:
        """Resolve `backend: auto`, once for all layers of a mixer.

        Returns the backend and the reason by the mixer's name. `previous` is what the run used
        before, which is kept where it can run. With `timed=False` nothing is measured.
        """
        selected: dict[str, tuple[str, str]] = {}
        before = dict(previous or {})
        for name, mixer in zip(self.config.mixer_names, self.mixers, strict=True):
            backend, why = mixer.select_backend(
                batch_size=batch_size,
                precision=precision,
                previous=before.get(name, ""),
                timed=timed,
            )
            selected.setdefault(name, (backend, why))
            before[name] = backend
        return selected

    def _hidden(
        self, tokens_BT: Tensor, state: State | None, starts_BT: Tensor | None
    ) -> tuple[Tensor, State, Reading | None]:
        """What the head reads, B x T x D, the state, and what the copy tier reads."""
        state = self.init_state(tokens_BT.shape[0]) if state is None else state
        position_B, layers = state["position_B"], []
        residual = Residual(embedded_BTD := self._embedded(tokens_BT))
        for block, layer_state in zip(self.applied, state["layers"], strict=True):
            residual, layer_state = block(residual, layer_state, starts_BT, position_B)
            layers.append(layer_state)
        after: State = {"position_B": position_B + tokens_BT.shape[1], "layers": layers}
        if self.cross_decoder is not None:
            arguments = (residual, state["cross"], starts_BT, position_B)
            residual, after["cross"] = self.cross_decoder(*arguments)
        _, normed_BTD = self.final_norm(*residual)
        x_BTD: Tensor = self.final_dropout(normed_BTD)
        if self.copy_tier is None:
            return x_BTD, after, None
        table_VD = self.embedding.weight if is_plain(self.embedding, nn.Embedding) else None
        embedded = Embedded(embedded_BTD, table_VD)
        read = (x_BTD, embedded, tokens_BT, state["copy"], starts_BT)
        reading, after["copy"] = self.copy_tier(*read, self.output)
        return x_BTD, after, reading

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        """B x T x D, in memory T x B x D where the mixers are fastest in that order."""
        order = tokens_BT.t() if self.time_major else tokens_BT
        embedded: Tensor = self.embedding(order)
        return embedded.transpose(0, 1) if self.time_major else embedded

    def _loss(
        self,
        x_BTD: Tensor,
        reading: Reading | None,
        targets_BT: Tensor,
        weights_BT: Tensor | None,
    ) -> Tensor:
        def rows(x: Tensor) -> Tensor:
            """N x ..., in the order of memory."""
            return (x.transpose(0, 1) if self.time_major else x).flatten(0, 1)

        weights_N, mixture = None if weights_BT is None else rows(weights_BT), None
        if reading is not None and self.copy_tier is not None:
            mixture = Mixture(*map(rows, self.copy_tier.mixture(reading, targets_BT)))
        return cross_entropy(self.output, rows(x_BTD), rows(targets_BT), weights_N, mixture)

    def _initialise(self) -> None:
        """Small embedding and head; see `Block.initialise` for the rest."""
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        nn.init.normal_(self.output.weight, std=EMBEDDING_STD)
        further: Any = () if self.cross_decoder is None else self.cross_decoder.blocks
        blocks: Any = self.blocks
        for number, block in enumerate((*blocks, *further)):
            block.initialise(number, self.config)
        if self.extra_heads is not None:
            self.extra_heads.initialise(n_layers=self.config.depth)


def _mixer_builders(
    config: ModelConfig, backends: Mapping[str, str]
) -> dict[str, Callable[[], nn.Module]]:
    """What builds each mixer, by its name. UserError names every unknown mixer and option."""
    settings = {"train.backend": backends, "model.options": config.options}
    named_in = {name: where for where, names in settings.items() for name in names}
    named_in |= dict.fromkeys(config.layers, "model.layers")
    builders: dict[str, Callable[[], nn.Module]] = {}
    problems: list[str] = []
    for name, where in named_in.items():
        try:
            module = mixer_module(name, where=where)
            given = config.options.get(name, {})
            options = parse_dataclass(module.Options, given, where=f"model.options.{name}")
        except UserError as error:
            problems.append(str(error))
            continue
        backend = backends.get(name, "auto")
        mixer = partial(module.Mixer, config.d_model, options, backend=backend)
        builders[name] = partial(_behind_convolution, config, mixer)
    raise_problems(problems)
    return builders


def _behind_convolution(config: ModelConfig, mixer: Callable[[], nn.Module]) -> nn.Module:
    """A new mixer, behind the convolution where the model has one."""
    if not config.convolution:
        return mixer()
    return Convolved(mixer(), d_model=config.d_model, taps=config.convolution)
