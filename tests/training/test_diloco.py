"""DiLoCo's rule is what it says it is: equal to known optimizers where they must be equal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ys_llm.training.diloco import (
    Arrival,
    DelayedNesterov,
    Leases,
    Weights,
    Worker,
    asynchronous,
    local_steps,
    outer_gradient,
    synchronous,
)

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
ALIKE = [Worker(1.0)] * 4
UNEQUAL = [Worker(1.0), Worker(0.75), Worker(0.5), Worker(0.25)]


class Regression:
    """Workers that fit a vector to numbered batches, each with an AdamW of its own, in float64."""

    def __init__(self, n_workers: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(400, 16, 5, generator=generator, dtype=torch.float64)
        self.y = self.x @ torch.randn(5, generator=generator, dtype=torch.float64)
        self.first = [torch.randn(5, generator=generator, dtype=torch.float64)]
        self.parameters = [nn.Parameter(self.first[0].clone()) for _ in range(n_workers)]
        self.optimizers = [torch.optim.AdamW([p], lr=0.01) for p in self.parameters]
        self.trained: list[int] = []

    def train(self, worker: int, weights: Weights, batches: range) -> list[Tensor]:
        parameter, optimizer = self.parameters[worker], self.optimizers[worker]
        with torch.no_grad():
            parameter.copy_(weights[0])
        for index in batches:
            self.trained.append(index)
            optimizer.zero_grad()
            ((self.x[index] @ parameter - self.y[index]) ** 2).mean().backward()
            optimizer.step()
        return [parameter.detach().clone()]


def arrivals(
    server: DelayedNesterov, workers: Sequence[Worker], n: int, **options: bool
) -> tuple[list[Arrival], Regression]:
    problem = Regression(len(workers))
    found = asynchronous(server, workers, problem.train, inner_steps=8, **options)
    return list(itertools.islice(found, n)), problem


def new_server(**options: float) -> DelayedNesterov:
    return DelayedNesterov(Regression(1).first, **{"every": 4, **options})


def nesterov(first: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The weights after these steps of torch's own SGD."""
    parameter = nn.Parameter(first.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_one_worker_without_momentum_is_plain_training() -> None:
    server = new_server(every=1, rate=1.0, momentum=0.0)
    found, _ = arrivals(server, [Worker(1.0)], 12)
    assert [arrival.batches for arrival in found[:2]] == [range(8), range(8, 16)]
    plain = Regression(1)
    expected = plain.train(0, plain.first, range(12 * 8))
    torch.testing.assert_close(server.weights, expected, **CLOSE)


def test_workers_of_equal_speed_are_synchronous() -> None:
    one_by_one, together = new_server(), new_server(every=1)
    found, _ = arrivals(one_by_one, ALIKE, 40)
    rounds = synchronous(together, ALIKE, Regression(4).train, inner_steps=8)
    both = list(itertools.islice(rounds, 10))
    assert [a.batches for a in found] == [a.batches for arrived in both for a in arrived]
    torch.testing.assert_close(one_by_one.weights, together.weights, **CLOSE)


def test_synchronous_rounds_are_torchs_sgd_on_mean_changes() -> None:
    server, problem = new_server(every=1), Regression(4)
    changes: list[list[Tensor]] = []

    def train(worker: int, weights: Weights, batches: range) -> list[Tensor]:
        after = problem.train(worker, weights, batches)
        changes.append(outer_gradient(weights, after))
        return after

    list(itertools.islice(synchronous(server, ALIKE, train, inner_steps=8), 5))
    means = [torch.stack([c[0] for c in changes[at : at + 4]]).mean(0) for at in range(0, 20, 4)]
    expected = nesterov(problem.first[0], means)
    torch.testing.assert_close(server.weights[0], expected, **CLOSE)


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
def test_with_a_momentum_at_every_arrival_it_is_torchs_sgd(c: float) -> None:
    server = new_server(every=1, c=c)
    gradients = list(torch.randn(10, 5, dtype=torch.float64))
    for gradient in gradients:
        server.apply([gradient])
    expected = nesterov(Regression(1).first[0], gradients)
    torch.testing.assert_close(server.weights[0], expected, **CLOSE)


@pytest.mark.parametrize("c", [0.0, 0.2])
def test_the_order_within_n_arrivals_does_not_matter(c: float) -> None:
    gradients, found = torch.randn(8, 5, dtype=torch.float64), []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        server = new_server(c=c)
        for index in (*order, *(4 + index for index in order)):
            server.apply([gradients[index]])
        found.append(server.weights)
    torch.testing.assert_close(*found, **CLOSE)


def test_dynamic_local_updates_let_unequal_workers_arrive_together() -> None:
    found, problem = arrivals(new_server(), UNEQUAL, 8)
    assert [len(arrival.batches) for arrival in found] == [8, 6, 4, 2] * 2
    assert [arrival.worker for arrival in found] == [0, 1, 2, 3] * 2
    assert {arrival.seconds for arrival in found} == {8.0, 16.0}
    assert problem.trained == list(range(40))


def test_rounds_of_equal_length_make_slow_workers_stale() -> None:
    found, _ = arrivals(new_server(), UNEQUAL, 20, dynamic=False)
    assert [arrival.worker for arrival in found[:7]] == [0, 1, 0, 2, 1, 0, 0]
    slowest = next(arrival for arrival in found if arrival.worker == 3)
    assert slowest.staleness == sum(a.seconds <= 32 for a in found if a.worker != 3)
    assert max(arrival.staleness for arrival in found if arrival.worker == 0) < slowest.staleness


def test_steps_are_at_least_one() -> None:
    assert local_steps(8, 0.01, 1.0) == 1
    assert local_steps(30, 0.1, 1.0) == 3  # 30 * 0.1 is 3.0000000000000004, 100 * 0.29 below 29
    assert local_steps(100, 0.29, 1.0) == 29


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_worker_that_dies_loses_no_text_and_doubles_none(dynamic: bool) -> None:
    workers = [Worker(1.0), Worker(0.75, dies=29.0), Worker(0.25), Worker(1.0, joins=41.0)]
    found, problem = arrivals(new_server(), workers, 30, dynamic=dynamic)
    read = sorted(index for arrival in found for index in arrival.batches)
    assert len(set(read)) == len(read)
    assert read == sorted(problem.trained)
    on_their_way = set(range(max(read))) - set(read)
    assert len(on_their_way) <= 3 * 8  # with the three workers that are there
    assert {a.worker for a in found if a.seconds >= 29} == {0, 2, 3}
    assert min(a.seconds for a in found if a.worker == 3) > 41


def test_a_round_goes_on_without_the_worker_that_died_in_it() -> None:
    workers = [Worker(1.0), Worker(0.5, dies=20.0)]
    problem = Regression(2)
    rounds = synchronous(new_server(every=1), workers, problem.train, inner_steps=8)
    first, second, third = itertools.islice(rounds, 3)
    assert [a.batches for a in first] == [range(8), range(8, 16)]
    assert [(a.seconds, a.batches) for a in second] == [(24.0, range(16, 24))]
    assert [(a.seconds, a.batches) for a in third] == [(32.0, range(24, 32))]


def test_an_exchange_of_weights_takes_its_time() -> None:
    found, _ = arrivals(new_server(), [Worker(2.0, exchange_seconds=1.5)], 2)
    assert [arrival.seconds for arrival in found] == [5.5, 11.0]


def test_lost_batches_are_given_out_first_and_in_parts() -> None:
    leases = Leases()
    assert [leases.take(4), leases.take(4)] == [range(4), range(4, 8)]
    leases.lose(range(4))
    assert [leases.take(3), leases.take(3), leases.take(3)] == [range(3), range(3, 4), range(8, 11)]


def test_a_simulation_is_a_function_of_its_arguments() -> None:
    ended = []
    for _ in range(2):
        server = new_server(c=0.1)
        arrivals(server, [*UNEQUAL, Worker(0.9, joins=11.0, dies=math.inf)], 30)
        ended.append(server.weights[0])
    assert torch.equal(*ended)
