"""The carried state: every operation on every tree that a mixer may choose for its state."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ys_llm.model.state import (
    concat_rows,
    detach,
    flatten,
    initial_positions,
    map_state,
    repeat_rows,
    select_rows,
    state_bytes,
    tensors_of,
    to_device,
    unflatten,
)

B = 3


class Pair(NamedTuple):
    """A NamedTuple as a mixer might use it."""

    window: Any
    memory: Any


def leaf(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(seed))


leaves = st.builds(leaf, st.integers(0, 999), st.lists(st.integers(0, 3), max_size=3).map(tuple))
keys = st.text(st.sampled_from("ab.~0"), min_size=1, max_size=3)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(keys, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=6,
)


def assert_same(tree: Any, expected: Any) -> None:
    assert type(tree) is type(expected)
    if isinstance(expected, Tensor):
        assert torch.equal(tree, expected)
    elif isinstance(expected, dict):
        assert list(tree) == list(expected)
        for key in expected:
            assert_same(tree[key], expected[key])
    else:
        assert len(tree) == len(expected)
        for ours, theirs in zip(tree, expected, strict=True):
            assert_same(ours, theirs)


@given(trees)
def test_a_tree_comes_back_from_a_file_as_it_was(tree: Any) -> None:
    flat = {name: tensor.contiguous() for name, tensor in flatten(tree).items()}
    assert len(flat) == len(tensors_of(tree))
    read = safetensors.torch.load(safetensors.torch.save(flat))
    like = map_state(tree, lambda tensor: tensor.new_zeros(1))
    assert_same(unflatten(read, like=like), tree)


@given(trees)
def test_mapping_changes_every_tensor_and_nothing_else(tree: Any) -> None:
    doubled = map_state(tree, lambda tensor: 2 * tensor)
    assert_same(map_state(doubled, lambda tensor: tensor / 2), tree)
    for ours, theirs in zip(tensors_of(doubled), tensors_of(tree), strict=True):
        assert torch.equal(ours, 2 * theirs)


@given(trees, st.permutations(range(B)))
def test_rows_are_selected_in_the_order_asked_for(tree: Any, rows: list[int]) -> None:
    for ours, theirs in zip(tensors_of(select_rows(tree, rows)), tensors_of(tree), strict=True):
        assert torch.equal(ours, torch.stack([theirs[row] for row in rows]))
    assert_same(select_rows(tree, slice(0, B)), tree)


@given(trees)
def test_rows_that_are_taken_apart_and_put_together_are_the_same(tree: Any) -> None:
    assert_same(concat_rows([select_rows(tree, [row]) for row in range(B)]), tree)


@given(trees, st.integers(1, 3))
def test_repeated_rows_lie_next_to_each_other(tree: Any, times: int) -> None:
    rows = [row for row in range(B) for _ in range(times)]
    assert_same(repeat_rows(tree, times), select_rows(tree, rows))


@given(trees)
def test_bytes_are_those_of_the_layers_tensors(tree: Any) -> None:
    state = {"position_B": initial_positions(B), "layers": [tree]}
    assert state_bytes(state) == sum(tensor.nbytes for tensor in tensors_of(tree))


def test_shorter_leaves_are_padded_on_the_left() -> None:
    short = {"keys": torch.ones(1, 2, 4), "sum": torch.ones(1, 4)}
    long = {"keys": 2 * torch.ones(2, 3, 4), "sum": torch.zeros(2, 4)}
    joined = concat_rows([short, long])
    assert joined["keys"][:, :, 0].tolist() == [[0, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert joined["sum"].shape == (3, 4)


def test_two_keys_with_dots_do_not_share_a_name() -> None:
    tree = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    assert_same(unflatten(flatten(tree), like=tree), tree)


def test_other_tensors_than_those_of_the_structure_are_refused() -> None:
    tree = {"main": torch.zeros(1, 2), "memory": [torch.zeros(1)]}
    flat = flatten(tree)
    with pytest.raises(ValueError, match=r"first memory\.0"):
        unflatten({"main": flat["main"]}, like=tree)
    with pytest.raises(ValueError, match="first more"):
        unflatten({**flat, "more": flat["main"]}, like=tree)


@pytest.mark.parametrize("odd", [3, None, "text"])
def test_what_is_no_tensor_has_no_place_in_a_state(odd: Any) -> None:
    with pytest.raises(TypeError, match="expected tensors"):
        flatten({"layers": [{"main": odd}]})


def test_a_detached_tree_keeps_no_graph_and_no_memory_but_its_own() -> None:
    steps = torch.randn(9, B, 4, requires_grad=True) * 2
    state = {"last": (steps[-1], [steps[0].clone()])}
    carried = detach(state)
    for ours, theirs in zip(tensors_of(carried), tensors_of(state), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad
        assert ours.untyped_storage().nbytes() == ours.nbytes


def test_positions_stay_on_the_cpu() -> None:
    state = {"position_B": initial_positions(B), "layers": [{"main": torch.zeros(B, 2)}]}
    moved = to_device(state, "meta")
    assert moved["position_B"].device.type == "cpu"
    assert moved["layers"][0]["main"].device.type == "meta"
