"""DiLoCo: workers train by themselves for many steps, and exchange weights instead of gradients.

A worker takes the weights theta, trains some steps of its own optimizer and returns what they
changed, g = (weights it took) - (weights it returns), the outer gradient. Where all workers return
at once, the mean of their g is one step of SGD with Nesterov momentum (Douillard et al. 2023, arXiv
2311.08105). Where each returns when it is ready, `DelayedNesterov` applies it at once, and faster
workers make more steps a round than slower ones (Liu et al. 2024, arXiv 2401.09135).

`asynchronous` and `synchronous` simulate workers of unequal speed: simulated time orders what
happens, so that a simulation is a function of its arguments.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = Sequence[Tensor]
# Trains the weights of a worker (by its number) on these batches; returns the new weights.
Train = Callable[[int, Weights, range], Weights]
_DIGITS = 9  # of simulated seconds: workers that arrive together must not differ by rounding


class DelayedNesterov:
    """The outer optimizer: every arriving g moves the weights, every Nth the momentum.

    A += g;  i += 1
    every Nth    m = beta m + A / N;  A = 0;  theta -= rate ((1 - c N + c) beta m + g / N)
    else                                      theta -= rate (c beta m + g / N)

    c in [0, 1 / N] spreads the momentum over the arrivals in between. `every` = 1 is SGD with
    Nesterov momentum. Source: Liu et al. 2024, algorithm 3.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        every: int,
        rate: float = 0.7,
        momentum: float = 0.9,
        c: float = 0.0,
    ) -> None:
        self.weights = [tensor.detach().clone() for tensor in weights]
        self.momenta = [torch.zeros_like(tensor) for tensor in self.weights]
        self.sums = [torch.zeros_like(tensor) for tensor in self.weights]
        self.arrivals = 0
        self.every, self.rate, self.momentum, self.c = every, rate, momentum, c

    @torch.no_grad()
    def apply(self, outer_gradient: Weights) -> None:
        """Move the weights by what a worker changed."""
        self.arrivals += 1
        is_nth = self.arrivals % self.every == 0
        share = 1 - self.c * self.every + self.c if is_nth else self.c
        tensors = (self.weights, self.momenta, self.sums, outer_gradient)
        for theta, m, total, g in zip(*tensors, strict=True):
            total.add_(g)
            if is_nth:
                m.mul_(self.momentum).add_(total, alpha=1 / self.every)
                total.zero_()
            theta.sub_(share * self.momentum * m + g / self.every, alpha=self.rate)

    def snapshot(self) -> list[Tensor]:
        """A copy of the weights, for a worker."""
        return [tensor.clone() for tensor in self.weights]


@dataclass
class Leases:
    """Which batches each worker trains: every one is trained once, though workers disappear."""

    next: int = 0
    lost: list[range] = field(default_factory=list)

    def take(self, most: int) -> range:
        """Up to `most` batches: those that a worker has lost, else new ones."""
        if self.lost:
            first = self.lost.pop(0)
            if first[most:]:
                self.lost.insert(0, first[most:])
            return first[:most]
        self.next += most
        return range(self.next - most, self.next)

    def lose(self, batches: range) -> None:
        """Their worker has disappeared; the next one is given them."""
        self.lost.append(batches)


@dataclass(frozen=True)
class Worker:
    """A simulated worker: steps a second, seconds of an exchange of weights, when it is there."""

    speed: float
    exchange_seconds: float = 0.0
    joins: float = 0.0
    dies: float = math.inf

    def end(self, now: float, steps: int) -> float:
        """When it has made these steps and returned its weights."""
        return round(now + steps / self.speed + self.exchange_seconds, _DIGITS)


@dataclass(frozen=True)
class Arrival:
    """A worker's round: when it returned, what it read, how many others arrived meanwhile."""

    seconds: float
    worker: int
    batches: range
    staleness: int = 0


@dataclass(frozen=True)
class _Given:
    """What a worker was given: weights, batches, and how many had arrived before."""

    weights: list[Tensor]
    batches: range
    arrivals: int


def local_steps(longest: int, speed: float, fastest: float) -> int:
    """Dynamic local updates: max(1, floor(H v / max v)) steps, so that rounds take equally long."""
    return max(1, math.floor(longest * speed / fastest + 1e-9))


def outer_gradient(before: Weights, after: Weights) -> list[Tensor]:
    """What a worker changed, with the sign of a gradient."""
    return [old - new.detach() for old, new in zip(before, after, strict=True)]


def asynchronous(
    server: DelayedNesterov,
    workers: Sequence[Worker],
    train: Train,
    *,
    inner_steps: int,
    dynamic: bool = True,
) -> Iterator[Arrival]:
    """Simulate workers that each return when they are ready; yields their arrivals without end.

    `inner_steps` is a round of the fastest worker, with `dynamic` fewer of a slower one. Those who
    arrive at one time are all applied, by number, before any is given weights. A round of a worker
    that dies is lost, and its batches are given to the next. Ends where no worker is left.
    """
    leases, given = Leases(), dict[int, _Given]()
    events = [(worker.joins, number) for number, worker in enumerate(workers)]
    heapq.heapify(events)
    while events:
        now, ready = events[0][0], list[int]()
        while events and events[0][0] == now:
            ready.append(heapq.heappop(events)[1])
        for number in ready:
            lease = given.pop(number, None)
            if lease is None:
                continue
            if now >= workers[number].dies:
                leases.lose(lease.batches)
                continue
            after = train(number, lease.weights, lease.batches)
            server.apply(outer_gradient(lease.weights, after))
            staleness = server.arrivals - lease.arrivals - 1
            yield Arrival(now, number, lease.batches, staleness)
        for number in (n for n in ready if now < workers[n].dies):
            worker = workers[number]
            steps = _steps(workers, now, number, inner_steps) if dynamic else inner_steps
            batches = leases.take(steps)
            given[number] = _Given(server.snapshot(), batches, server.arrivals)
            end = min(worker.end(now, len(batches)), worker.dies)
            heapq.heappush(events, (end, number))


def _steps(workers: Sequence[Worker], now: float, number: int, longest: int) -> int:
    """Steps of this worker beside those that are there."""
    there = [worker.speed for worker in workers if worker.joins <= now < worker.dies]
    return local_steps(longest, workers[number].speed, max(there))


def synchronous(
    server: DelayedNesterov, workers: Sequence[Worker], train: Train, *, inner_steps: int
) -> Iterator[Sequence[Arrival]]:
    """Simulate rounds in which all workers wait for the slowest; yields the arrivals of each.

    The server's `every` is 1: the mean of a round is one step. A worker that dies in a round is
    left out of its mean, and its batches are given to another. Ends where no worker is left.
    """
    leases, now = Leases(), 0.0
    while there := _there(workers, now):
        given = {number: leases.take(inner_steps) for number in there}
        ends = {n: min(w.end(now, len(given[n])), w.dies) for n, w in there.items()}
        before, now = server.snapshot(), max(ends.values())
        changed = list[list[Tensor]]()
        arrived = list[Arrival]()
        for number, batches in given.items():
            if ends[number] >= workers[number].dies:
                leases.lose(batches)
                continue
            changed.append(outer_gradient(before, train(number, before, batches)))
            arrived.append(Arrival(now, number, batches))
        if changed:
            server.apply([torch.stack(tensors).mean(0) for tensors in zip(*changed, strict=True)])
            yield arrived


def _there(workers: Sequence[Worker], now: float) -> Mapping[int, Worker]:
    """The workers that are there, by number."""
    return {n: w for n, w in enumerate(workers) if w.joins <= now < w.dies}
