"""The carried state: a tree of tensors, and the operations on it, which work for every mixer.

    state = {"position_B": int64, always on the CPU; "layers": [one tree for each mixer];
             "cross": the global cache, "copy": that of the copy tier, where the model has them}

`position_B` is the clock of each row: how many tokens it has read. A mixer's tree consists of
dicts, lists, tuples and NamedTuples; its leaves are tensors whose first dimension is the batch. A
leaf that grows with time has time as its second dimension, the latest last.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Path = tuple[str, ...]

_TENSOR_OVERHEAD = 768  # bytes of a tensor besides its numbers; about 700 with torch 2.13


def initial_positions(batch_size: int) -> Tensor:
    """The clocks of rows that have read nothing."""
    return torch.zeros(batch_size, dtype=torch.int64, device="cpu")


def map_state(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with `change` applied to every tensor in it."""
    return _build(tree, (), lambda _, tensor: change(tensor))


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor of a tree, in a fixed order."""
    return [tensor for _, tensor in _leaves(tree, ())]


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory that kept tensors take: their numbers, and each as an object."""
    return sum(tensor.nbytes + _TENSOR_OVERHEAD for tensor in tensors)


def detach(state: Any) -> Any:
    """The state without its graph, to be carried into the next batch.

    A leaf that is a view of a larger storage (the last step of all steps) is copied, so that the
    storage can be freed.
    """
    return map_state(state, _detached)


def to_device(state: State, device: torch.device | str) -> State:
    """The tensors on `device`; the positions stay on the CPU."""
    moved: State = map_state(_without_clock(state), lambda tensor: tensor.to(device))
    return {"position_B": state["position_B"].to("cpu"), **moved}


def select_rows(state: Any, rows: Sequence[int] | slice) -> Any:
    """The state of these rows of the batch, in this order."""
    index = rows if isinstance(rows, slice) else list(rows)
    return map_state(state, lambda tensor: tensor[index])


def repeat_rows(state: Any, times: int) -> Any:
    """Each row `times` times, its copies next to each other."""
    return map_state(state, lambda tensor: tensor.repeat_interleave(times, dim=0))


def concat_rows(states: Sequence[Any]) -> Any:
    """One state with the rows of all of them, which come from the same model.

    Where leaves have grown to different lengths the shorter ones are padded with zeros on the left,
    in their second dimension. A mixer reads such zeros as nothing.
    """
    columns = zip(*map(tensors_of, states), strict=True)
    joined = iter([_concatenated(column) for column in columns])
    return map_state(states[0], lambda _: next(joined))


def flatten(tree: Any) -> dict[str, Tensor]:
    """Every tensor by its dotted path, as a safetensors file takes them: `layers.0.main`."""
    return {_name(path): tensor for path, tensor in _leaves(tree, ())}


def unflatten(tensors: Mapping[str, Tensor], like: Any) -> Any:
    """The inverse of `flatten`; `like` is a tree of the same structure, of any sizes.

    Raises ValueError where the names are not those of `like`.
    """
    expected = {_name(path) for path, _ in _leaves(like, ())}
    if differing := sorted(expected ^ tensors.keys()):
        raise ValueError(
            f"{len(differing)} tensors of the state differ by name, first {differing[0]}"
        )
    return _build(like, (), lambda path, _: tensors[_name(path)])


def state_bytes(state: State) -> int:
    """Bytes of the tensors; the positions, 8 bytes a row, are not counted."""
    tensors = tensors_of(_without_clock(state))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _without_clock(state: State) -> State:
    return {name: tree for name, tree in state.items() if name != "position_B"}


def _build(tree: Any, path: Path, leaf: Callable[[Path, Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return leaf(path, tree)
    if isinstance(tree, dict):
        return {key: _build(item, (*path, key), leaf) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        items = [_build(item, (*path, str(i)), leaf) for i, item in enumerate(tree)]
        if isinstance(tree, list):
            return items
        is_named = hasattr(tree, "_fields")
        return type(tree)(*items) if is_named else tuple(items)
    raise TypeError(
        f"a state holds a {type(tree).__name__} at {_name(path)!r}, expected tensors in dicts, "
        "lists and tuples"
    )


def _leaves(tree: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    found: list[tuple[Path, Tensor]] = []

    def note(path: Path, tensor: Tensor) -> Tensor:
        """Append a leaf to `found`; returns it unchanged."""
        found.append((path, tensor))
        return tensor

    _build(tree, path, note)
    yield from found


def _name(path: Path) -> str:
    """Parts joined by dots; a dot inside a key is escaped, so that no two paths share a name."""
    return ".".join(part.replace("~", "~0").replace(".", "~1") for part in path)


def _detached(tensor: Tensor) -> Tensor:
    storage_bytes, tensor = tensor.untyped_storage().nbytes(), tensor.detach()
    return tensor.clone() if storage_bytes > tensor.nbytes else tensor


def _concatenated(leaves: Sequence[Tensor]) -> Tensor:
    if leaves[0].dim() < 2:
        return torch.cat(list(leaves))
    longest = max(leaf.shape[1] for leaf in leaves)
    return torch.cat([_left_padded(leaf, longest) for leaf in leaves])


def _left_padded(leaf: Tensor, length: int) -> Tensor:
    missing = length - leaf.shape[1]
    if not missing:
        return leaf
    zeros = leaf.new_zeros(leaf.shape[0], missing, *leaf.shape[2:])
    return torch.cat([zeros, leaf], dim=1)
