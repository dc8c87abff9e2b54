"""The permutation is a bijection in which every index is found alone."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.data.permutation import UInt64Array, permute, permute_array, permute_keyed


def hashed(number: int, value: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{number} {value}".encode(), digest_size=8).digest())


def hashed_array(number: int, values: UInt64Array) -> UInt64Array:
    return np.array([hashed(number, int(value)) for value in values], dtype=np.uint64)


@given(n=st.integers(1, 300))
@settings(deadline=None)
def test_an_array_is_permuted_as_its_numbers_are(n: int) -> None:
    alone = [permute(index, n, hashed) for index in range(n)]
    together = permute_array(np.arange(n, dtype=np.uint64), n, hashed_array)
    assert together.tolist() == alone
    assert sorted(alone) == list(range(n))


def test_the_order_of_windows_of_an_existing_run_never_changes() -> None:
    order = permute_keyed(np.arange(10, dtype=np.uint64), 10, seed=1337, epoch=2)
    assert order.tolist() == [1, 0, 8, 5, 4, 9, 6, 7, 2, 3]


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_the_permutation_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    values = permute_keyed(np.arange(n, dtype=np.uint64), n, seed=seed, epoch=epoch)
    assert sorted(values.tolist()) == list(range(n))


def test_each_index_is_permuted_alone_even_where_no_list_would_fit() -> None:
    n = 10**15 + 37
    indices = np.array([0, 1, 2, n // 2, n - 1], dtype=np.uint64)
    together = permute_keyed(indices, n, seed=3, epoch=0)
    alone = [int(permute_keyed(indices[i : i + 1], n, seed=3, epoch=0)[0]) for i in range(5)]
    assert together.tolist() == alone
    assert len(set(alone)) == 5
    assert max(alone) < n


def test_permutations_look_random_and_differ_between_epochs_and_seeds() -> None:
    n = 10_000
    indices = np.arange(n, dtype=np.uint64)
    orders = [permute_keyed(indices, n, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    for i, order in enumerate(orders):
        # The correlation of two independent orders has standard deviation 1 / sqrt(n) = 0.01.
        assert abs(np.corrcoef(indices, order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        for other in orders[i + 1 :]:
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.05
