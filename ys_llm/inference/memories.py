"""The memories of a state by name: muted, so that they contribute nothing, and measured.

A memory is a tensor of the state: of a layer, such as `1.main`, or those of the copy tier, `copy`.
Layers are counted from 1. A name without a layer means all layers, and its beginning is enough:
`global` is every layer's global summary. A number alone means all memories of that layer.

A muted memory is emptied before every token: the model reads and writes as if it had never kept
anything there. A text is then read one token at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ys_llm.errors import UserError
from ys_llm.inference.compiled_sampling import PENALTY_WINDOW
from ys_llm.inference.decode_step import DecodeRows, TorchRows
from ys_llm.inference.generate import Prefilled, Slices, prefill
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, flatten, unflatten

Muted = frozenset[str]  # names of tensors of the state, as `flatten` gives them
NOTHING_MUTED: Muted = frozenset()
_WATCHED = 96  # tokens, of which each that changes a memory is noticed


@dataclass(frozen=True)
class Memory:
    """A memory as it is, and its latest change.

    `norm` is Euclidean; `change` the norm of the difference that token number `changed_at` made,
    counted from 1. Both are None where no token that was watched has changed it, `change` also for
    a memory that grows with the text. `numbers` are the memory's own, flattened.
    """

    name: str
    numbers: Tensor
    norm: float
    change: float | None
    changed_at: int | None


class MutedRows:
    """Rows of which some memories are emptied before every token; see `DecodeRows`."""

    def __init__(self, rows: DecodeRows, muted: Muted) -> None:
        self._rows, self._muted = rows, muted

    def add(self, states: Sequence[State]) -> None:
        """See `DecodeRows`."""
        self._rows.add(states)

    def keep(self, rows: Sequence[int]) -> None:
        """See `DecodeRows`."""
        self._rows.keep(rows)

    def step(self, ids: Sequence[int]) -> Tensor:
        """See `DecodeRows`."""
        for row in range(len(ids)):
            self._rows.empty(row, self._muted)
        return self._rows.step(ids)

    def row_state(self, row: int) -> State:
        """See `DecodeRows`."""
        return self._rows.row_state(row)

    def parts(self, row: int) -> dict[str, Tensor]:
        """See `DecodeRows`."""
        return self._rows.parts(row)

    def empty(self, row: int, names: Collection[str]) -> None:
        """See `DecodeRows`."""
        self._rows.empty(row, names)


def muted_slices(rows: MutedRows, ids: Iterable[int], state: State) -> Slices:
    """Read `ids` (at least one) after `state`, as the only one of `rows`; yields between tokens."""
    recent, n_tokens = deque[int](maxlen=PENALTY_WINDOW), 0
    rows.add([state])
    for id in ids:
        if n_tokens:
            yield None
        logits_V = rows.step([id])[0]
        recent.append(id)
        n_tokens += 1
    if not n_tokens:
        raise ValueError("there is nothing to read")
    return Prefilled(logits_V.clone(), rows.row_state(0), tuple(recent), n_tokens)


def emptied(state: State, names: Collection[str], empty: Mapping[str, Tensor]) -> State:
    """The state with these tensors as they were before the first token; `empty` is that of one row.

    Tensors of the copy tier keep their length: their zeros are read as nothing.
    """
    tensors = flatten(state)
    for name in names:
        tensor = tensors[name]
        is_copied = name.startswith("copy.")
        tensors[name] = torch.zeros_like(tensor) if is_copied else empty[name].expand_as(tensor)
    changed: State = unflatten(tensors, state)
    return changed


def memory_names(model: Model) -> list[str]:
    """What can be muted: every layer, every name of a memory, and `copy` where there is that."""
    described = [_described(name) for name in _memories(model)]
    layers = dict.fromkeys(layer for layer, _ in described if layer != "copy")
    names = dict.fromkeys(name for layer, name in described if layer != "copy")
    copy = dict.fromkeys(layer for layer, _ in described if layer == "copy")
    return [*layers, *names, *copy]


def memories_called(model: Model, called: str) -> Muted:
    """The tensors that a name means; UserError where there are none, or none that can be muted."""
    tensors = _memories(model)
    found = frozenset(name for name in tensors if _is_called(called, *_described(name)))
    if not found:
        choices = ", ".join(memory_names(model))
        raise UserError(f"this model has no memory {called!r}", f"Choose one of: {choices}")
    growing = [name for name in found if not name.startswith("copy.") and _grows(tensors[name])]
    if growing:
        layer = _described(growing[0])[0]
        problem = f"layer {layer} keeps every token of the text, and cannot be muted"
        raise UserError(problem, "Mute a memory of constant size.")
    return found


def shown(muted: Muted) -> str:
    """The names of muted memories, as they are typed."""
    layers = {name: _described(name)[0] for name in muted}
    names = {"copy" if layers[name] == "copy" else shown_name(name) for name in muted}
    return ", ".join(sorted(names))


def shown_name(name: str) -> str:
    """A tensor of the state as a user names it: `1.main` for `layers.0.main`."""
    return ".".join(_described(name))


def measured(model: Model, state: State, before: State | None, ids: Sequence[int]) -> list[Memory]:
    """Every memory of `state`, with the changes that the last of `ids` made, read after `before`.

    At most 96 tokens are read again, one at a time. `before` None is the beginning of a text.
    """
    first, changes = max(0, len(ids) - _WATCHED), dict[str, tuple[float | None, int]]()
    if first:
        before = prefill(model, ids[:first], before).state
    rows = TorchRows(model)
    rows.add([model.init_state(1) if before is None else before])
    for id in ids[first:]:
        old = flatten(rows.state)
        rows.step([id])
        new, position = flatten(rows.state), _position(rows.state)
        for name in old:
            if old[name].shape != new[name].shape:
                changes[name] = None, position
            elif change := float(torch.linalg.vector_norm((new[name] - old[name]).double())):
                changes[name] = change, position
    return [
        Memory(
            shown_name(name),
            tensor.flatten(),
            _norm(tensor),
            *changes.get(name, (None, None)),
        )
        for name, tensor in flatten(state).items()
        if name != "position_B" and name != "copy.tokens"
    ]


def _position(state: State | None) -> int:
    assert state is not None
    return int(state["position_B"][0])


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


def _memories(model: Model) -> dict[str, Tensor]:
    tensors = flatten(model.init_state(1))
    del tensors["position_B"]
    return tensors


def _grows(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.shape[1] == 0


def _described(name: str) -> tuple[str, str]:
    """Layer (counted from 1, or `copy`) and name of a tensor `layers.0.main` or `copy.keys`."""
    kind, _, rest = name.partition(".")
    if kind == "copy":
        return kind, rest
    layer, _, own = rest.partition(".")
    return str(int(layer) + 1), own


def _is_called(called: str, layer: str, name: str) -> bool:
    first, _, rest = called.partition(".")
    if first.isdigit() or first == "copy":
        return first == layer and name.startswith(rest)
    return layer != "copy" and bool(called) and name.startswith(called)
