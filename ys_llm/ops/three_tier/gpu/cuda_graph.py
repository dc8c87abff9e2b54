"""Passes of the recurrence as CUDA graphs: thousands of launches become one call each way.

A graph repeats its launches on the memory it was captured with. So a `Capture` has tensors of its
own: inputs and weights are copied in, results are copied out. It is lent to one forward pass and
comes back when that pass has gone back, or is dropped: what the way back needs stays untouched
meanwhile, however many passes are pending, and layers of the same shape share captures.

`Graphs` owns them: a bounded number, the longest unused making room. A shape is captured when it
comes a second time. Where there is no capture the pass runs as it is; its results are the same.
"""

import gc
import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from ys_llm.ops.three_tier.types import Weights, flat, unflat

MOST_CAPTURES = 32  # each holds what a pass of its shape holds
FEWEST_STEPS = 16  # a shorter pass is launched sooner than its weights are copied
_MOST_SHAPES = 1024  # counted before counting begins anew

Replay = Callable[[], Any]


class Pass(Protocol):
    """A run over T steps and back."""

    def forward(
        self, drive: Tensor, h: Tensor, held: list[Tensor], /
    ) -> tuple[Tensor, list[Tensor]]:
        """Every h, and L and G after the last step."""

    def backward(
        self, h: Tensor, grad_h: Tensor, grad_held: list[Tensor], /
    ) -> list[Tensor | None]:
        """Gradients of drive, h0, L0, G0 and the weights, in the order of `tiers.flat`."""


Make = Callable[[Weights, Tensor | None], Pass]
Record = Callable[[list[Callable[[], None]]], list[Replay]]


def record_cuda(functions: list[Callable[[], None]]) -> list[Replay]:
    """Capture these functions, in the order in which they will be replayed, in one memory pool.

    All of them run once before: kernels are compiled and libraries set up outside the capture.
    Other threads may go on using the device (`thread_local`). No garbage is collected meanwhile: to
    unload a kernel is forbidden during a capture.
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
    """One pass and its way back on tensors of their own."""

    def __init__(
        self, make: Make, weights: Weights, tensors: list[Tensor | None], record: Record
    ) -> None:
        self.make, self.like = make, weights
        with torch.inference_mode(False), torch.no_grad():  # tensors that may be written anywhere
            self.tensors = [None if t is None else _like(t).copy_(t) for t in tensors]
            _, drive, *states = self.tensors[:5]
            self.grads = [torch.zeros_like(t) for t in (drive, *states[1:]) if t is not None]
            self.replay_forward, self.replay_backward = record([self._forward, self._backward])
        self.holder: Lease | None = None

    def forward(self, tensors: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Copy in, replay, copy out: every h, and L and G after the last step."""
        _copy(self.tensors, tensors)
        self.replay_forward()
        return self.h.clone(), [value.clone() for value in self.held]

    def backward(self, grads: list[Tensor]) -> list[Tensor | None]:
        """As `Pass.backward`."""
        _copy(self.grads, grads)
        self.replay_backward()
        return [None if grad is None else grad.clone() for grad in self.results]

    def _forward(self) -> None:
        starts, drive, h, local, glob, *weights = self.tensors
        assert drive is not None and h is not None and local is not None and glob is not None
        self.run = self.make(unflat(weights, self.like), starts)
        self.h, self.held = self.run.forward(drive, h, [local, glob])

    def _backward(self) -> None:
        grad_h, *grad_held = self.grads
        self.results = self.run.backward(self.h, grad_h, list(grad_held))


class Lease:
    """A capture while one pass holds it."""

    def __init__(self, capture: Capture, give_back: Callable[[Capture], None]) -> None:
        self.capture, self.give_back, self.is_open = capture, give_back, True
        capture.holder = self

    def close(self) -> None:
        """Let others have the capture; a second call does nothing."""
        if self.is_open:
            self.is_open = False
            self.give_back(self.capture)

    def is_intact(self) -> bool:
        """Whether nobody has had the capture since."""
        return self.capture.holder is self


class Graphs:
    """The captures of one device, lent and taken back."""

    def __init__(self, record: Record = record_cuda, most: int = MOST_CAPTURES) -> None:
        self.record, self.most = record, most
        self.idle: list[tuple[Any, Capture]] = []  # the longest unused first
        self.lent = 0
        self.seen: Counter[Any] = Counter()
        self.refused: dict[Any, str] = {}

    def lend(
        self, key: Any, make: Make, weights: Weights, tensors: list[Tensor | None]
    ) -> Lease | None:
        """A capture for this key, or None where the pass should run as it is."""
        self.seen[key] += 1
        if key in self.refused or self.seen[key] < 2:
            self._forget_shapes()
            return None
        capture = self._idle(key)
        if capture is None:
            if not self._makes_room():
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

    def _makes_room(self) -> bool:
        while self.idle and self.lent + len(self.idle) >= self.most:
            self.idle.pop(0)
        return self.lent < self.most

    def _capture(
        self, key: Any, make: Make, weights: Weights, tensors: list[Tensor | None]
    ) -> Capture | None:
        try:
            return Capture(make, weights, tensors, self.record)
        except RuntimeError as error:  # of the device: out of memory, or not to be captured
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
    """A `Pass` that replays a capture where `graphs` lends one, and runs as made where not."""

    def __init__(
        self, graphs: Graphs, made_by: Any, make: Make, weights: Weights, starts_TB: Tensor | None
    ) -> None:
        self.graphs, self.made_by, self.make = graphs, made_by, make
        self.weights, self.starts_TB = weights, starts_TB
        self.lease: Lease | None = None
        self.run: Pass | None = None

    def forward(self, drive: Tensor, h: Tensor, held: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See `Pass`."""
        tensors = [self.starts_TB, drive, h, *held, *flat(self.weights)]
        if len(drive) >= FEWEST_STEPS:
            key = (self.made_by, _settings(), tuple(map(_shape, tensors)))
            self.lease = self.graphs.lend(key, self.make, self.weights, tensors)
        if self.lease is None:
            self.run = self.make(self.weights, self.starts_TB)
            return self.run.forward(drive, h, held)
        weakref.finalize(self, self.lease.close).atexit = False  # dropped without a way back
        return self.lease.capture.forward(tensors)

    def backward(self, h: Tensor, grad_h: Tensor, grad_held: list[Tensor]) -> list[Tensor | None]:
        """See `Pass`."""
        if self.run is not None:
            return self.run.backward(h, grad_h, grad_held)
        assert self.lease is not None, "backward before forward"
        if not self.lease.is_intact():
            raise RuntimeError(
                "a graph of the recurrence was gone back through a second time after another pass "
                "had begun; use implementation: windowed for that"
            )
        results = self.lease.capture.backward([grad_h, *grad_held])
        self.lease.close()
        return results


def phase(weights: Weights, position: int) -> int:
    """The clock as far as a pass depends on it: which steps renew the summaries."""
    tiers = (weights.local_summary, weights.global_summary)
    return position % math.lcm(*(tier.every for tier in tiers if tier))


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device)


def _settings() -> Any:
    """Switches of torch that decide which kernels a pass launches."""
    return torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _copy(targets: list[Any], sources: list[Any]) -> None:
    """As few launches as types: torch copies a list of one type at once."""
    pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if t is not None]
    for dtype in {target.dtype for target, _ in pairs}:
        own, given = zip(*((t, s) for t, s in pairs if t.dtype == dtype), strict=True)
        torch._foreach_copy_(own, given)
