"""Experimental: passes of the recurrence as CUDA graphs, one call instead of thousands of launches.

A graph repeats its launches on the memory it was captured with. So a `Capture` has its own tensors:
inputs and weights are copied in, results are copied out. A forward pass leases a capture, which is
returned after backward (or when the pass is dropped), so saved tensors are not overwritten however
many passes are pending. Layers of the same shape share captures.

`Graphs` owns a bounded number of captures and drops the least recently used. A shape is captured
when it occurs a second time. Without a capture the pass runs normally, with the same results.
"""

import gc
import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ys_llm.ops.three_tier.types import Weights, flat, unflat
from ys_llm.ops.three_tier.windowed import Begin, Pass

MOST_CAPTURES = 32  # each keeps the memory of one pass of its shape
FEWEST_STEPS = 16  # for a shorter pass, copying the weights would take longer than launching
_MOST_SHAPES = 1024  # counted before the counts are cleared

Replay = Callable[[], Any]


Record = Callable[[list[Callable[[], None]]], list[Replay]]


def record_cuda(functions: list[Callable[[], None]]) -> list[Replay]:
    """Capture these functions, in the order in which they will be replayed, in one memory pool.

    Each runs once first, so that kernels are compiled and libraries initialised outside the
    capture. Other threads may use the device during it (`thread_local`). Garbage collection is off:
    it could unload a kernel, which a capture forbids.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for function in functions:
            function()
    torch.cuda.current_stream().wait_stream(stream)
    pool, replays = torch.cuda.graph_pool_handle(), []
    with _without_garbage_collection():
        for function in functions:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                function()
            replays.append(graph.replay)
    return replays


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Capture:
    """A forward and a backward pass on tensors of their own."""

    def __init__(
        self, make: Begin, weights: Weights, tensors: list[Tensor | None], record: Record
    ) -> None:
        self.make, self.like = make, weights
        with torch.inference_mode(False), torch.no_grad():  # tensors that may be written anywhere
            self.tensors = [None if t is None else _like(t).copy_(t) for t in tensors]
            drive, h, local, glob = (t for t in self.tensors[1:5] if t is not None)
            d_h = h.new_zeros(len(drive), *h.shape)  # not as the drive: it may be twice as wide
            self.grads = [d_h, torch.zeros_like(local), torch.zeros_like(glob)]
            self.replay_forward, self.replay_backward = record([self._forward, self._backward])
        self.holder: Lease | None = None

    def forward(self, tensors: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Copy in, replay, copy out: every h, and L and G after the last step."""
        _copy(self.tensors, tensors)
        self.replay_forward()
        return self.h.clone(), [value.clone() for value in self.summaries]

    def backward(self, grads: list[Tensor]) -> list[Tensor | None]:
        """As `Pass.backward`."""
        _copy(self.grads, grads)
        self.replay_backward()
        return [None if grad is None else grad.clone() for grad in self.results]

    def _forward(self) -> None:
        starts, drive, h, local, glob, *weights = self.tensors
        assert drive is not None and h is not None and local is not None and glob is not None
        self.run = self.make(unflat(weights, self.like), starts)
        self.h, self.summaries = self.run.forward(drive, h, [local, glob])

    def _backward(self) -> None:
        grad_h, *grad_summaries = self.grads
        self.results = self.run.backward(self.h, grad_h, list(grad_summaries))


class Lease:
    """A capture while one pass uses it."""

    def __init__(self, capture: Capture, give_back: Callable[[Capture], None]) -> None:
        self.capture, self.give_back, self.is_open = capture, give_back, True
        capture.holder = self

    def close(self) -> None:
        """Return the capture; a second call does nothing."""
        if self.is_open:
            self.is_open = False
            self.give_back(self.capture)

    def is_intact(self) -> bool:
        """Whether no other pass has used the capture since."""
        return self.capture.holder is self


class Graphs:
    """The captures of one device, which it leases to passes."""

    def __init__(self, record: Record = record_cuda, most: int = MOST_CAPTURES) -> None:
        self.record, self.most = record, most
        self.idle: list[tuple[Any, Capture]] = []  # least recently used first
        self.lent = 0
        self.seen: Counter[Any] = Counter()
        self.refused: dict[Any, str] = {}

    def lend(
        self, key: Any, make: Begin, weights: Weights, tensors: list[Tensor | None]
    ) -> Lease | None:
        """A capture for this key, or None if the pass should run normally."""
        self.seen[key] += 1
        if key in self.refused or self.seen[key] < 2:
            self._forget_shapes()
            return None
        capture = self._idle(key)
        if capture is None:
            if not self._has_capacity():
                return None
            capture = self._capture(key, make, weights, tensors)
        if capture is None:
            return None
        self.lent += 1
        return Lease(capture, lambda given: self._take_back(key, given))

    def _idle(self, key: Any) -> Capture | None:
        for i in reversed(range(len(self.idle))):
            if self.idle[i][0] == key:
                return self.idle.pop(i)[1]
        return None

    def _has_capacity(self) -> bool:
        while self.idle and self.lent + len(self.idle) >= self.most:
            self.idle.pop(0)
        return self.lent < self.most

    def _capture(
        self, key: Any, make: Begin, weights: Weights, tensors: list[Tensor | None]
    ) -> Capture | None:
        try:
            return Capture(make, weights, tensors, self.record)
        except RuntimeError as error:  # out of memory, or nothing that can be captured
            self.refused[key] = str(error).splitlines()[0]
            warnings.warn(
                f"the recurrence runs without a CUDA graph: {self.refused[key]}", stacklevel=2
            )
            return None

    def _take_back(self, key: Any, capture: Capture) -> None:
        self.lent -= 1
        self.idle.append((key, capture))

    def _forget_shapes(self) -> None:
        if len(self.seen) > _MOST_SHAPES:
            self.seen.clear()


class GraphPass:
    """A `Pass` that replays a capture if `graphs` lends one, and runs normally otherwise."""

    def __init__(
        self, graphs: Graphs, key: Any, make: Begin, weights: Weights, starts_TB: Tensor | None
    ) -> None:
        self.graphs, self.key, self.make = graphs, key, make
        self.weights, self.starts_TB = weights, starts_TB
        self.lease: Lease | None = None
        self.run: Pass | None = None

    def forward(
        self, drive: Tensor, h: Tensor, summaries: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Pass`."""
        tensors = [self.starts_TB, drive, h, *summaries, *flat(self.weights)]
        if len(drive) >= FEWEST_STEPS:
            key = (self.key, _settings(), tuple(map(_shape, tensors)))
            self.lease = self.graphs.lend(key, self.make, self.weights, tensors)
        if self.lease is None:
            self.run = self.make(self.weights, self.starts_TB)
            return self.run.forward(drive, h, summaries)
        weakref.finalize(self, self.lease.close).atexit = False  # dropped without backward
        return self.lease.capture.forward(tensors)

    def backward(
        self, h: Tensor, grad_h: Tensor, grad_summaries: list[Tensor]
    ) -> list[Tensor | None]:
        """See `Pass`."""
        if self.run is not None:
            return self.run.backward(h, grad_h, grad_summaries)
        assert self.lease is not None, "backward before forward"
        if not self.lease.is_intact():
            raise RuntimeError(
                "second backward pass through a CUDA graph of the recurrence after another forward "
                "pass had used it; set train.backend: windowed"
            )
        results = self.lease.capture.backward([grad_h, *grad_summaries])
        self.lease.close()
        return results


def phase(weights: Weights, position: int) -> int:
    """The clock as far as a pass depends on it: which steps update the summaries."""
    return position % math.lcm(*(summary.every for summary in weights.summaries if summary))


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device)


def _settings() -> Any:
    """Switches of torch that decide which kernels a pass launches."""
    return torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _copy(targets: list[Any], sources: list[Any]) -> None:
    """One launch per dtype: torch copies a list of one dtype at once."""
    pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if t is not None]
    for dtype in {target.dtype for target, _ in pairs}:
        own, given = zip(*((t, s) for t, s in pairs if t.dtype == dtype), strict=True)
        torch._foreach_copy_(own, given)
