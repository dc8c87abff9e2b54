"""Low-rank adapters: a frozen matrix W, and what is learned beside it.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

    W' = W + (alpha / rank) B A      W: m x n, B: m x rank, zero at first; A: rank x n

W is any matrix of the model, of a linear layer or of a mixer; one in blocks, H x m x n, has an
adapter in each. While it is trained, W' is a parametrisation of torch: whatever reads the weight
gets W'. To be used, it is added to the weights in place (`Adapters`), so that the compiled kernels
and the decoder compute with it at no cost, and taken off again to the bit.

Dropout (the source's, of the adapter's input) drops columns of A, the same for all tokens of a
pass: it then means the same for a matrix that is no linear layer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils import parametrize

from ys_llm.config.sft import LoraConfig, SftConfig
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.language_model import Model


class Factors(NamedTuple):
    """B A of one matrix; in blocks, both have the blocks in front."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Adapter:
    """The factors by the names of the matrices (`blocks.0.mlp.up`), and alpha / rank."""

    factors: Mapping[str, Factors]
    scale: float


class LowRank(nn.Module):
    """The parametrisation of one matrix: W -> W + scale B A."""

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        *blocks, rows, columns = weight.shape
        bound = columns**-0.5  # of a linear layer with as many inputs
        a = weight.new_empty(*blocks, config.rank, columns).uniform_(-bound, bound)
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(weight.new_zeros(*blocks, rows, config.rank))
        self.scale, self.dropout = config.alpha / config.rank, config.dropout

    def forward(self, weight: Tensor) -> Tensor:
        """W'."""
        a: Tensor = self.a
        if self.training and self.dropout:
            a = a * dropout(torch.ones_like(a[..., :1, :]), self.dropout)
        return weight + self.scale * (self.b @ a)


class NewRows(nn.Module):
    """The parametrisation of a matrix with rows of new tokens: these are learned, the others not.

    They are whole rows, not adapters: before, these tokens meant nothing.
    """

    def __init__(self, rows: nn.Parameter) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix with the learned rows at its end."""
        return torch.cat([weight[: len(weight) - len(self.rows)], self.rows])


class Target(NamedTuple):
    """A matrix of the model: its module, its name there, and its name in the model."""

    module: nn.Module
    attribute: str
    name: str


def targets_of(model: nn.Module, config: LoraConfig) -> list[Target]:
    """The matrices that the patterns name; UserError for a pattern that names none.

    Only a matrix with both sides above the rank can be one: to any other, an adapter adds nothing.
    """
    adaptable = [t for t in _matrices(model) if min(_weight(t).shape[-2:]) > config.rank]
    found = {
        pattern: [target for target in adaptable if _matches(target.name, pattern)]
        for pattern in config.targets
    }
    for pattern, targets in found.items():
        if not targets:
            names = ", ".join(dict.fromkeys(t.name.rpartition(".")[2] for t in adaptable)) or "none"
            raise UserError(
                f"sft.lora.targets: no matrix of the model with both sides above rank "
                f"{config.rank} is called {pattern}",
                f"Choose among: {names}; a pattern is matched with the end of a name.",
                exit_code=EXIT_USAGE,
            )
    chosen = {target.name for targets in found.values() for target in targets}
    return [target for target in adaptable if target.name in chosen]


def add_adapter(model: nn.Module, config: LoraConfig) -> int:
    """Freeze the model and put a new adapter beside each target; the number of new parameters."""
    targets = targets_of(model, config)
    model.requires_grad_(False)
    for target in targets:
        part = LowRank(_weight(target), config)
        parametrize.register_parametrization(target.module, target.attribute, part)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def learn_new_rows(model: nn.Module, n_rows: int) -> None:
    """Let the last rows of embedding and head be learned beside an adapter."""
    learned: dict[int, nn.Parameter] = {}
    for module in (model.get_submodule("embedding"), model.get_submodule("output")):
        for name, weight in list(module.named_parameters(recurse=False)):
            first = nn.Parameter(weight.detach()[-n_rows:].clone())
            rows = learned.setdefault(id(weight), first)  # a shared matrix has them once
            parametrize.register_parametrization(module, name, NewRows(rows))


def add_learned_parts(model: Model, config: SftConfig, n_new: int) -> None:
    """Give a base what `sft.method` learns beside it, rows for `n_new` tokens included."""
    if config.method == "lora":
        add_adapter(model, config.lora)
        if n_new:
            learn_new_rows(model, n_new)
    elif config.method == "state":
        model.learn_initial_state()


def new_rows_of(model: nn.Module) -> dict[str, Tensor]:
    """The rows that `learn_new_rows` lets a model learn, by the names of the matrices."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, NewRows)}
    return {
        name.replace("parametrizations.", "").rpartition(".")[0]: part.rows.detach()
        for name, part in parts.items()
    }


@torch.no_grad()
def place_new_rows(model: nn.Module, rows: Mapping[str, Tensor]) -> None:
    """Write rows of new tokens to the end of the matrices; UserError where they do not fit."""
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, new in rows.items():
        if name not in own or own[name].shape[1:] != new.shape[1:] or len(new) > len(own[name]):
            raise UserError(
                f"the adapter does not fit the model: it has rows of tokens for {name}",
                "Use it with the base that it was trained on.",
            )
        own[name][-len(new) :] = new


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter that a model is trained with."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, LowRank)}
    factors = {
        _name_of_target(name): Factors(part.a.detach(), part.b.detach())
        for name, part in parts.items()
    }
    return Adapter(factors, next(iter(parts.values())).scale)


class Adapters:
    """The weights of a model with adapters added, in place, and taken off again.

    What an adapter changes is kept as it was, so that the base comes back to the bit.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {t.name: _weight(t) for t in _matrices(model)}
        self._before: dict[str, Tensor] = {}

    @torch.no_grad()
    def use(self, adapters: Sequence[Adapter]) -> None:
        """Make these, summed, the adapters of the model; none gives the base.

        UserError where one has another shape; the model is then the base.
        """
        for name, weight in self._before.items():
            self._weights[name].copy_(weight)
        for adapter in adapters:
            check_fits(adapter, self._weights)
        for adapter in adapters:
            for name, (a, b) in adapter.factors.items():
                weight = self._weights[name]
                self._before.setdefault(name, weight.clone())
                weight += adapter.scale * (b.to(weight) @ a.to(weight))


def check_fits(adapter: Adapter, weights: Mapping[str, Tensor]) -> None:
    """UserError unless every matrix of the adapter is one of the weights, of its shape."""
    for name, (a, b) in adapter.factors.items():
        shape = (*b.shape[:-1], a.shape[-1])
        if name not in weights or weights[name].shape != shape or a.shape[-2] != b.shape[-1]:
            found = tuple(weights[name].shape) if name in weights else "no such matrix"
            raise UserError(
                f"the adapter does not fit the model: {name} is {shape} there, and {found} here",
                "Use it with the base that it was trained on.",
            )


def _matrices(model: nn.Module) -> Iterator[Target]:
    """Every parameter of two or three dimensions; the weight of a linear layer has its name.

    A matrix that two modules share has no adapter: it would be that of both.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for _, parameter in parameters)
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() in (2, 3) and uses[id(parameter)] == 1:
                is_layer = attribute == "weight"
                name = path if is_layer else f"{path}.{attribute}".removeprefix(".")
                yield Target(module, attribute, name)


def _weight(target: Target) -> Tensor:
    weight: Tensor = getattr(target.module, target.attribute)
    return weight


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _name_of_target(part: str) -> str:
    """`blocks.0.mlp.up.parametrizations.weight.0` is of `blocks.0.mlp.up`."""
    path, _, rest = part.partition("parametrizations.")
    attribute = rest.rpartition(".")[0]
    return f"{path}{attribute}".removesuffix(".weight")
